"""What can go wrong, as exceptions.

    WhyboxError
     ├─ RequestError                 the request is at fault: the same request will fail again
     │   ├─ InvalidRequestError      cannot be read, or SDK and service speak different versions
     │   ├─ InvalidArgumentError     a field has a value that it cannot have
     │   ├─ InvalidImageError        no picture, or one that cannot be decoded
     │   ├─ UnauthenticatedError     no key, or one that the service does not know
     │   ├─ UnknownNameError         a name that is not there; the message gives the nearest one
     │   │   ├─ UnknownModelError
     │   │   ├─ UnknownLabelError
     │   │   ├─ UnknownMethodError
     │   │   ├─ UnknownTargetError
     │   │   ├─ UnknownLayerError
     │   │   └─ UnknownParameterError
     │   ├─ NotFoundError            nothing at this address
     │   ├─ UnknownInversionError    deleted, perhaps
     │   ├─ ConflictError            the idempotency key belongs to another request
     │   │   └─ InversionEndedError  what has ended cannot be cancelled
     │   ├─ RequestTooLargeError
     │   └─ ResponseTooLargeError    the answer would be; the message says how to ask for less
     ├─ InversionFailedError         a layout inversion ended without a result; `type` says why
     ├─ InversionCancelledError      it was cancelled
     └─ ServiceError                 the request may be fine
         ├─ OverloadedError          more requests than can be answered: later it can work
         ├─ UnavailableError         the model cannot answer now
         ├─ DeadlineExceededError    no answer in time
         ├─ RequestTimeoutError      the request reached the service too slowly
         ├─ InternalError            something broke in the service
         ├─ StorageError             what has to be kept cannot be written
         ├─ NotServedError           the service has no such operation
         ├─ ConnectionFailedError    the service could not be reached, or hung up
         └─ InvalidAnswerError       what answered does not speak whybox

Arguments that never leave this process raise Python's own `TypeError`, `ValueError` and `OSError`.
"""

from __future__ import annotations

from whybox_proto.errors import ERRORS

# What has no row in `ERRORS`, because no service says it, and yet may pass.
_MAY_PASS = frozenset({"connection_failed"})


