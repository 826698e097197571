"""gRPC: the same messages, errors as `whybox.v1.Error` in the details of google.rpc.Status."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from google.rpc import status_pb2

from whybox_client import errors
from whybox_client.wire import READY, Call, Reply
from whybox_proto.v1 import explainer_pb2

_OPTIONS = (
    # The service bounds what it reads and sends; gRPC's own 4 MiB are too few for maps in image size.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A service that comes back is found again soon; gRPC would wait up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
_REQUEST_ID = "x-request-id"
_DETAILS = "grpc-status-details-bin"
# grpc.health.v1.HealthCheckResponse{status: SERVING} on the wire: field 1, varint 1.
_SERVING = b"\x08\x01"

#: What a gRPC code means where no error of the service's own is in the details.
CODE_CLASSES: dict[str, type[errors.WhyboxError]] = {
    "CANCELLED": errors.ConnectionFailedError,
    "UNKNOWN": errors.InternalError,
    "INVALID_ARGUMENT": errors.InvalidRequestError,
    "DEADLINE_EXCEEDED": errors.DeadlineExceededError,
    "NOT_FOUND": errors.NotFoundError,
    "ALREADY_EXISTS": errors.RequestError,
    "PERMISSION_DENIED": errors.RequestError,
    "RESOURCE_EXHAUSTED": errors.OverloadedError,
    "FAILED_PRECONDITION": errors.RequestError,
    "ABORTED": errors.ServiceError,
    "OUT_OF_RANGE": errors.RequestError,
    "UNIMPLEMENTED": errors.NotServedError,
    "INTERNAL": errors.InternalError,
    "UNAVAILABLE": errors.ConnectionFailedError,
    "DATA_LOSS": errors.InvalidAnswerError,
    "UNAUTHENTICATED": errors.RequestError,
}

_Metadata: TypeAlias = Any  # a sequence of (key, value), of a class of its own in each of grpc's two halves


class RpcTransport:
    """Sends calls over one gRPC channel and waits."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)

    def send(self, call: Call, timeout: float) -> Reply:
        """Send a call and return its reply."""
        method = self._channel.unary_unary(call.operation.rpc, _as_it_is, _as_it_is)
        try:
            body, answer = method.with_call(
                call.request.SerializeToString(), timeout=timeout, metadata=((_REQUEST_ID, call.request_id),)
            )
        except grpc.RpcError as error:
            raise _translate(error, call, self._target) from error
        return _reply(body, answer.initial_metadata(), call)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class AsyncRpcTransport:
    """The same for asyncio; its channel opens in the event loop of the first call."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._channel: grpc.aio.Channel | None = None

    async def send(self, call: Call, timeout: float) -> Reply:
        """Send a call and return its reply."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        answer = self._channel.unary_unary(call.operation.rpc, _as_it_is, _as_it_is)(
            call.request.SerializeToString(), timeout=timeout, metadata=((_REQUEST_ID, call.request_id),)
        )
        try:
            body = await answer
        except grpc.aio.AioRpcError as error:
            raise _translate(error, call, self._target) from error
        return _reply(body, await answer.initial_metadata(), call)

    async def aclose(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close(grace=None)


def _as_it_is(message: bytes) -> bytes:
    """Leave (de)serialising to the flows."""
    return message


def _reply(body: bytes, metadata: _Metadata, call: Call) -> Reply:
    if call.operation is READY and body != _SERVING:
        raise errors.UnavailableError("the service is not ready", request_id=call.request_id)
    return Reply(body, dict(metadata or ()).get(_REQUEST_ID, call.request_id))


def _translate(error: Any, call: Call, target: str) -> errors.WhyboxError:
    """Read the service's own error from the details, or make one of the code."""
    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS:
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Is(explainer_pb2.Error.DESCRIPTOR):
                return _of_the_service(explainer_pb2.Error.FromString(detail.value), error.code(), call)
    text = error.details() or error.code().name
    kind = CODE_CLASSES[error.code().name]
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        kind = errors.RequestTooLargeError  # said by the server's gRPC itself, before whybox sees the request
    return kind(f"grpc://{target}: {text}", request_id=call.request_id)


def _of_the_service(error: explainer_pb2.Error, code: grpc.StatusCode, call: Call) -> errors.WhyboxError:
    return errors.CLASSES.get(error.type, CODE_CLASSES[code.name])(
        error.message,
        type=error.type,
        field=error.field,
        expected=error.expected,
        got=error.got,
        request_id=error.request_id or call.request_id,
    )
