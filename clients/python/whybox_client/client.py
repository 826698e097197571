"""The two clients: one waits, one is awaited. What they do is in `whybox_client.flows`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from whybox_client import defaults, flows, retrying, transports
from whybox_client.batches import AsyncBatches, Batches
from whybox_client.errors import WhyboxError
from whybox_client.retrying import Send, Wait
from whybox_client.transports.credentials import Credentials, FilePath
from whybox_client.transports.lines import HungUpError, Line
from whybox_client.wire import Flow, Reply

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def _blocking(flow: Callable[P, Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(flow(*args, **kwargs), Line())

    return _introduce(method, flow)


def _awaited(flow: Callable[P, Flow[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(flow(*args, **kwargs))

    return _introduce(method, flow)


def _introduce(method: F, flow: Callable[..., Any]) -> F:
    """Give a method the name, docstring and signature of its flow, so that `help` tells the truth."""
    signature = inspect.signature(flow)
    method.__name__ = flow.__name__
    method.__doc__ = flow.__doc__
    result = str(signature.return_annotation).removeprefix("Flow[").removesuffix("]")
    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[myself, *signature.parameters.values()], return_annotation=result
    )
    return method


class _Common:
    def __init__(self, url: str, timeout: float, retries: int) -> None:
        self.url = url
        self.timeout = retrying.positive(timeout)
        self.retries = retrying.not_negative(retries)
        self._backoff = retrying.Backoff()
        self._closed = False

    def _steps(self, flow: Flow[T]) -> retrying.Steps[T]:
        return retrying.persist(flow, self.timeout, self.retries, self._backoff)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, timeout={self.timeout:g})"


class Client(_Common, Batches):
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
    ready = _blocking(flows.ready)

    def _run(self, flow: Flow[T], line: Line) -> T:
        """Take a flow's steps, one after the other; whoever has the line can end that."""
        steps = self._steps(flow)
        try:
            step = next(steps)
            while True:
                try:
                    reply = self._take(step, line)
                except WhyboxError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    def _take(self, step: Send | Wait, line: Line) -> Reply | None:
        if isinstance(step, Wait):
            line.pause(step.seconds)
            return None
        if self._closed:
            raise RuntimeError("the client is closed")
        try:
            return self._transport.send(step.call, step.seconds, line)
        except (HungUpError, WhyboxError):
            if self._closed:
                raise RuntimeError("the client was closed during the call") from None
            raise

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


class AsyncClient(_Common, AsyncBatches):
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
    ready = _awaited(flows.ready)

    async def _run(self, flow: Flow[T]) -> T:
        """Take a flow's steps, one after the other."""
        steps = self._steps(flow)
        try:
            step = next(steps)
            while True:
                try:
                    reply = await self._take(step)
                except WhyboxError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _take(self, step: Send | Wait) -> Reply | None:
        if isinstance(step, Wait):
            await asyncio.sleep(step.seconds)
            return None
        if self._closed:
            raise RuntimeError("the client is closed")
        try:
            return await self._transport.send(step.call, step.seconds)
        except WhyboxError:
            if self._closed:
                raise RuntimeError("the client was closed during the call") from None
            raise

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
