"""Numbers that came as float32, shown as they were meant: 0.98, not 0.9800000190734863."""

from __future__ import annotations

import math
import struct


def shortest(value: float) -> float:
    """Return the number of fewest digits that is the same float32."""
    if not math.isfinite(value):
        return value
    for digits in range(6, 10):  # 9 always suffice
        candidate = float(f"{value:.{digits}g}")
        if struct.pack("<f", candidate) == struct.pack("<f", value):
            break
    return candidate
