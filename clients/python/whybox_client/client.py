"""The two clients: one waits, one is awaited. What they do is in `whybox_client.flows`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import aclosing, closing, contextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeAlias, TypeVar

from whybox_client import defaults, flows, retrying, transports
from whybox_client.batches import AsyncBatches, Batches
from whybox_client.errors import ConnectionFailedError, DeadlineExceededError, WhyboxError
from whybox_client.jobs import AsyncJobs, Jobs
from whybox_client.retrying import Send, Wait
from whybox_client.transports.credentials import Credentials, FilePath
from whybox_client.transports.lines import HungUpError, Line
from whybox_client.wire import Call, Flow, Reply, Streaming

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_Sender: TypeAlias = Callable[[Call, float, Line], Reply]
_AsyncSender: TypeAlias = Callable[[Call, float], Awaitable[Reply]]


def _blocking(flow: Callable[P, Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(flow(*args, **kwargs), Line())

    return _introduce(method, flow)


def _awaited(flow: Callable[P, Flow[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(flow(*args, **kwargs))

    return _introduce(method, flow)


def _iterated(
    flow: Callable[P, Streaming[T]],
) -> Callable[Concatenate[Client, P], Generator[T, None, None]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        return self._stream(flow(*args, **kwargs))

    return _introduce(method, flow)


def _awaited_one_by_one(
    flow: Callable[P, Streaming[T]],
) -> Callable[Concatenate[AsyncClient, P], AsyncGenerator[T, None]]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        return self._stream(flow(*args, **kwargs))

    return _introduce(method, flow)


def _introduce(method: F, flow: Callable[..., Any]) -> F:
    """Give a method the name, docstring and signature of its flow, so that `help` tells the truth."""
    signature = inspect.signature(flow)
    method.__name__ = flow.__name__
    method.__doc__ = flow.__doc__
    result = str(signature.return_annotation).replace("Streaming[", "Iterator[")
    if result.startswith("Flow["):
        result = result.removeprefix("Flow[").removesuffix("]")
    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[myself, *signature.parameters.values()], return_annotation=result
    )
    return method


def _answered(reply: Reply | None, call: Call) -> Reply:
    """Return a reply of a stream, which does not end before its result."""
    if reply is None:
        raise ConnectionFailedError("the stream ended before its result", request_id=call.request_id)
    return reply


class _Common:
    def __init__(self, url: str, timeout: float, retries: int) -> None:
        self.url = url
        self.timeout = retrying.positive(timeout)
        self.retries = retrying.not_negative(retries)
        self._backoff = retrying.Backoff()
        self._closed = False

    def _steps(self, flow: Flow[T]) -> retrying.Steps[T]:
        return retrying.persist(flow, self.timeout, self.retries, self._backoff)

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Say of a call that fails because the client is closed that this is why."""
        if self._closed:
            raise RuntimeError("the client is closed")
        try:
            yield
        except (HungUpError, WhyboxError):
            if self._closed:
                raise RuntimeError("the client was closed during the call") from None
            raise

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, timeout={self.timeout:g})"


