"""The table of errors on gRPC: a rich status.

Nothing here decides what an error is: `whybox_proto.errors.ERRORS` does, once for both.
"""

from __future__ import annotations

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from whybox_proto.errors import ERRORS, ContractError, printable


def grpc_code(name: str) -> grpc.StatusCode:
    """Return the gRPC code of a row of the table."""
    return grpc.StatusCode[ERRORS[name].grpc_code]


def to_status(error: ContractError, request_id: str) -> status_pb2.Status:
    """Write an error as a google.rpc.Status: its details hold the whybox.v1.Error, and a RetryInfo."""
    cleaned = ContractError(
        error.type,
        printable(error.message),
        field=printable(error.field),
        expected=printable(error.expected),
        got=printable(error.got),
        retry_after=error.retry_after,
    )
    details: list[Message] = [cleaned.to_message(request_id)]
    if cleaned.retry_after:
        advice = error_details_pb2.RetryInfo()
        advice.retry_delay.FromNanoseconds(round(cleaned.retry_after * 1e9))
        details.append(advice)
    status = status_pb2.Status(code=grpc_code(error.type).value[0], message=cleaned.message)
    for detail in details:
        status.details.add().Pack(detail)
    return status
