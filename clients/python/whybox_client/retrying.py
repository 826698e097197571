"""When a client asks again by itself, how long it waits first, and where it stops.

Sans-IO, as the flows are: `persist` runs a flow's calls and yields what a client has to do, to send or to
wait. The client does it, and knows nothing of retries.

What a flow may take, all calls, attempts and waits together, is its timeout. Each attempt gets what is
left of it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from whybox_client import errors
from whybox_client.wire import Call, Flow, Reply, Streaming

T = TypeVar("T")

#: What may be over in a moment. Not `DeadlineExceededError`: the time is used up, and the same work would
#: take as long again.
PASSING = (
    errors.OverloadedError,
    errors.UnavailableError,
    errors.RequestTimeoutError,
    errors.ConnectionFailedError,
)
_FIRST_S = 0.5
_LONGEST_S = 8.0
# What an attempt gets where nothing is left; the service, or the transport, says so.
_SHORTEST_S = 0.001


@dataclass(frozen=True)
class Send:
    """Send the call, and wait for its reply at most so many seconds."""

    call: Call
    seconds: float


@dataclass(frozen=True)
class Wait:
    """Do nothing for so many seconds."""

    seconds: float


#: Yields steps; receives the reply to a `Send` (or has its `WhyboxError` thrown in), None after a `Wait`.
Steps: TypeAlias = Generator[Send | Wait, Reply | None, T]


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with full jitter: before retry n any time up to ``0.5 · 2ⁿ`` s, at most 8 s.

    Where the service says when to ask again, that is waited for first, and the jitter comes on top: so those
    who were turned away together do not come back together.

    Attributes:
        uniform: draws a number between two.
        clock: seconds, ever rising.
    """

    uniform: Callable[[float, float], float] = random.uniform
    clock: Callable[[], float] = time.monotonic

    def seconds(self, error: errors.WhyboxError, retry: int) -> float:
        """Return how long to wait before retry number `retry`, counted from 0."""
        longest = min(_LONGEST_S, _FIRST_S * 2 ** min(retry, 10))
        return (error.retry_after or 0.0) + self.uniform(0.0, longest)


class Resuming(Generic[T]):
    """Where a stream goes on that broke, and when.

    Attributes:
        call: that opens the stream, anew after a break.
    """

    def __init__(self, streaming: Streaming[T], backoff: Backoff) -> None:
        self.call = streaming.call
        self._streaming = streaming
        self._backoff = backoff
        self._breaks = 0
        self._last: T | None = None

    def seconds(self, error: errors.WhyboxError, last: T | None = None) -> float:
        """Set the call that goes on, and return how long to wait before it.

        The wait grows from break to break while nothing comes between them.

        Args:
            error: what broke the stream, or kept it from being opened anew.
            last: the last result since it was opened; None: there was none.

        Raises:
            WhyboxError: if the stream cannot go on.
        """
        self._breaks = self._breaks + 1 if last in (None, self._last) else 0
        self._last = self._last if last is None else last
        if self._streaming.resume is None or self._last is None:
            raise error
        self.call = self._streaming.resume(self._last, error)
        return self._backoff.seconds(error, self._breaks)


def persist(flow: Flow[T], timeout: float, retries: int, backoff: Backoff) -> Steps[T]:
    """Run a flow, with its calls asked again where that is safe and can help.

    Args:
        flow: what is to be done.
        timeout: seconds for all its calls together, besides the work that the first asks for, if that says
            nothing else.
        retries: how often a call is asked again that says nothing else.
        backoff: draws the waits.

    Raises:
        ValueError: for a timeout or a number of retries that a call cannot have.
        WhyboxError: of the last attempt.
    """
    try:
        call = next(flow)
        left = positive(timeout + call.work if call.timeout is None else call.timeout)
        left = min(left, call.lasting or left)
        deadline = backoff.clock() + left
        while True:
            try:
                reply = yield from _attempts(call, left, deadline, retries, backoff)
            except errors.WhyboxError as error:
                call = flow.throw(error)
            else:
                call = flow.send(reply)
            left = max(deadline - backoff.clock(), _SHORTEST_S)
    except StopIteration as end:
        result: T = end.value
        return result


def _attempts(call: Call, left: float, deadline: float, retries: int, backoff: Backoff) -> Steps[Reply]:
    retries = not_negative(retries if call.retries is None else call.retries)
    retry = 0
    while True:
        try:
            reply = yield Send(call, call.lasting or left)
        except PASSING as error:
            if retry >= retries or not call.operation.safe:
                raise
            wait = backoff.seconds(error, retry)
            if wait >= deadline - backoff.clock():
                raise
        else:
            if reply is None:
                raise TypeError("a reply is sent in after a Send")
            return reply
        yield Wait(wait)
        left = max(deadline - backoff.clock(), _SHORTEST_S)
        retry += 1


def positive(timeout: float) -> float:
    """Return a timeout that is one.

    Raises:
        ValueError: if it is not above 0, or has no end.
    """
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout is a number of seconds above 0; got {timeout}")
    return timeout


def not_negative(retries: int) -> int:
    """Return a number of retries that is one.

    Raises:
        ValueError: if it is below 0.
    """
    if retries < 0:
        raise ValueError(f"retries is a number from 0; got {retries}")
    return retries
