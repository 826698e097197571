"""The table of errors on each transport: problem+json for REST, a rich status for gRPC.

Nothing here decides what an error is: `whybox_proto.errors.ERRORS` does, once for both.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import status_pb2
from whybox_proto.errors import ERRORS, ContractError

PROBLEM_JSON = "application/problem+json"
TYPE_PREFIX = "urn:whybox:error:"


def type_uri(name: str) -> str:
    """Return the `type` member of a problem: a URI that never changes for a row of the table."""
    return TYPE_PREFIX + name


def to_problem(error: ContractError, request_id: str) -> dict[str, Any]:
    """Write an error as an RFC 9457 problem; members that would say nothing are left out."""
    problem: dict[str, Any] = {
        "type": type_uri(error.type),
        "title": error.row.title,
        "status": error.row.http_status,
        "detail": printable(error.message),
        "request_id": request_id,
    }
    for name in ("field", "expected", "got"):
        if value := getattr(error, name):
            problem[name] = printable(value)
    return problem


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


def printable(text: str) -> str:
    """Make text that came from outside fit to send back: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
