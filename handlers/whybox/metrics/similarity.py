"""How alike two maps are: for the sanity check by randomised weights.

A map is float (h, w). NaN says that a measure is not defined for two maps.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from whybox.metrics.blur import blur
from whybox.metrics.pointing import Values

_SIGMA = 1.5  # of the window, in cells
_STABLE = 0.01**2, 0.03**2  # of the paper's C1 and C2, for maps between 0 and 1


def rank_correlation(first: Values, second: Values) -> float:
    """Spearman's rank correlation of two maps' cells, -1 to 1; equal values share their mean rank.

    NaN where one of them is constant.

    Source: as a similarity of explanations, Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018.
    """
    ranks = _ranks(first), _ranks(second)
    centred = [r - r.mean() for r in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / scale if scale > 0 else math.nan


def structural_similarity(first: Values, second: Values) -> float:
    """Structural similarity (SSIM) of two maps, each min-max normalised: the mean over all cells, -1 to 1.

    The window is a Gaussian of σ = 1.5 cells. NaN where one of them is constant.

    Source: Wang et al., "Image quality assessment", IEEE Trans. Image Processing 2004.
    """
    if first.min() == first.max() or second.min() == second.max():
        return math.nan
    x, y = _normalised(first), _normalised(second)
    mean_x, mean_y = blur(x, _SIGMA), blur(y, _SIGMA)
    spread_x = blur(x * x, _SIGMA) - mean_x**2
    spread_y = blur(y * y, _SIGMA) - mean_y**2
    common = blur(x * y, _SIGMA) - mean_x * mean_y
    light = (2 * mean_x * mean_y + _STABLE[0]) / (mean_x**2 + mean_y**2 + _STABLE[0])
    structure = (2 * common + _STABLE[1]) / (spread_x + spread_y + _STABLE[1])
    return float((light * structure).mean())


def _normalised(values: Values) -> NDArray[np.float64]:
    exact = values.astype(np.float64)
    normalised: NDArray[np.float64] = (exact - exact.min()) / (exact.max() - exact.min())
    return normalised


def _ranks(values: Values) -> NDArray[np.float64]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[which.ravel()]
    return ranks
