"""Checks of the machine: ports, disk, temporary files, memory."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from whybox_client.doctor.findings import Finding

MEBIBYTE = 1 << 20

_SHARED_MEMORY = Path("/dev/shm")
_SHARED_MEMORY_BYTES = 32 * MEBIBYTE
_MEMORY = Path("/proc/meminfo")
_OURSELVES = re.compile(r"\bwhybox_service\b|\bwhybox_client\b|\bwhybox serve\b")
_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")
# The name of the folder that `whybox serve` makes, and of a worker's socket in it, on top of the path's
# length: a Unix socket's path has at most 107 bytes.
_LONGEST_TEMPORARY = 60


def port(host: str, number: int) -> Iterator[Finding]:
    """Check that a port can be listened on."""
    name = f"port {number}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            yield Finding(name, "ok", f"free on {host}")
            return
    holder = _holder(number)
    if holder and _OURSELVES.search(holder):
        yield Finding(name, "ok", f"taken by whybox itself: {holder}")
        return
    by = f", by {holder}" if holder else ""
    yield Finding(
        name,
        "problem",
        f"cannot be listened on at {host}: {reason}{by}",
        "stop what has it, or choose another with --port and --grpc-port",
    )


def _holder(number: int) -> str | None:
    """Tell who listens on a port, where that can be seen."""
    try:
        import psutil

        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or getattr(connection.laddr, "port", None) != number:
                continue
            if connection.pid is None:
                return None
            command = " ".join(psutil.Process(connection.pid).cmdline())
            return f"process {connection.pid} ({command[:100]})"
    except Exception:  # not installed, or not allowed to look
        return None
    return None


def disk(folder: Path, wanted: int) -> Iterator[Finding]:
    """Check that there is room where the archives are."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    yield _room("disk", place, wanted, "make room: archives are built and unpacked")


def temporary(wanted: int) -> Iterator[Finding]:
    """Check that temporary files can be made, and that there is room for them."""
    try:
        place = Path(tempfile.gettempdir())
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"whybox")
    except OSError as error:
        yield Finding(
            "temporary files",
            "problem",
            f"none can be written: {error.strerror or error}",
            "set TMPDIR to a folder that can be written to",
        )
        return
    yield _room(
        "temporary files", place, wanted, "make room, or set TMPDIR: TorchServe unpacks archives there"
    )
    if len(os.fsencode(place)) > _LONGEST_TEMPORARY:
        yield Finding(
            "temporary files",
            "problem",
            f"the path {place} is too long for the workers' sockets",
            f"set TMPDIR to one of at most {_LONGEST_TEMPORARY} bytes",
        )
    if _SHARED_MEMORY.is_dir():
        yield _room(
            "shared memory", _SHARED_MEMORY, _SHARED_MEMORY_BYTES, "in a container: give it --shm-size=256m"
        )


def _room(name: str, place: Path, wanted: int, mend: str) -> Finding:
    free = shutil.disk_usage(place).free
    says = f"{free // MEBIBYTE:,} MiB free in {place}"
    if free >= wanted:
        return Finding(name, "ok", says)
    return Finding(
        name,
        "problem" if free < wanted / 8 else "warning",
        f"{says}; {wanted // MEBIBYTE:,} are wanted",
        mend,
    )


def memory(wanted: int) -> Iterator[Finding]:
    """Check that a worker finds memory: of the machine, and of the container's limit."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):
        yield Finding("memory", "warning", "this system does not say how much is available")
        return
    of = "available"
    try:
        left = int(_LIMIT.read_text()) - int(_USED.read_text())
    except (OSError, ValueError):  # no limit
        left = free
    if left < free:
        free, of = left, "left of the container's"
    says = f"{free // MEBIBYTE:,} MiB {of}"
    if free >= wanted:
        yield Finding("memory", "ok", says)
    else:
        yield Finding(
            "memory",
            "problem" if free < wanted / 4 else "warning",
            f"{says}; a worker of a detector takes about {wanted // MEBIBYTE:,}",
            "serve fewer models or fewer workers, or give it more",
        )
