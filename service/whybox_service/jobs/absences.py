"""Since when a model, or a version of it, has not been there.

Kept for all jobs together: each that begins after the first one need not wait as long as that one did.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Absences:
    """Of models and versions.

    Args:
        memory: seconds after which an absence that nobody has met again is forgotten.
        clock: tells seconds.
    """

    def __init__(self, memory: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._memory = memory
        self._clock = clock
        # When each was first met, and when last.
        self._met: dict[tuple[str, str], tuple[float, float]] = {}

    def of(self, model: str, version: str) -> float:
        """Say that it is not there; returns for how many seconds this has been so."""
        now = self._clock()
        first, last = self._met.get((model, version), (now, now))
        if now - last > self._memory:
            first = now
        self._met[model, version] = first, now
        return now - first

    def end(self, model: str, version: str) -> None:
        """Say that it is there, or that nothing is known of it: what does not answer may have it."""
        self._met.pop((model, version), None)
