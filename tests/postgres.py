"""A real Postgres that a test starts in a folder of its own; where that is root, as somebody else."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import PATIENCE_SECONDS
from system_parts import need

# Who a server of the tests is where they run as root: nobody at all.
_USER = "65534"


class Postgres:
    """A server on a free port of loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = need("postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._as = [need("setpriv"), f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]
        if os.geteuid() != 0:
            self._as = []
        else:
            os.chown(folder, int(_USER), int(_USER))
        make = [
            need("initdb"),
            "-D",
            str(folder / "db"),
            "-U",
            "whybox",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        self._run([*make, "--locale=C"])
        self.start()

    @property
    def url(self) -> str:
        """URL of its one database."""
        return f"postgresql://whybox@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        command = [self._program, "-D", str(self._folder / "db"), "-p", str(self._port), *options]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen([*self._as, *command], cwd=self._folder, stdout=log, stderr=log)
        patience = time.monotonic() + PATIENCE_SECONDS
        ready = [need("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(ready, check=False).returncode:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < patience
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, and all connections."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(PATIENCE_SECONDS)

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            [*self._as, *command], cwd=self._folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a server while the block lasts."""
    # Not pytest's folder, into which nobody else may look.
    folder = Path(tempfile.mkdtemp(prefix="whybox-postgres-"))
    folder.chmod(0o755)
    try:
        server = Postgres(folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
