"""When a process that ended by itself is started again, and when no more."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30.0
WELL_SECONDS = 60.0
WINDOW_SECONDS = 600.0
MAX_RESTARTS = 10


class Restarts:
    """The restarts of one process.

    The first comes after half a second, each further one after twice as long, half a minute at most. A
    process that ran for a minute counts as well again. One that would need more than `limit` restarts in ten
    minutes is given up.

    Args:
        limit: restarts within ten minutes; 0: none at all.
        clock: seconds on a monotonic clock.
    """

    def __init__(self, limit: int = MAX_RESTARTS, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._delay = FIRST_DELAY_SECONDS
        self._started = clock()
        self._ends: deque[float] = deque()

    def started(self) -> None:
        """Note that the process was started."""
        self._started = self._clock()

    def ended(self) -> float | None:
        """Note that the process ended; return the seconds before the next start, or None to give it up."""
        now = self._clock()
        if now - self._started >= WELL_SECONDS:
            self._delay = FIRST_DELAY_SECONDS
        self._ends.append(now)
        while self._ends[0] <= now - WINDOW_SECONDS:
            self._ends.popleft()
        if len(self._ends) > self._limit:
            return None
        delay = self._delay
        self._delay = min(2 * delay, LONGEST_DELAY_SECONDS)
        return delay
