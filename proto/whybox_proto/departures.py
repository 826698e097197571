"""How a worker learns that the client of a request has gone: a folder that it shares with the gateway.

TorchServe tells a worker nothing about a client that hung up, and offers no second way in. So the gateway
leaves an empty file named after the call, and the worker looks for it between two parts of its work. Where
gateway and workers share no folder, work for a client that left ends at the request's deadline.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

VARIABLE = "WHYBOX_DEPARTURES_DIR"
"""Names the folder to both sides."""

_CALL_ID = re.compile(r"[0-9a-f]{32}")


class Departures:
    """The calls whose clients have gone.

    Args:
        folder: shared by gateway and workers; None: nothing is told.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @classmethod
    def from_environment(cls) -> Departures:
        """Take the folder that the environment names, if it names one."""
        folder = os.environ.get(VARIABLE)
        return cls(Path(folder) if folder else None)

    def tell(self, call_id: str) -> None:
        """Say that nobody waits for a call any more."""
        if (path := self._path(call_id)) is not None:
            # Where the folder cannot be written the deadline still ends the work.
            with contextlib.suppress(OSError):
                path.touch()

    def told(self, call_id: str) -> bool:
        """Whether nobody waits for a call any more."""
        path = self._path(call_id)
        return path is not None and path.exists()

    def forget(self, call_id: str) -> None:
        """Clear what was said of a call, once it has ended."""
        if (path := self._path(call_id)) is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def sweep(self, seconds: float) -> None:
        """Clear what was said so long ago that its call has ended, as after a crash of who should have."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir() if self._folder else ():
                if _CALL_ID.fullmatch(path.name) and path.stat().st_mtime < time.time() - seconds:
                    path.unlink(missing_ok=True)

    def _path(self, call_id: str) -> Path | None:
        return self._folder / call_id if self._folder and _CALL_ID.fullmatch(call_id) else None
