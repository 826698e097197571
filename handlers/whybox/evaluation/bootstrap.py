"""Means with confidence intervals, from values that come in groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
SEED = 1
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean.

    Attributes:
        mean: NaN where there are no values.
        low, high: ends of its 95 % interval; NaN where there are fewer than two groups.
        count: of the values.
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """Write as ``0.42 [0.38, 0.47]``, or a dash where nothing was measured."""
        if math.isnan(self.mean):
            return "–"
        if math.isnan(self.low):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float], groups: Sequence[int]) -> Estimate:
    """Estimate a mean by the percentile bootstrap over groups.

    Detections of one scene have much in common, so scenes are drawn anew, each with all its values.

    Args:
        values: to be averaged.
        groups: for each value, the scene it is of.
    """
    if len(values) != len(groups):
        raise ValueError(f"expected a group for each value; got {len(values)} and {len(groups)}")
    if not values:
        return Estimate(math.nan, math.nan, math.nan, 0)
    _, which = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(which, values), np.bincount(which)
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Estimate(mean, math.nan, math.nan, len(values))
    drawn = np.random.default_rng(SEED).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean, float(low), float(high), len(values))


def median_interval(values: Sequence[float], groups: Sequence[int]) -> tuple[float, float]:
    """Return the 95 % interval of a median, by the percentile bootstrap over groups; see `estimate`.

    Returns:
        Its ends; NaN where there are fewer than two groups.
    """
    which, members = np.asarray(groups), np.asarray(values, float)
    rows = [members[which == group] for group in np.unique(which)]
    if len(rows) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(SEED).integers(0, len(rows), (RESAMPLES, len(rows)))
    medians = [np.median(np.concatenate([rows[i] for i in draw])) for draw in drawn]
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