class WhyboxError(Exception):
    """What went wrong, as the service (or the transport) told it.

    Attributes:
        type: stable name, such as ``unknown_label``: a row of `whybox_proto.errors.ERRORS`, or
            ``connection_failed`` or ``invalid_answer`` where no service answered, or ``cancelled``.
        message: what happened, in a sentence.
        field: path of the field at fault, such as ``select.labels[0]``; empty where none is.
        expected: what that field takes.
        got: what came.
        request_id: finds the request in the service's logs.
        retry_after: seconds after which the service wants to be asked again; None where it did not say.
    """

    default_type = "internal"

    def __init__(
        self,
        message: str,
        *,
        type: str = "",
        field: str = "",
        expected: str = "",
        got: str = "",
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.type = type or self.default_type
        self.message = message
        self.field = field
        self.expected = expected
        self.got = got
        self.request_id = request_id
        self.retry_after = retry_after

    @property
    def retryable(self) -> bool:
        """Whether asking the same again, later, can help.

        After a `DeadlineExceededError` it can with more time; so the client does not do that by itself.
        """
        row = ERRORS.get(self.type)
        return row.retryable if row else self.type in _MAY_PASS

    def __str__(self) -> str:
        facts = [
            f"{name} {value}"
            for name, value in (
                ("field", self.field),
                ("expected", self.expected),
                ("got", self.got),
                ("request", self.request_id),
            )
            if value
        ]
        return f"{self.message} ({'; '.join(facts)})" if facts else self.message


class RequestError(WhyboxError):
    """The request is at fault: the same request will fail again."""

    default_type = "invalid_request"


class InvalidRequestError(RequestError):
    """The request cannot be read: the SDK and the service speak different versions."""


class InvalidArgumentError(RequestError):
    """A field has a value that it cannot have."""

    default_type = "invalid_argument"


class InvalidImageError(RequestError):
    """There is no picture, or it cannot be decoded."""

    default_type = "invalid_image"


class UnauthenticatedError(RequestError):
    """The request carries no key, or one that the service does not know."""

    default_type = "unauthenticated"


class UnknownNameError(RequestError):
    """A name that is not there; the message gives the nearest one that is."""


class UnknownModelError(UnknownNameError):
    """The service has no such model."""

    default_type = "unknown_model"


class UnknownLabelError(UnknownNameError):
    """The model has no such label."""

    default_type = "unknown_label"


class UnknownMethodError(UnknownNameError):
    """The model has no such method."""

    default_type = "unknown_method"


class UnknownTargetError(UnknownNameError):
    """The method has no such target."""

    default_type = "unknown_target"


class UnknownLayerError(UnknownNameError):
    """The method does not take this layer."""

    default_type = "unknown_layer"


class UnknownParameterError(UnknownNameError):
    """The method, or the kind of NMS, has no such parameter."""

    default_type = "unknown_parameter"


class NotFoundError(RequestError):
    """There is nothing at this address."""

    default_type = "not_found"


class UnknownInversionError(RequestError):
    """There is no inversion of that name; it may have been deleted."""

    default_type = "unknown_inversion"


class ConflictError(RequestError):
    """The request contradicts what is there: its idempotency key belongs to another request."""

    default_type = "idempotency_conflict"


class InversionEndedError(ConflictError):
    """The inversion has ended, and cannot be cancelled any more."""

    default_type = "inversion_ended"


class RequestTooLargeError(RequestError):
    """The request is larger than the service reads."""

    default_type = "request_too_large"


class ResponseTooLargeError(RequestError):
    """The answer would be larger than the service sends; the message says how to ask for less."""

    default_type = "response_too_large"


class InversionFailedError(WhyboxError):
    """A layout inversion failed; `type` and the other attributes are those of what went wrong in it."""


class InversionCancelledError(WhyboxError):
    """A layout inversion was cancelled."""

    default_type = "cancelled"


class ServiceError(WhyboxError):
    """The service did not answer; the request may be fine."""


class OverloadedError(ServiceError):
    """There are more requests than can be answered; `retry_after` says when to ask again."""

    default_type = "overloaded"


class UnavailableError(ServiceError):
    """The model cannot answer now."""

    default_type = "backend_unavailable"


class DeadlineExceededError(ServiceError):
    """No answer came in time."""

    default_type = "deadline_exceeded"


class RequestTimeoutError(ServiceError):
    """The request reached the service so slowly that it stopped reading."""

    default_type = "request_timeout"


class InternalError(ServiceError):
    """Something broke in the service."""


class StorageError(ServiceError):
    """The service cannot write what it has to keep, for want of space perhaps."""

    default_type = "storage_failed"


class NotServedError(ServiceError):
    """The service has no such operation."""

    default_type = "not_implemented"


class ConnectionFailedError(ServiceError):
    """The service could not be reached, or hung up."""

    default_type = "connection_failed"


class InvalidAnswerError(ServiceError):
    """What answered does not speak whybox."""

    default_type = "invalid_answer"


#: The class of each row of `whybox_proto.errors.ERRORS`.
CLASSES: dict[str, type[WhyboxError]] = {
    "invalid_request": InvalidRequestError,
    "invalid_argument": InvalidArgumentError,
    "unknown_field": InvalidRequestError,
    "unknown_label": UnknownLabelError,
    "unknown_method": UnknownMethodError,
    "unknown_target": UnknownTargetError,
    "unknown_layer": UnknownLayerError,
    "unknown_parameter": UnknownParameterError,
    "missing_image": InvalidImageError,
    "invalid_image": InvalidImageError,
    "unauthenticated": UnauthenticatedError,
    "unknown_model": UnknownModelError,
    "unknown_inversion": UnknownInversionError,
    "not_found": NotFoundError,
    "method_not_allowed": InvalidRequestError,
    "not_acceptable": InvalidRequestError,
    "request_timeout": RequestTimeoutError,
    "idempotency_conflict": ConflictError,
    "inversion_ended": InversionEndedError,
    "request_too_large": RequestTooLargeError,
    "unsupported_media_type": InvalidRequestError,
    "response_too_large": ResponseTooLargeError,
    "overloaded": OverloadedError,
    "internal": InternalError,
    "not_implemented": NotServedError,
    "backend_unavailable": UnavailableError,
    "deadline_exceeded": DeadlineExceededError,
    "storage_failed": StorageError,
}
