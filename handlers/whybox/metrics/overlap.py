"""A map, cut off at a threshold, against the pixels of its object.

A map is float (H, W) in the image frame, not negative; see `whybox.metrics.pointing.energies`. NaN says that
a measure is not defined for a map.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from whybox.metrics.blur import blur
from whybox.metrics.perturbation import area
from whybox.metrics.pointing import Mask, Values

THRESHOLDS = np.linspace(0, 1, 101)
"""Of the curve of visual explanation accuracy, as shares of the map's maximum."""

BLUR = 2.0
"""σ of the smoothing before a map is cut off for its sides, in pixels."""

FOREGROUND = 0.32
"""Where it is cut off, as a share of its maximum."""


def explanation_accuracy(values: Values, mask: Mask) -> NDArray[np.float64]:
    """IoU of the object's mask with the pixels of at least t times the map's maximum, for `THRESHOLDS`.

    Source: Oramas Mogrovejo et al., "Visual explanation by interpretation", ICLR 2019, as used by Zhao and
    Chan, "ODAM", ICLR 2023, section 4.2.
    """
    peak = float(values.max())
    shares = values / peak if peak > 0 else values
    # Pixels at or above each threshold, by counting down from the highest.
    bins = np.searchsorted(THRESHOLDS, shares.ravel().astype(np.float64) + 1e-9, side="right") - 1
    size = len(THRESHOLDS)
    above = np.bincount(bins, minlength=size)[::-1].cumsum()[::-1]
    hits = np.bincount(bins[mask.ravel()], minlength=size)[::-1].cumsum()[::-1]
    union = above + int(mask.sum()) - hits
    curve: NDArray[np.float64] = np.divide(hits, union, out=np.zeros(size), where=union > 0)
    return curve


def explanation_accuracy_area(values: Values, mask: Mask) -> float:
    """Area under the curve of `explanation_accuracy`, 0 to 1."""
    return area(THRESHOLDS, explanation_accuracy(values, mask))


def foreground(values: Values) -> Mask:
    """Pixels of the smoothed map above 0.32 of its maximum.

    Source: the validation of ODSmoothGrad, section 4.2: a Gaussian of σ = 2 pixels, then a threshold of 0.32.
    """
    smooth = blur(values.astype(np.float64), BLUR)
    kept: Mask = smooth > FOREGROUND * smooth.max()
    return kept


def third(mask: Mask, side: str, *, middle: bool = False) -> Mask:
    """The third of an object's pixels at one of its sides, or the middle third along the same axis.

    Args:
        mask: of the object, bool (H, W), not empty.
        side: ``x1`` (left), ``y1`` (top), ``x2`` (right) or ``y2`` (bottom).
        middle: return the middle third.
    """
    if side not in ("x1", "y1", "x2", "y2"):
        raise ValueError(f"side is one of x1, y1, x2, y2; got {side!r}")
    across = side.startswith("x")
    there = np.flatnonzero(mask.any(axis=0 if across else 1))
    low, high = there[0], there[-1] + 1
    first, last = low + (high - low) / 3, high - (high - low) / 3
    centres = np.arange(mask.shape[1 if across else 0]) + 0.5
    if middle:
        chosen = (centres >= first) & (centres < last)
    else:
        chosen = centres < first if side.endswith("1") else centres >= last
    part: Mask = mask & (chosen[None, :] if across else chosen[:, None])
    return part


def over_foreground(values: Values, part: Mask) -> float:
    """Intersection over foreground (IOF): the share of the map's `foreground` that lies in a part.

    NaN for a map without energy.

    Source: the validation of ODSmoothGrad, section 4.2.
    """
    kept = foreground(values)
    return float(part[kept].mean()) if kept.any() else math.nan
