"""The order that the papers report: is it found here too?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from whybox.evaluation.bootstrap import Estimate
from whybox.evaluation.randomise import Sanity
from whybox.evaluation.table import Results
from whybox.metrics.measures import MEASURES

ODAM = "odam"
CLASS_SPECIFIC = ("grad_cam", "grad_cam_pp")
WITH_SIDES = ("odam", "odsmoothgrad")
SAMPLED = "d_rise"

BEATEN_IN = ("odi_mask", "pointing_mask", "evidence_ratio")
NEAR = 0.05
"""Difference of the areas under deletion and insertion up to which two methods are near each other."""


@dataclass(frozen=True)
class Finding:
    """One claim, and what was found.

    Attributes:
        claim: in words.
        figure: what was computed.
        verdict: ``yes``, ``no``, or ``unclear`` where the interval holds both.
    """

    claim: str
    figure: str
    verdict: str


def findings(results: Results, sanity: Sanity | None = None) -> Iterator[Finding]:
    """Compare one detector's results with the order of the papers; methods that are not there are passed
    over.

    Args:
        results: of the table.
        sanity: of the randomised weights, if they were tried.
    """
    yield from _beats(results)
    yield from _sides(results)
    yield from _near(results)
    if sanity is not None:
        yield from _destroyed(sanity)


def _beats(results: Results) -> Iterator[Finding]:
    for other in CLASS_SPECIFIC:
        for measure in BEATEN_IN:
            gain = results.difference((ODAM, measure), (other, measure))
            if not gain.count:
                continue
            sign = 1 if MEASURES[measure].better == "higher" else -1
            words = "higher" if sign > 0 else "lower"
            yield Finding(
                f"{measure} of {ODAM} is {words} than that of {other}", f"by {gain}", _verdict(gain, sign)
            )


def _sides(results: Results) -> Iterator[Finding]:
    for method in WITH_SIDES:
        gain = results.difference((method, "iof_own_third"), (method, "iof_middle_third"))
        if gain.count:
            claim = f"side maps of {method} lie more on their own third than on the middle one"
            yield Finding(claim, f"IOF {gain} more", _verdict(gain, 1))


def _near(results: Results) -> Iterator[Finding]:
    for measure in ("deletion", "insertion"):
        gap = results.difference((SAMPLED, measure), (ODAM, measure))
        if not gap.count:
            continue
        near = abs(gap.low) <= NEAR and abs(gap.high) <= NEAR
        far = gap.low > NEAR or gap.high < -NEAR
        yield Finding(
            f"{measure} of {SAMPLED} is within {NEAR:g} of that of {ODAM}",
            f"differs by {gap}",
            "yes" if near else "no" if far else "unclear",
        )
    if SAMPLED in results.seconds and ODAM in results.seconds:
        ratio = float(np.median(results.seconds[SAMPLED]) / np.median(results.seconds[ODAM]))
        claim = f"a map of {SAMPLED} costs a hundred times one of {ODAM}"
        yield Finding(claim, f"{ratio:.0f} times the time", "yes" if ratio >= 100 else "no")


def _destroyed(sanity: Sanity) -> Iterator[Finding]:
    for variant in sanity.variants():
        more = sanity.left(variant)
        if not more.count:
            continue
        ranks = sanity.rank(variant, len(sanity.groups)).mean, sanity.rank(variant, 0).mean
        yield Finding(
            f"randomised weights leave nothing of the maps of {variant}: they are no more alike the trained "
            "network's than its map of another object is",
            f"rank correlation {ranks[0]:.2f} against {ranks[1]:.2f}; differs by {more}",
            "yes" if more.mean <= 0 else "no" if more.low > 0 else "unclear",
        )


def _verdict(gain: Estimate, sign: int) -> str:
    low, high = sorted((sign * gain.low, sign * gain.high))
    if math.isnan(low):
        return "unclear"
    return "yes" if low > 0 else "no" if high < 0 else "unclear"
