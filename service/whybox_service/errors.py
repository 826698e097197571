"""The table of errors on gRPC: a rich status.

Nothing here decides what an error is: `whybox_proto.errors.ERRORS` does, once for both.
"""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.rpc import status_pb2

from whybox_proto.errors import ERRORS, ContractError, printable


def grpc_code(name: str) -> grpc.StatusCode:
    """Return the gRPC code of a row of the table."""
    return grpc.StatusCode[ERRORS[name].grpc_code]


def to_status(error: ContractError, request_id: str) -> status_pb2.Status:
    """Write an error as a google.rpc.Status whose details hold the whybox.v1.Error."""
    cleaned = ContractError(
        error.type,
        printable(error.message),
        field=printable(error.field),
        expected=printable(error.expected),
        got=printable(error.got),
    )
    detail = any_pb2.Any()
    detail.Pack(cleaned.to_message(request_id))
    return status_pb2.Status(code=grpc_code(error.type).value[0], message=cleaned.message, details=[detail])
