"""What `whybox serve` keeps running: a process that is watched, and started again where it ends or hangs."""

from __future__ import annotations

import time
from collections.abc import Callable

from whybox_service.children import Child
from whybox_service.heartbeat import Heartbeat
from whybox_service.restarts import WINDOW_SECONDS, Restarts
from whybox_service.signals import Waiter

# What has not answered so long after its start hangs.
FIRST_ANSWER_SECONDS = 120.0


class ServeError(Exception):
    """The service cannot start or go on; the message says why."""


class Part:
    """TorchServe or the gateway: started, watched, and started again.

    Args:
        name: as it is called in messages.
        start: starts its process; OSError where it cannot be started now.
        look: says whether it answers within the seconds that it is given.
        restarts: whether and when it is started again.
        hung_seconds: how long it may leave every look unanswered.
        say: tells the operator what happened.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Child],
        look: Callable[[float], bool],
        restarts: Restarts,
        hung_seconds: float,
        say: Callable[[str], None],
    ) -> None:
        self.name = name
        self._start = start
        self._look = look
        self._restarts = restarts
        self._hung_seconds = hung_seconds
        self._say = say
        self._child: Child | None = None
        self._heartbeat: Heartbeat | None = None
        self._started = 0.0
        self._due = 0.0

    def start(self) -> None:
        """Start its process.

        Raises:
            OSError: where it cannot be started now.
        """
        self._started = time.monotonic()
        self._restarts.started()
        self._child = self._start()
        self._heartbeat = Heartbeat(self._look, self._hung_seconds)

    def check_start(self) -> None:
        """Raise `ServeError` where it has ended."""
        if self._child is not None and self._child.ended:
            raise ServeError(f"{self.name} did not start ({self._child.how_it_ended})")

    def tend(self) -> bool:
        """Start it again where it has ended, once its delay is over; kill it where it hangs.

        Returns:
            whether there was something to do.

        Raises:
            ServeError: where it has ended too often.
        """
        if self._child is None:
            if time.monotonic() < self._due:
                return False
            self._start_again()
        elif self._child.ended:
            how = self._child.how_it_ended
            self._forget_child()
            self._wait(f"{self.name} ended by itself ({how})")
        elif self._silent():
            self._say(f"{self.name} does not answer any more: it is killed")
            self._child.kill()
            self._stop_looking()
        else:
            return False
        return True

    def stop(self, waiter: Waiter) -> None:
        """Let it finish what it does, and end it."""
        if self._child is not None:
            self._stop_looking()
            self._child.stop(waiter)

    def _start_again(self) -> None:
        try:
            self.start()
        except OSError as error:
            self._wait(f"{self.name} cannot be started: {error.strerror or error}")
        else:
            self._say(f"{self.name} is started again")

    def _wait(self, what_happened: str) -> None:
        delay = self._restarts.ended()
        if delay is None:
            raise ServeError(
                f"{what_happened}; it was started again as often as may be within {WINDOW_SECONDS:g} s"
            )
        self._say(f"{what_happened}; it is started again in {delay:g} s")
        self._due = time.monotonic() + delay

    def _silent(self) -> bool:
        if self._heartbeat is None:
            return False
        if self._heartbeat.answered:
            return self._heartbeat.silent
        return time.monotonic() > self._started + FIRST_ANSWER_SECONDS

    def _stop_looking(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None

    def _forget_child(self) -> None:
        self._stop_looking()
        if self._child is not None:
            self._child.bury()
            self._child = None
