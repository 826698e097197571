"""How many requests a model gets at one time, how many may wait, and who is refused at once.

A request waits here and not in TorchServe, which could neither drop it when its client leaves nor refuse
it before its turn.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from whybox_proto.errors import ContractError
from whybox_service.calls import Deadline

# Batches in hand for each worker: one that it works on, and the next one, which fills meanwhile.
BATCHES_IN_HAND = 2
# Weight of the latest interval in the running mean of seconds between two answers.
_LATEST = 0.2
_LONGEST_ADVICE_SECONDS = 60.0

Report = Callable[[int, int], None]
"""Told the requests that are with the workers, and those that wait."""


class Lane:
    """The way to one model's workers.

    Args:
        name: of the model.
        slots: requests that may be with the workers at one time.
        max_waiting: requests that may wait for a slot.
        report: told after each change.
    """

    def __init__(self, name: str, slots: int, max_waiting: int, report: Report) -> None:
        self._name = name
        self._slots = slots
        self._max_waiting = max_waiting
        self._report = report
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        # Seconds between two answers while every slot is taken; 0 as long as they have not been. It is
        # measured also when nobody waits: a pace that lets nobody wait any more must be able to mend.
        self._interval = 0.0
        # Since when every slot has been taken, or the moment of the last answer since then.
        self._full_since: float | None = None

    def resize(self, slots: int) -> None:
        """Change the number of slots; requests under way are not touched."""
        self._slots = max(1, slots)
        self._admit()

    def check(self) -> None:
        """Raise `overloaded` where `enter` would at once; for callers with costly work before that.

        Raises:
            ContractError: `overloaded`.
        """
        if self._running >= self._slots and len(self._waiting) >= self._max_waiting:
            raise self._full()

    async def enter(self, deadline: Deadline, *, admitted: bool = False) -> None:
        """Take a slot, or wait for one in turn; who got one must `leave`.

        Args:
            deadline: until when to wait.
            admitted: it is a further part of a request that was let in, and is not refused.

        Raises:
            ContractError: `overloaded` at once where too many wait, or where the turn would come after the
                deadline; `deadline_exceeded`.
        """
        if not admitted:
            self.check()
        if self._running < self._slots and not self._waiting:
            self._running += 1
            self._changed()
            return
        if not admitted and self._expected_wait() > deadline.remaining():
            raise self._full("would not be answered before the request's deadline")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._changed()
        try:
            async with deadline.limit():
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._running -= 1  # the turn came in the same moment
            elif turn in self._waiting:
                self._waiting.remove(turn)
            self._admit()
            raise

    def leave(self) -> None:
        """Give the slot back."""
        if self._full_since is not None:
            latest = time.monotonic() - self._full_since
            self._interval += (latest - self._interval) * (_LATEST if self._interval else 1.0)
            self._full_since = None
        self._running -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._running < self._slots:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._running += 1
        self._changed()

    def _changed(self) -> None:
        if self._running < self._slots:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = time.monotonic()
        self._report(self._running, len(self._waiting))

    def _expected_wait(self) -> float:
        return (len(self._waiting) + 1) * self._interval

    def _full(self, why: str = "is refused: too many wait already") -> ContractError:
        return ContractError(
            "overloaded",
            f"the model {self._name!r} has all it can do; the request {why}",
            expected=f"at most {self._slots} requests with its workers and {self._max_waiting} waiting",
            got=f"{self._running} and {len(self._waiting)}",
            retry_after=round(min(max(1.0, self._expected_wait()), _LONGEST_ADVICE_SECONDS), 1),
        )


class Admission:
    """The lanes of all models, one for each version.

    Args:
        max_waiting: requests that may wait for each.
        report: told a model's name, and as `Report` for all of its versions together.
    """

    def __init__(self, max_waiting: int, report: Callable[[str, int, int], None]) -> None:
        self._max_waiting = max_waiting
        self._report = report
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._loads: dict[str, dict[str, tuple[int, int]]] = {}

    def lane(self, model: str, version: str) -> Lane:
        """Return the lane of a version of a model that is served."""
        if (lane := self._lanes.get((model, version))) is None:

            def report(running: int, waiting: int) -> None:
                loads = self._loads.setdefault(model, {})
                loads[version] = running, waiting
                self._report(model, sum(r for r, _ in loads.values()), sum(w for _, w in loads.values()))

            lane = Lane(model, BATCHES_IN_HAND, self._max_waiting, report)
            self._lanes[model, version] = lane
        return lane
