"""Keys looked at before a message is read: strangers cannot fill the memory with 64 MiB at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from whybox_proto.errors import ContractError
from whybox_service.keys import Keys
from whybox_service.rpc.servicer import SERVICE

_PREFIX = f"/{SERVICE.full_name}/"

_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class Door(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # it takes none at run time
    """Has requests without a known key refused as they arrive.

    grpc reads the message of a unary request before it calls what answers it. One that is to be refused is
    therefore declared a stream, which is read when it is asked for, and goes to its handler with no message:
    the handler then refuses it, with the request's id, metrics and log line, as it does on REST.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Choose the handler of a request."""
        handler = await continuation(handler_call_details)
        details: Any = handler_call_details  # the stubs know none of its attributes
        if handler is None or not details.method.startswith(_PREFIX):
            return handler
        try:
            self._keys.identify(dict(details.invocation_metadata or ()).get("authorization"))
        except ContractError:
            return _unread(handler)
        return handler


def _unread(handler: Any) -> _Handler:
    """Return a handler that hands no message on."""
    if handler.response_streaming:

        async def stream(_messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for answer in handler.unary_stream(b"", context):
                yield answer

        return grpc.stream_stream_rpc_method_handler(stream)

    async def answer(_messages: AsyncIterator[bytes], context: Any) -> bytes:
        body: bytes = await handler.unary_unary(b"", context)
        return body

    return grpc.stream_unary_rpc_method_handler(answer)
