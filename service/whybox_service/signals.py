"""Waiting for signals and for file descriptors in one place."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Waiter:
    """Wakes when a signal arrives or a descriptor can be read; made by `waiting_for`."""

    def __init__(self, wakeup: int) -> None:
        self._wakeup = wakeup

    def wait(
        self, timeout: float | None = None, descriptors: Iterable[int] = ()
    ) -> tuple[set[int], set[int]]:
        """Wait for something to happen, at most `timeout` seconds.

        Returns:
            the numbers of the signals that came, and the descriptors that can be read.
        """
        ready, _, _ = select.select([self._wakeup, *descriptors], [], [], timeout)
        came = set(os.read(self._wakeup, 4096)) if self._wakeup in ready else set()
        return came, set(ready) - {self._wakeup}


@contextmanager
def waiting_for(*numbers: signal.Signals) -> Iterator[Waiter]:
    """Take some signals over while the block lasts; only in the main thread."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    previous_wakeup = signal.set_wakeup_fd(writing)
    previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield Waiter(reading)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_wakeup)
        os.close(reading)
        os.close(writing)
