"""How one thread ends what another waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class HungUpError(Exception):
    """The waiting was ended from outside, or the client closed."""


class Line:
    """The calls that belong together: those of one method, or of one batch in several threads.

    `hang_up` calls off what is under way and ends the pauses; nothing can be started on the line afterwards.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._under_way: dict[object, Callable[[], object]] = {}

    @contextmanager
    def holding(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Call something off if the line hangs up while the block runs, or if the block is interrupted.

        Raises:
            HungUpError: if the line hung up before.
        """
        mark = object()
        with self._lock:
            over = self._over.is_set()
            if not over:
                self._under_way[mark] = cancel
        if over:
            cancel()
            raise HungUpError
        try:
            yield
        except BaseException:
            cancel()
            raise
        finally:
            with self._lock:
                self._under_way.pop(mark, None)

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            HungUpError: if the line hangs up meanwhile, or did before.
        """
        if self._over.wait(seconds):
            raise HungUpError

    def hang_up(self) -> None:
        """Call everything off."""
        with self._lock:
            self._over.set()
            cancels = list(self._under_way.values())
        for cancel in cancels:
            cancel()
