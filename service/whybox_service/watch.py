"""Files that may be changed under a running service."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

#: How long a change may go unnoticed.
LOOK_SECONDS = 1.0

_Signature = tuple[tuple[int, int, int, int] | None, ...]


class Watch:
    """Tells when one of some files has changed, appeared or gone; looks at most once a second.

    A look is a `stat` of each file, links followed: microseconds, so that it may stand in a request's way.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = tuple(paths)
        self._seconds = seconds
        self._clock = clock
        self._seen = self._look()
        self._next = clock() + seconds

    def changed(self) -> bool:
        """Return whether a file is another one than at the last look that said so, or at the start."""
        if self._clock() < self._next:
            return False
        self._next = self._clock() + self._seconds
        now = self._look()
        if now == self._seen:
            return False
        self._seen = now
        return True

    def _look(self) -> _Signature:
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
