"""Programs of the system that some tests drive; `install_system_parts.sh` installs them where it may."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# Debian's Postgres is not on the path.
_ELSEWHERE = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def need(program: str) -> str:
    """Return the path of a program; without it the test is skipped by name, and fails in CI."""
    path = shutil.which(program) or shutil.which(program, path=":".join(map(str, _ELSEWHERE)))
    if path is None:
        reason = f"{program} is not installed: tests/install_system_parts.sh installs it, as root on Debian"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path
