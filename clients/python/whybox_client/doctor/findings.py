"""One line of the doctor's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at.
        state: ``ok``; ``warning``, something works but not well, or could not be checked; ``problem``, it
            does not work.
        says: what was found.
        mend: what to do about it; empty where there is nothing to do.
    """

    check: str
    state: State
    says: str
    mend: str = ""