class Client(_Common, Batches, Jobs):
    """A client that waits for its answers. It may be shared by threads.

    Args:
        url: ``http://host:8000`` for REST, ``grpc://host:8001`` for gRPC; ``https://`` and ``grpcs://`` with
            TLS.
        api_key: key that the service asks for; None: that of the environment variable ``WHYBOX_API_KEY``, if
            there is one. It is sent over plain HTTP and gRPC too: use those where the way is private.
        ca: PEM file of the authorities that the service's certificate must come from; None: the system's.
        certificate: PEM files of the client's own certificate and private key, where the service asks for
            one.
        timeout: seconds until an answer is of no use, for calls that say nothing else: all attempts, and the
            waits between them. The service is told.
        retries: how often a call is asked again that says nothing else, where that is safe and can help.

    Raises:
        ValueError: for a URL that names neither, or a number, a key or a certificate that cannot be.
    """

    def __init__(
        self,
        url: str = defaults.URL,
        *,
        api_key: str | None = None,
        ca: FilePath | None = None,
        certificate: tuple[FilePath, FilePath] | None = None,
        timeout: float = defaults.TIMEOUT,
        retries: int = defaults.RETRIES,
    ) -> None:
        super().__init__(url, timeout, retries)
        self._transport = transports.connect(url, Credentials.of(url, api_key, ca, certificate))

    models = _blocking(flows.models)
    model = _blocking(flows.model)
    detect = _blocking(flows.detect)
    explain = _blocking(flows.explain)
    explain_stream = _iterated(flows.explain_stream)
    evaluate = _blocking(flows.evaluate)
    ready = _blocking(flows.ready)

    def _run(self, flow: Flow[T], line: Line, send: _Sender | None = None) -> T:
        """Take a flow's steps, one after the other; whoever has the line can end that."""
        steps = self._steps(flow)
        try:
            step = next(steps)
            while True:
                try:
                    reply = self._take(step, line, send or self._send)
                except WhyboxError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    def _take(self, step: Send | Wait, line: Line, send: _Sender) -> Reply | None:
        if isinstance(step, Wait):
            line.pause(step.seconds)
            return None
        with self._open():
            return send(step.call, step.seconds, line)

    def _send(self, call: Call, seconds: float, line: Line) -> Reply:
        if not call.operation.streams:
            return self._transport.send(call, seconds, line)
        with closing(self._transport.stream(call, seconds, line)) as replies:
            return _answered(next(replies, None), call)

    def _stream(self, streaming: Streaming[T]) -> Generator[T, None, None]:
        """Yield the results of a call as its replies come; where it breaks, go on if that can be."""
        line = Line()
        resuming = retrying.Resuming(streaming, self._backoff)
        while True:
            try:
                reply, opened = self._opened(resuming.call, line)
            except DeadlineExceededError as error:
                line.pause(resuming.seconds(error))
                continue
            with closing(opened) as replies:
                while True:
                    result = streaming.read(reply)
                    yield result
                    if streaming.complete(result):
                        return
                    try:
                        with self._open():
                            reply = _answered(next(replies, None), resuming.call)
                    except WhyboxError as error:
                        wait = resuming.seconds(error, result)
                        break
            line.pause(wait)

    def _opened(self, call: Call, line: Line) -> tuple[Reply, Generator[Reply, None, None]]:
        """Return the first reply of a stream, and the others."""
        opened: list[Generator[Reply, None, None]] = []

        def first(call: Call, seconds: float, line: Line) -> Reply:
            replies = self._transport.stream(call, seconds, line)
            reply = next(replies, None)
            opened.append(replies)
            return _answered(reply, call)

        reply = self._run(flows.once(call), line, first)
        return reply, opened[-1]

    def close(self) -> None:
        """Close the connections; calls that other threads wait for end with a `RuntimeError`."""
        self._closed = True
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient(_Common, AsyncBatches, AsyncJobs):
    """The same client for asyncio: every method is awaited. It belongs to one event loop.

    Args:
        url: ``http://host:8000`` for REST, ``grpc://host:8001`` for gRPC; ``https://`` and ``grpcs://`` with
            TLS.
        api_key: key that the service asks for; None: that of the environment variable ``WHYBOX_API_KEY``, if
            there is one. It is sent over plain HTTP and gRPC too: use those where the way is private.
        ca: PEM file of the authorities that the service's certificate must come from; None: the system's.
        certificate: PEM files of the client's own certificate and private key, where the service asks for
            one.
        timeout: seconds until an answer is of no use, for calls that say nothing else: all attempts, and the
            waits between them. The service is told.
        retries: how often a call is asked again that says nothing else, where that is safe and can help.

    Raises:
        ValueError: for a URL that names neither, or a number, a key or a certificate that cannot be.
    """

    def __init__(
        self,
        url: str = defaults.URL,
        *,
        api_key: str | None = None,
        ca: FilePath | None = None,
        certificate: tuple[FilePath, FilePath] | None = None,
        timeout: float = defaults.TIMEOUT,
        retries: int = defaults.RETRIES,
    ) -> None:
        super().__init__(url, timeout, retries)
        self._transport = transports.connect_async(url, Credentials.of(url, api_key, ca, certificate))

    models = _awaited(flows.models)
    model = _awaited(flows.model)
    detect = _awaited(flows.detect)
    explain = _awaited(flows.explain)
    explain_stream = _awaited_one_by_one(flows.explain_stream)
    evaluate = _awaited(flows.evaluate)
    ready = _awaited(flows.ready)

    async def _run(self, flow: Flow[T], send: _AsyncSender | None = None) -> T:
        """Take a flow's steps, one after the other."""
        steps = self._steps(flow)
        try:
            step = next(steps)
            while True:
                try:
                    reply = await self._take(step, send or self._send)
                except WhyboxError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _take(self, step: Send | Wait, send: _AsyncSender) -> Reply | None:
        if isinstance(step, Wait):
            await asyncio.sleep(step.seconds)
            return None
        with self._open():
            return await send(step.call, step.seconds)

    async def _send(self, call: Call, seconds: float) -> Reply:
        if not call.operation.streams:
            return await self._transport.send(call, seconds)
        async with aclosing(self._transport.stream(call, seconds)) as replies:
            return _answered(await anext(replies, None), call)

    async def _stream(self, streaming: Streaming[T]) -> AsyncGenerator[T, None]:
        """Yield the results of a call as its replies come; where it breaks, go on if that can be."""
        resuming = retrying.Resuming(streaming, self._backoff)
        while True:
            try:
                reply, opened = await self._opened(resuming.call)
            except DeadlineExceededError as error:
                await asyncio.sleep(resuming.seconds(error))
                continue
            async with aclosing(opened) as replies:
                while True:
                    result = streaming.read(reply)
                    yield result
                    if streaming.complete(result):
                        return
                    try:
                        with self._open():
                            reply = _answered(await anext(replies, None), resuming.call)
                    except WhyboxError as error:
                        wait = resuming.seconds(error, result)
                        break
            await asyncio.sleep(wait)

    async def _opened(self, call: Call) -> tuple[Reply, AsyncGenerator[Reply, None]]:
        """Return the first reply of a stream, and the others."""
        opened: list[AsyncGenerator[Reply, None]] = []

        async def first(call: Call, seconds: float) -> Reply:
            replies = self._transport.stream(call, seconds)
            reply = await anext(replies, None)
            opened.append(replies)
            return _answered(reply, call)

        reply = await self._run(flows.once(call), first)
        return reply, opened[-1]

    async def aclose(self) -> None:
        """Close the connections; calls that are awaited meanwhile end with a `RuntimeError`."""
        self._closed = True
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
