"""Runs a command so that nothing of it outlives whoever started the guard, however that one ends.

The starter holds the other end of the guard's standard input. When it closes, because the starter wants so
or because it was killed, the guard stops the command politely, then kills all that the command has started.
SIGTERM to the guard skips the politeness. A command that ends by itself is followed by all that it has
started, and by the guard. Knows nothing of whybox, and imports little.

    python -m whybox_service.guard GRACE_SECONDS REMOVE_DIR COMMAND…
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from whybox_service.processes import kill_children
from whybox_service.signals import Waiter, waiting_for

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status.

    `REMOVE_DIR` (may be empty) is gone afterwards where the starter wanted the end, or ended: nobody else
    may be left to remove it. Where the command ended by itself it stays.
    """
    grace, directory, *command = arguments
    die_with_parent = _adopt_orphans()
    with waiting_for(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as waiter:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=die_with_parent
        )
        statuses: dict[int, int] = {}
        came: set[int] = set()
        closed: set[int] = set()
        while child.pid not in statuses and not closed and signal.SIGTERM not in came:
            came, closed = waiter.wait(descriptors=[sys.stdin.fileno()])
            _reap(statuses)
        if closed and child.pid not in statuses:
            os.kill(child.pid, signal.SIGTERM)
            _wait(waiter, time.monotonic() + float(grace), lambda: child.pid in statuses, statuses)
        _kill_rest(child.pid, waiter, statuses)
    if directory and closed:
        shutil.rmtree(directory, ignore_errors=True)
    child.returncode = os.waitstatus_to_exitcode(statuses.get(child.pid, 1 << 8))
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _adopt_orphans() -> Callable[[], None] | None:
    """Become the parent of all orphans below; return what makes the command die with the guard (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _reap(statuses: dict[int, int]) -> bool:
    """Collect the children that have ended; return whether any is left."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if not pid:
            return True
        statuses[pid] = status


def _wait(waiter: Waiter, until: float, done: Callable[[], bool], statuses: dict[int, int]) -> None:
    """Reap until `done`, the moment `until`, or an impatient SIGTERM."""
    while not done() and (left := until - time.monotonic()) > 0:
        came, _ = waiter.wait(left)
        _reap(statuses)
        if signal.SIGTERM in came:
            return


def _kill_rest(group: int, waiter: Waiter, statuses: dict[int, int]) -> None:
    """Kill all that the command has started, and wait until none of it is left.

    Orphans become children of the guard, so killing those again and again reaches what has left the group.
    """
    while True:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        kill_children()
        if not _reap(statuses):
            return
        waiter.wait(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
