"""One request on its way through the gateway: its id and the moment after which nobody waits for it."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from whybox_proto.errors import ContractError, shorten

MAX_REQUEST_ID = 128


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that lies `seconds` ahead."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Return the seconds left; negative once it has passed."""
        return self.at - time.monotonic()

    def epoch(self) -> float:
        """Return the same moment in seconds since the epoch, as it travels to the worker."""
        return time.time() + self.remaining()

    def check(self) -> None:
        """Raise `deadline_exceeded` once the moment has passed."""
        if self.remaining() <= 0:
            raise _late()

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """Cancel the block at the deadline and raise `deadline_exceeded`."""
        scope = asyncio.timeout(self.remaining())
        try:
            async with scope:
                yield
        except TimeoutError:
            if scope.expired():
                raise _late() from None
            raise


@dataclass(frozen=True)
class Call:
    """What travels beside a request, whichever transport it came by.

    Attributes:
        request_id: as the client knows it.
        deadline: after which nobody waits for the answer.
        key: name of the API key that it came with; empty where keys are off.
    """

    request_id: str
    deadline: Deadline
    key: str = ""


def new_request_id() -> str:
    """Make an id for a request that brought none."""
    return uuid.uuid4().hex


def check_request_id(given: str, field: str) -> str:
    """Check an id that a client chose: 1 to 128 printable ASCII characters."""
    if 0 < len(given) <= MAX_REQUEST_ID and all(" " <= c <= "~" for c in given):
        return given
    raise ContractError(
        "invalid_argument",
        "the request id cannot be used",
        field=field,
        expected=f"1 to {MAX_REQUEST_ID} printable ASCII characters",
        got=shorten(ascii(given)[1:-1]),
    )


def check_timeout(given: str, field: str) -> float:
    """Check a client's own time limit: a finite number of seconds above 0."""
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if math.isfinite(seconds) and seconds > 0:
        return seconds
    raise ContractError(
        "invalid_argument",
        "the time limit cannot be used",
        field=field,
        expected="a number of seconds above 0",
        got=shorten(given),
    )


def _late() -> ContractError:
    return ContractError("deadline_exceeded", "the answer was not ready before the request's deadline")
