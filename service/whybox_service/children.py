"""Processes that are started behind a guard, so that nothing of them is ever left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from whybox_service.processes import kill_session
from whybox_service.signals import Waiter

STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
# A guard that has not ended so long after its child's grace hangs itself.
_GUARD_PATIENCE_SECONDS = 10.0
_KILL_PATIENCE_SECONDS = 5.0


class Child:
    """A guarded process.

    Args:
        command: what to run.
        environment: all of its environment.
        grace: seconds that it has to end after it was asked to.
        directory: what the guard removes should this process end first.
        output: where standard output and error go; None: where this process's go.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        grace: float,
        directory: Path,
        output: TextIO | None = None,
    ) -> None:
        self._grace = grace
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "whybox_service.guard", str(grace), str(directory), *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self._guard.poll() is not None

    @property
    def how_it_ended(self) -> str:
        """Its exit status, or the signal that ended it."""
        status = self._guard.returncode
        number = -status if status < 0 else status - 128
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"exit status {status}"

    def bury(self) -> None:
        """Clear up after it has ended; where the guard was killed itself, kill what it guarded."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        kill_session(self._guard.pid, _KILL_PATIENCE_SECONDS)

    def kill(self) -> None:
        """End it and all that it has started, without asking; returns before that has happened."""
        self._guard.terminate()

    def stop(self, waiter: Waiter) -> None:
        """Let it finish what it does, for its grace; a signal meanwhile ends it at once."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        until = time.monotonic() + self._grace + _GUARD_PATIENCE_SECONDS
        while not self.ended:
            came, _ = waiter.wait(1.0)
            if came & STOP_SIGNALS:
                self._guard.terminate()
            if time.monotonic() > until:
                self._guard.kill()
        kill_session(self._guard.pid, _KILL_PATIENCE_SECONDS)
