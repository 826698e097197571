"""Since when something that jobs need has not been there: a model, a version of it, a replica.

Kept for all jobs together: each that begins after the first one need not wait as long as that one did.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Absences:
    """Of what is told apart by its names.

    Args:
        memory: seconds after which an absence that nobody has met again is forgotten.
        clock: tells seconds.
    """

    def __init__(self, memory: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._memory = memory
        self._clock = clock
        # When each was first met, and when last.
        self._met: dict[tuple[str, ...], tuple[float, float]] = {}

    def of(self, *what: str) -> float:
        """Say that it is not there; returns for how many seconds this has been so."""
        now = self._clock()
        first, last = self._met.get(what, (now, now))
        if now - last > self._memory:
            first = now
        self._met[what] = first, now
        return now - first

    def end(self, *what: str) -> None:
        """Say that it is there, or that nothing is known of it: what does not answer may have it."""
        self._met.pop(what, None)
