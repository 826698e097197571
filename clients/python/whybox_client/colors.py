"""Colours: one scale for what speaks for a prediction, one for signed maps, one set for labels."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]

# "Turbo" (A. Mikhailov, Google AI, 2019; Apache-2.0): the author's polynomial in powers of x, from x^0 to
# x^5, for red, green and blue.
_TURBO = np.array(
    [
        [0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
        [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
        [0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
    ],
    np.float32,
)
# Turbo ends in a dark red that reads as "less" over a photograph: stop where it is still bright.
_TURBO_END = 0.83
_HEAT: FloatArray = np.clip(
    (np.linspace(0, _TURBO_END, 256, dtype=np.float32)[:, None] ** np.arange(6)) @ _TURBO.T, 0, 1
).astype(np.float32) * np.float32(255)  # [256, 3]
# Blue, white, red: the ends of ColorBrewer's "RdBu" and its middle.
_AGAINST = np.array([33, 102, 172], np.float32)
_NEUTRAL = np.array([247, 247, 247], np.float32)
_FOR = np.array([178, 24, 43], np.float32)

# Paul Tol's "vibrant" and "bright" schemes: apart from each other for colour-blind readers too.
LABEL_COLORS = (
    (238, 119, 51),
    (0, 119, 187),
    (51, 187, 238),
    (238, 51, 119),
    (0, 153, 136),
    (204, 187, 68),
    (170, 51, 119),
    (34, 136, 51),
)


def normalised(values: FloatArray, *, signed: bool = False) -> FloatArray:
    """Scale a map for display: min-max to [0, 1], or by its largest magnitude to [-1, 1] where signed.

    A constant map has nothing to show and becomes 0.

    Args:
        values: float32 (H, W).
        signed: keep 0 where it is.

    Returns:
        float32 (H, W).
    """
    if signed:
        largest = float(np.abs(values).max())
        return values / np.float32(largest) if largest > 0 else np.zeros_like(values)
    low, high = float(values.min()), float(values.max())
    return (values - np.float32(low)) / np.float32(high - low) if high > low else np.zeros_like(values)


def heat(levels: FloatArray) -> FloatArray:
    """Colour [0, 1] from blue (little) over green and yellow to red (most).

    Args:
        levels: float32 (…).

    Returns:
        float32 (…, 3), RGB in [0, 255].
    """
    paint: FloatArray = _HEAT[np.rint(levels * np.float32(255)).astype(np.uint8)]
    return paint


def diverging(levels: FloatArray) -> FloatArray:
    """Colour [-1, 1] from blue (speaks against) over white to red (speaks for).

    Args:
        levels: float32 (…).

    Returns:
        float32 (…, 3), RGB in [0, 255].
    """
    ends = np.where(levels[..., None] < 0, _AGAINST, _FOR)
    return (_NEUTRAL + (ends - _NEUTRAL) * np.abs(levels)[..., None]).astype(np.float32)
