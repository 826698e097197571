"""The states of a layout inversion, as `Inversion.state` has them; imports next to nothing."""

from __future__ import annotations

from typing import Literal

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]

ACTIVE: tuple[State, ...] = ("queued", "running")
"""Those from which an inversion goes on."""
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")
"""Those in which it stays."""
STATES: tuple[State, ...] = (*ACTIVE, *ENDED)
