"""Looking at something again and again in a thread of its own, so that nobody has to wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

MISSES = 3
# Seconds between two looks at a server that has not answered yet.
STARTING_SECONDS = 0.5


class Repeating:
    """Does something at once, and again and again until it is stopped, in a thread of its own.

    Args:
        act: what to do; returns the seconds until the next time, and must not raise.
    """

    def __init__(self, act: Callable[[], float]) -> None:
        self._act = act
        self._stop = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Do it no more; what is being done now may end a little later."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._act()):
            pass


class Heartbeat:
    """Whether a server still answers: it is silent once it has left three looks in a row without an answer.

    Looks are counted, not seconds, so that nothing is silent only because this process, or the whole machine,
    stood still for a while. A server that has not answered yet is not silent but starting.

    Args:
        look: says whether the server answers within the seconds that it is given.
        seconds: from the first of three misses to the end of the last, at most.
    """

    def __init__(self, look: Callable[[float], bool], seconds: float) -> None:
        self._look = look
        self._pause = seconds / (2 * MISSES)
        self._misses: int | None = None
        self._repeating = Repeating(self._beat)

    def stop(self) -> None:
        """Look no more."""
        self._repeating.stop()

    @property
    def answered(self) -> bool:
        """Whether it has ever answered."""
        return self._misses is not None

    @property
    def silent(self) -> bool:
        """Whether it has answered once, and answers no more."""
        return self._misses is not None and self._misses >= MISSES

    def _beat(self) -> float:
        if self._look(self._pause):
            self._misses = 0
        elif self._misses is not None:
            self._misses += 1
        return self._pause if self.answered else min(self._pause, STARTING_SECONDS)
