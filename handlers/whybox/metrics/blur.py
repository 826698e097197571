"""Gaussian smoothing of a map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def blur(values: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Smooth with a Gaussian cut at 4σ; the picture is mirrored at its borders."""
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        width = [(radius, radius) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(values, width, mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=axis)
        values = windows @ kernel
    return values
