"""Every family and architecture, small and with random weights: what the shared contract test runs on."""

from __future__ import annotations

from collections.abc import Callable

from builders import ARCHITECTURE_NAMES, LABELS, random_model
from whybox.detectors.base import WhiteBoxDetector
from whybox.detectors.torchvision import wrap


def _torchvision(architecture: str) -> WhiteBoxDetector:
    return wrap(random_model(architecture), LABELS, background=True)


DETECTORS: dict[str, Callable[[], WhiteBoxDetector]] = {
    f"torchvision/{name}": lambda name=name: _torchvision(name)  # type: ignore[misc]
    for name in ARCHITECTURE_NAMES
}
"""Family and architecture → a detector of `LABELS` that finds some objects in noise.

What makes one skips the test, with the library's name, where its library is not installed.
"""
