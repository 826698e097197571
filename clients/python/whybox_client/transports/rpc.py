"""gRPC: the same messages, errors as `whybox.v1.Error` in the details of google.rpc.Status."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import grpc
from google.rpc import error_details_pb2, status_pb2

from whybox_client import errors
from whybox_client.transports import advice
from whybox_client.transports.credentials import Credentials
from whybox_client.transports.lines import HungUpError, Line
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
    "UNAUTHENTICATED": errors.UnauthenticatedError,
}

_Metadata: TypeAlias = Any  # a sequence of (key, value), of a class of its own in each of grpc's two halves


class RpcTransport:
    """Sends calls over one gRPC channel and waits."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        self._url = url
        self._headers = tuple(credentials.headers.items())
        target, tls = _target(url), _tls(url, credentials)
        self._channel = (
            grpc.insecure_channel(target, options=_OPTIONS)
            if tls is None
            else grpc.secure_channel(target, tls, options=_OPTIONS)
        )

    def send(self, call: Call, timeout: float, line: Line) -> Reply:
        """Send a call and return its reply."""
        method = self._channel.unary_unary(call.operation.rpc, _as_it_is, _as_it_is)
        answer = method.future(
            call.request.SerializeToString(), timeout=timeout, metadata=_metadata(call, self._headers)
        )
        with line.holding(answer.cancel):
            try:
                body = answer.result()
            except grpc.FutureCancelledError:
                raise HungUpError from None
            except grpc.RpcError as error:
                raise _translate(error, call, self._url) from error
        return _reply(body, answer.initial_metadata(), call)

    def stream(self, call: Call, timeout: float, line: Line) -> Generator[Reply, None, None]:
        """Send a call and yield its replies."""
        answers = self._channel.unary_stream(call.operation.rpc, _as_it_is, _as_it_is)(
            call.request.SerializeToString(), timeout=timeout, metadata=_metadata(call, self._headers)
        )
        bodies = iter(answers)
        try:
            while True:
                with line.holding(answers.cancel):
                    try:
                        body = next(bodies)
                    except StopIteration:
                        return
                    except grpc.RpcError as error:
                        raise _translate(error, call, self._url) from error
                yield _reply(body, answers.initial_metadata(), call)
        finally:
            answers.cancel()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the channel; calls that other threads wait for are called off."""
        self._channel.close()


class AsyncRpcTransport:
    """The same for asyncio; its channel opens in the event loop of the first call."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        self._url = url
        self._headers = tuple(credentials.headers.items())
        self._tls = _tls(url, credentials)
        self._channel: grpc.aio.Channel | None = None

    async def send(self, call: Call, timeout: float) -> Reply:
        """Send a call and return its reply."""
        answer = self._here().unary_unary(call.operation.rpc, _as_it_is, _as_it_is)(
            call.request.SerializeToString(), timeout=timeout, metadata=_metadata(call, self._headers)
        )
        try:
            body = await answer
        except grpc.aio.AioRpcError as error:
            raise _translate(error, call, self._url) from error
        return _reply(body, await answer.initial_metadata(), call)

    async def stream(self, call: Call, timeout: float) -> AsyncGenerator[Reply, None]:
        """Send a call and yield its replies."""
        answers = self._here().unary_stream(call.operation.rpc, _as_it_is, _as_it_is)(
            call.request.SerializeToString(), timeout=timeout, metadata=_metadata(call, self._headers)
        )
        try:
            async for body in answers:
                yield _reply(body, await answers.initial_metadata(), call)
        except grpc.aio.AioRpcError as error:
            raise _translate(error, call, self._url) from error
        finally:
            answers.cancel()

    async def aclose(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close(grace=None)

    def _here(self) -> grpc.aio.Channel:
        """Return the channel; it opens with the first call."""
        if self._channel is None:
            target = _target(self._url)
            self._channel = (
                grpc.aio.insecure_channel(target, options=_OPTIONS)
                if self._tls is None
                else grpc.aio.secure_channel(target, self._tls, options=_OPTIONS)
            )
        return self._channel


def _target(url: str) -> str:
    return urlsplit(url).netloc


def _tls(url: str, credentials: Credentials) -> grpc.ChannelCredentials | None:
    """Return what a channel's TLS needs; None where it has none."""
    if urlsplit(url).scheme != "grpcs":
        return None
    credentials.context()  # gRPC would not say what is wrong with a file before the first call
    if credentials.certificate is None:
        return grpc.ssl_channel_credentials(credentials.authorities())
    certificate, key = (path.read_bytes() for path in credentials.certificate)
    return grpc.ssl_channel_credentials(credentials.authorities(), key, certificate)


def _metadata(call: Call, headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return ((_REQUEST_ID, call.request_id), *headers)


def _as_it_is(message: bytes) -> bytes:
    """Leave (de)serialising to the flows."""
    return message


def _reply(body: bytes, metadata: _Metadata, call: Call) -> Reply:
    if call.operation is READY and body != _SERVING:
        raise errors.UnavailableError("the service is not ready", request_id=call.request_id)
    return Reply(body, dict(metadata or ()).get(_REQUEST_ID, call.request_id))


def _translate(error: Any, call: Call, url: str) -> errors.WhyboxError:
    """Read the service's own error from the details, or make one of the code."""
    told, delay = _details(error.trailing_metadata())
    if told is not None:
        return _of_the_service(told, error.code(), call, delay)
    text = error.details() or error.code().name
    kind = CODE_CLASSES[error.code().name]
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        kind = errors.RequestTooLargeError  # said by the server's gRPC itself, before whybox sees the request
    return kind(f"{url}: {text}", request_id=call.request_id, retry_after=delay)


def _details(metadata: _Metadata) -> tuple[explainer_pb2.Error | None, float | None]:
    """Read the service's own error, and when to ask again, from the details of a status."""
    told, delay = None, None
    for key, value in metadata or ():
        if key != _DETAILS:
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Is(explainer_pb2.Error.DESCRIPTOR):
                told = explainer_pb2.Error.FromString(detail.value)
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                advised = error_details_pb2.RetryInfo.FromString(detail.value)
                delay = advice.of_seconds(advised.retry_delay.ToNanoseconds() / 1e9)
    return told, delay


def _of_the_service(
    error: explainer_pb2.Error, code: grpc.StatusCode, call: Call, delay: float | None
) -> errors.WhyboxError:
    return errors.CLASSES.get(error.type, CODE_CLASSES[code.name])(
        error.message,
        type=error.type,
        field=error.field,
        expected=error.expected,
        got=error.got,
        request_id=error.request_id or call.request_id,
        retry_after=advice.of_seconds(error.retry_after_seconds) or delay,
    )
