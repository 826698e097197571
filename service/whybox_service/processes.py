"""The processes of this machine, as Linux's /proc tells of them; elsewhere there seem to be none."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

_PAUSE_SECONDS = 0.05


class Entry(NamedTuple):
    """A process that still runs."""

    pid: int
    parent: int
    session: int


def running() -> Iterator[Entry]:
    """List what runs; those that have ended and wait to be collected are left out."""
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # The program's name, in parentheses, may hold anything.
                state, parent, _, session = file.read().rpartition(b")")[2].split()[:4]
                if state not in b"ZX":
                    yield Entry(int(name), int(parent), int(session))


def begin_of(pid: int) -> int:
    """Return when a process began, in ticks since the machine did; 0 where there is none that runs.

    Raises:
        OSError: where that cannot be told, for want of open files, say.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends between opening and reading
        return 0
    return 0 if fields[0] in b"ZX" else int(fields[19])


def space() -> str:
    """Name what process ids belong to here: the machine since its start, the namespace; empty if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def kill_children() -> None:
    """Kill this process's own children, whatever group or session they have gone to."""
    own = os.getpid()
    for entry in running():
        if entry.parent == own:
            _kill(entry.pid)


def kill_session(session: int, patience_seconds: float) -> None:
    """Kill all of a session, and wait, so long at most, until none of it runs."""
    until = time.monotonic() + patience_seconds
    while members := [entry.pid for entry in running() if entry.session == session]:
        for pid in members:
            _kill(pid)
        if time.monotonic() > until:
            return
        time.sleep(_PAUSE_SECONDS)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
