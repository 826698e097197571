"""Who may talk over gRPC, decided before a message is read: strangers can fill neither memory nor places.

grpc reads the message of a unary request before it calls what answers it, up to the size that the largest
request may have. A request that is declared a stream is read when it is asked for. So what needs no message,
or only a short one, is declared so here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc

from whybox_proto.errors import ContractError
from whybox_service.keys import Keys
from whybox_service.rpc.servicer import SERVICE

# Requests of the open services (health, reflection) that may be there at one time, of each kind.
OPEN_CHECKS = 32
OPEN_STREAMS = 32
# Of them, those whose message is read at one time, and what each may take.
OPEN_READS = 4
OPEN_READ_SECONDS = 5.0
OPEN_MESSAGE_BYTES = 4096

_PREFIX = f"/{SERVICE.full_name}/"

_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class Door(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # it takes none at run time
    """Has requests without a known key refused as they arrive, and bounds the services that need no key.

    A request that is to be refused goes to its handler with no message: the handler then refuses it, with the
    request's id, metrics and log line, as it does on REST.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._checks = _Places(OPEN_CHECKS)
        self._streams = _Places(OPEN_STREAMS)
        self._reads = asyncio.Semaphore(OPEN_READS)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Choose the handler of a request."""
        handler = await continuation(handler_call_details)
        details: Any = handler_call_details  # the stubs know none of its attributes
        if handler is None:
            return handler
        if not details.method.startswith(_PREFIX):
            return self._bounded(handler)
        try:
            self._keys.identify(dict(details.invocation_metadata or ()).get("authorization"))
        except ContractError:
            return _unread(handler)
        return handler

    def _bounded(self, handler: Any) -> _Handler:
        """Return a handler of an open service that takes few requests and short messages."""
        if handler.request_streaming:

            async def talk(messages: AsyncIterator[Any], context: Any) -> None:
                with await self._streams.taken(context):
                    await _pass_on(handler.stream_stream(self._short(messages, context), context), context)

            return _like(handler, grpc.stream_stream_rpc_method_handler, talk)
        if handler.response_streaming:

            async def follow(messages: AsyncIterator[Any], context: Any) -> None:
                with await self._streams.taken(context):
                    message = await self._first(messages, context)
                    await _pass_on(handler.unary_stream(message, context), context)

            return _like(handler, grpc.stream_stream_rpc_method_handler, follow)

        async def check(messages: AsyncIterator[Any], context: Any) -> Any:
            with await self._checks.taken(context):
                return await handler.unary_unary(await self._first(messages, context), context)

        return _like(handler, grpc.stream_unary_rpc_method_handler, check)

    async def _first(self, messages: AsyncIterator[Any], context: Any) -> Any:
        """Read the one message of a request, which is short and comes soon."""
        try:
            async with asyncio.timeout(OPEN_READ_SECONDS), self._reads:
                message = await anext(aiter(messages))
        except (TimeoutError, StopAsyncIteration):
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not come")
        await _check_short(message, context)
        return message

    async def _short(self, messages: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for message in messages:
            await _check_short(message, context)
            yield message


class _Places:
    """Places for requests that are there at one time."""

    def __init__(self, count: int) -> None:
        self._free = count

    async def taken(self, context: Any) -> Any:
        """Return what holds a place; end the request where there is none."""
        if not self._free:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests of this kind are here")
        self._free -= 1
        return self._held()

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._free += 1


async def _pass_on(answers: Any, context: Any) -> None:
    """Write what a handler yields; one that writes by itself is awaited."""
    if inspect.isawaitable(answers):
        await answers
        return
    async for answer in answers:
        await context.write(answer)


async def _check_short(message: Any, context: Any) -> None:
    if message.ByteSize() > OPEN_MESSAGE_BYTES:
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message has at most {OPEN_MESSAGE_BYTES} bytes here"
        )


def _like(handler: Any, make: Callable[..., Any], behaviour: Any) -> _Handler:
    """Return a handler of another kind that reads and writes the same messages."""
    made: _Handler = make(
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made


def _unread(handler: Any) -> _Handler:
    """Return a handler that hands no message on."""
    if handler.response_streaming:

        async def stream(_messages: AsyncIterator[bytes], context: Any) -> None:
            await _pass_on(handler.unary_stream(b"", context), context)

        return grpc.stream_stream_rpc_method_handler(stream)

    async def answer(_messages: AsyncIterator[bytes], context: Any) -> bytes:
        body: bytes = await handler.unary_unary(b"", context)
        return body

    return grpc.stream_unary_rpc_method_handler(answer)
