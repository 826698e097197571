"""How a map is shaped: spread about its peak, sparse or even, split between objects.

A map is float (H, W) in the image frame, not negative; see `whybox.metrics.pointing.energies`. NaN says that
a measure is not defined for a map.
"""

from __future__ import annotations

import math

import numpy as np

from whybox.metrics.pointing import Box, Mask, Values


def compactness(values: Values, box: Box) -> float:
    """Spread of the map about its peak, in half diagonals of a box.

    The square root of the energy-weighted mean squared distance to the peak, over half the box's diagonal;
    the peak is the pixel of the maximum (of equal ones, the first by rows). NaN for a map without energy, or
    a box without a diagonal.

    Source: Zhao and Chan, "ODAM", ICLR 2023, section 4.2.

    Args:
        values: the map.
        box: [x1, y1, x2, y2] of the object.
    """
    total = float(values.sum(dtype=np.float64))
    if total <= 0:
        return math.nan
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    along_y = values.sum(1, dtype=np.float64) @ (np.arange(values.shape[0]) - row) ** 2
    along_x = values.sum(0, dtype=np.float64) @ (np.arange(values.shape[1]) - column) ** 2
    half = math.hypot(box[2] - box[0], box[3] - box[1]) / 2
    return math.sqrt(float(along_x + along_y) / total) / half if half > 0 else math.nan


def sparsity(values: Values) -> float:
    """Gini index of the map's pixels: 0 for an even map, near 1 for one whose energy is in few pixels.

    NaN for a map without energy.

    Source: Hurley and Rickard, "Comparing measures of sparsity", IEEE Trans. Inf. Theory 2009; as a measure
    of explanations: Chalasani et al., "Concise explanations of neural networks using adversarial training",
    ICML 2020.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    total, count = float(ordered.sum()), ordered.size
    if total <= 0:
        return math.nan
    weights = 2 * np.arange(1, count + 1) - count - 1
    return float(weights @ ordered) / (count * total)


def object_discrimination(values: Values, own: Mask, other: Mask | None) -> float:
    """Object discrimination index: energy inside other objects over the energy inside all objects, 0 to 1.

    A pixel of several objects counts as the others'. NaN where there are no other objects, or no energy
    inside any.

    Source: Zhao and Chan, "ODAM", ICLR 2023, section 4.2.

    Args:
        values: the map.
        own: pixels of the explained object, bool (H, W): its box or its mask.
        other: pixels of any other object of the picture; None where there is none.
    """
    if other is None:
        return math.nan
    inside = float(values[other | own].sum(dtype=np.float64))
    return float(values[other].sum(dtype=np.float64)) / inside if inside > 0 else math.nan
