"""The one table of errors, and the exception that carries a row of it.

A worker, the gateway and the client all speak in these names. REST gives a row as RFC 9457
``application/problem+json`` with the row's HTTP status, gRPC as a status with the row's code and the
`whybox.v1.Error` message in its details.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from whybox_proto.v1 import explainer_pb2

PROBLEM_JSON = "application/problem+json"
TYPE_PREFIX = "urn:whybox:error:"
LONGEST_NAME = 200
"""Of what is looked up among known names; longer ones are like none, and costly to compare."""


@dataclass(frozen=True)
class ErrorType:
    """One row: a stable name, its status on both transports, and whether asking again can help.

    `grpc_code` is the name of a `grpc.StatusCode` member; naming it as a string keeps grpc out of the
    worker and out of the client's import.
    """

    name: str
    http_status: int
    grpc_code: str
    title: str
    retryable: bool = False


ERRORS: dict[str, ErrorType] = {
    row.name: row
    for row in (
        ErrorType("invalid_request", 400, "INVALID_ARGUMENT", "The request cannot be read"),
        ErrorType("invalid_argument", 400, "INVALID_ARGUMENT", "A field has a value it cannot have"),
        ErrorType("unknown_field", 400, "INVALID_ARGUMENT", "The request has a field nobody knows"),
        ErrorType("unknown_label", 400, "INVALID_ARGUMENT", "The model has no such label"),
        ErrorType("unknown_method", 400, "INVALID_ARGUMENT", "The model has no such method"),
        ErrorType("unknown_target", 400, "INVALID_ARGUMENT", "The method has no such target"),
        ErrorType("unknown_layer", 400, "INVALID_ARGUMENT", "The method has no such layer"),
        ErrorType("unknown_parameter", 400, "INVALID_ARGUMENT", "The method has no such parameter"),
        ErrorType("missing_image", 400, "INVALID_ARGUMENT", "The request has no image"),
        ErrorType("invalid_image", 400, "INVALID_ARGUMENT", "The image cannot be decoded"),
        ErrorType("unauthenticated", 401, "UNAUTHENTICATED", "The request has no key that is known"),
        ErrorType("unknown_model", 404, "NOT_FOUND", "There is no such model"),
        ErrorType("unknown_inversion", 404, "NOT_FOUND", "There is no such inversion"),
        ErrorType("not_found", 404, "NOT_FOUND", "There is nothing at this address"),
        ErrorType("method_not_allowed", 405, "UNIMPLEMENTED", "The address does not take this verb"),
        ErrorType("not_acceptable", 406, "INVALID_ARGUMENT", "No such representation of the answer"),
        ErrorType("request_timeout", 408, "ABORTED", "The request came too slowly", retryable=True),
        ErrorType(
            "idempotency_conflict", 409, "ALREADY_EXISTS", "The idempotency key belongs to another request"
        ),
        ErrorType("inversion_ended", 409, "FAILED_PRECONDITION", "The inversion has ended already"),
        ErrorType("request_too_large", 413, "RESOURCE_EXHAUSTED", "The request is too large"),
        ErrorType("unsupported_media_type", 415, "INVALID_ARGUMENT", "The body is of a type nobody reads"),
        ErrorType("response_too_large", 422, "OUT_OF_RANGE", "The answer would be too large"),
        ErrorType("overloaded", 429, "RESOURCE_EXHAUSTED", "Too many requests at one time", retryable=True),
        ErrorType("internal", 500, "INTERNAL", "Something broke on our side"),
        ErrorType("not_implemented", 501, "UNIMPLEMENTED", "Not served yet"),
        ErrorType("backend_unavailable", 503, "UNAVAILABLE", "The model cannot answer now", retryable=True),
        ErrorType("deadline_exceeded", 504, "DEADLINE_EXCEEDED", "The answer took too long", retryable=True),
        ErrorType("storage_failed", 507, "INTERNAL", "What has to be kept cannot be written"),
    )
}


class ContractError(Exception):
    """A row of `ERRORS` as it happened: what went wrong, in which field, what was expected, what came.

    `retry_after` is the number of seconds after which asking again is worth while; 0 says nothing.
    """

    def __init__(
        self,
        type: str,
        message: str,
        *,
        field: str = "",
        expected: str = "",
        got: str = "",
        retry_after: float = 0.0,
    ) -> None:
        if type not in ERRORS:
            raise ValueError(f"error type {type!r} is not in the table of errors")
        super().__init__(message)
        self.type = type
        self.message = message
        self.field = field
        self.expected = expected
        self.got = got
        self.retry_after = retry_after

    @property
    def row(self) -> ErrorType:
        """The row of `ERRORS` that this error belongs to."""
        return ERRORS[self.type]

    def to_message(self, request_id: str = "") -> explainer_pb2.Error:
        """Turn into the message that travels to the client."""
        return explainer_pb2.Error(
            type=self.type,
            message=self.message,
            field=self.field,
            expected=self.expected,
            got=self.got,
            request_id=request_id,
            retry_after_seconds=self.retry_after,
        )

    @classmethod
    def from_message(cls, error: explainer_pb2.Error) -> ContractError:
        """Read back what `to_message` wrote; a name that this version does not know becomes `internal`."""
        return cls(
            error.type if error.type in ERRORS else "internal",
            error.message,
            field=error.field,
            expected=error.expected,
            got=error.got,
            retry_after=error.retry_after_seconds,
        )


def type_uri(name: str) -> str:
    """Return the `type` member of a problem: a URI that never changes for a row of the table."""
    return TYPE_PREFIX + name


def to_problem(error: ContractError, request_id: str = "") -> dict[str, Any]:
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
    if error.retry_after:
        problem["retry_after_seconds"] = error.retry_after
    return problem


def printable(text: str) -> str:
    """Make text that came from outside fit to send back: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def shorten(value: object, limit: int = 80) -> str:
    """Show a value that came from outside in an error, cut to `limit` characters."""
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def unknown_name(type: str, what: str, got: str, known: Iterable[str], *, field: str) -> ContractError:
    """Say that `got` is no `what`, and name the nearest one that is.

    Args:
        type: row of `ERRORS`, such as ``unknown_label``.
        what: the thing in words, such as ``label``.
        got: the name that came.
        known: the names there are.
        field: path of the field in the request.
    """
    names = list(known)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.5) if len(got) <= LONGEST_NAME else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
    return ContractError(
        type,
        f"there is no {what} {shorten(got)!r}{hint}",
        field=field,
        expected=f"one of: {listed}" if names else f"no {what} at all",
        got=shorten(got),
    )
