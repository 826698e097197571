"""The two clients: one waits, one is awaited. What they do is in `whybox_client.flows`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from whybox_client import defaults, flows, transports
from whybox_client.errors import WhyboxError
from whybox_client.wire import Call, Flow

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def _blocking(flow: Callable[P, Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        steps = flow(*args, **kwargs)
        try:
            call = next(steps)
            while True:
                try:
                    reply = self._transport.send(call, self._seconds(call))
                except WhyboxError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    return _introduce(method, flow)


def _awaited(flow: Callable[P, Flow[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        steps = flow(*args, **kwargs)
        try:
            call = next(steps)
            while True:
                try:
                    reply = await self._transport.send(call, self._seconds(call))
                except WhyboxError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

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


def _positive(timeout: float) -> float:
    if not timeout > 0:
        raise ValueError(f"timeout is a number of seconds above 0; got {timeout}")
    return timeout


class _Common:
    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self.timeout = _positive(timeout)

    def _seconds(self, call: Call) -> float:
        return self.timeout if call.timeout is None else _positive(call.timeout)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, timeout={self.timeout:g})"


class Client(_Common):
    """A client that waits for its answers. It may be shared by threads.

    Args:
        url: ``http://host:8000`` or ``https://…`` for REST, ``grpc://host:8001`` for gRPC.
        timeout: seconds until an answer is of no use, for calls that say nothing else. The service is told.

    Raises:
        ValueError: for a URL that names neither.
    """

    def __init__(self, url: str = defaults.URL, *, timeout: float = defaults.TIMEOUT) -> None:
        super().__init__(url, timeout)
        self._transport = transports.connect(url)

    models = _blocking(flows.models)
    model = _blocking(flows.model)
    detect = _blocking(flows.detect)
    explain = _blocking(flows.explain)
    ready = _blocking(flows.ready)

    def close(self) -> None:
        """Close the connections."""
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


class AsyncClient(_Common):
    """The same client for asyncio: every method is awaited. It belongs to one event loop.

    Args:
        url: ``http://host:8000`` or ``https://…`` for REST, ``grpc://host:8001`` for gRPC.
        timeout: seconds until an answer is of no use, for calls that say nothing else. The service is told.

    Raises:
        ValueError: for a URL that names neither.
    """

    def __init__(self, url: str = defaults.URL, *, timeout: float = defaults.TIMEOUT) -> None:
        super().__init__(url, timeout)
        self._transport = transports.connect_async(url)

    models = _awaited(flows.models)
    model = _awaited(flows.model)
    detect = _awaited(flows.detect)
    explain = _awaited(flows.explain)
    ready = _awaited(flows.ready)

    async def aclose(self) -> None:
        """Close the connections."""
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
