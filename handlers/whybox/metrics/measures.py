"""Every measure of how good a map is, with its protocol: papers differ, so a figure names what was done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from whybox.methods.base import SIDES
from whybox.metrics.overlap import (
    BLUR,
    FOREGROUND,
    THRESHOLDS,
    explanation_accuracy,
    explanation_accuracy_area,
    over_foreground,
    third,
)
from whybox.metrics.perturbation import STEPS, Picture, deletion, insertion
from whybox.metrics.pointing import (
    Box,
    Mask,
    Values,
    box_mask,
    energies,
    energy_share,
    evidence_ratio,
    own_half_share,
    pointing_game,
)
from whybox.metrics.shape import compactness, object_discrimination, sparsity

LOWEST_SCORE = 0.01
"""Of the detections among which deletion and insertion look for their own."""

SAME_OBJECT = 0.5
"""IoU that two boxes of one class must exceed to be taken for the same object."""

Follow = Callable[[Iterable[Picture]], NDArray[np.float64]]
"""The score of one detection in each of some changed pictures; 0 where it is not found."""


@dataclass(frozen=True)
class Truth:
    """The object that a detection stands for, and the others; masks are bool (H, W).

    Attributes:
        box: of the object.
        mask: its pixels; None where they are not known.
        evidence: the pixels that decide its class; None where they are not known.
        other_boxes: pixels in the box of any other object; None where there is none.
        other_masks: pixels of any other object; None where there is none, or where a mask is not known.
    """

    box: Box
    mask: Mask | None = None
    evidence: Mask | None = None
    other_boxes: Mask | None = None
    other_masks: Mask | None = None


@dataclass(frozen=True)
class Subject:
    """A map, and what a measure may ask about it.

    Attributes:
        values: float32 (H, W), the map in the image frame.
        signed: negative values mean "speaks against".
        target: that the map is of.
        box: of the detection that the map explains.
        picture: uint8 (H, W, 3).
        follow: says how the detection fares in changed pictures.
        truth: None where it is not known.
        seed: of the random fill.
    """

    values: Values
    signed: bool
    target: str
    box: Box
    picture: Picture
    follow: Follow
    truth: Truth | None = None
    seed: int = 0

    @cached_property
    def energy(self) -> Values:
        """The map as the measures of energy see it."""
        return energies(self.values, self.signed)

    @cached_property
    def box_pixels(self) -> Mask:
        """Pixels in the true box."""
        assert self.truth is not None
        return box_mask(self.truth.box, *self.values.shape)


@dataclass(frozen=True)
class Measure:
    """One measure.

    Attributes:
        name: as asked for.
        protocol: what is done, with fill, steps and normalisation, and its source.
        better: ``higher`` or ``lower``.
        take: measures a map; NaN where the measure is not defined for it.
        needs: what must be known of the truth: nothing (empty), ``box``, ``mask`` or ``evidence``.
        of: the targets that it is for: ``score`` (all but the sides), ``side``, or any (empty).
    """

    name: str
    protocol: str
    better: str
    take: Callable[[Subject], float]
    needs: str = ""
    of: str = ""

    def applies(self, subject: Subject) -> bool:
        """Whether the target fits, and what the measure needs is known."""
        if self.of and (self.of == "side") != (subject.target in SIDES):
            return False
        if not self.needs:
            return True
        return subject.truth is not None and getattr(subject.truth, self.needs) is not None


def take(subject: Subject, names: Iterable[str] | None = None) -> dict[str, float]:
    """Take measures of one map.

    Args:
        subject: the map.
        names: of `MEASURES`; None for all.

    Returns:
        By name, those that apply and are defined.
    """
    chosen = MEASURES.values() if names is None else [MEASURES[name] for name in names]
    values = {measure.name: measure.take(subject) for measure in chosen if measure.applies(subject)}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _truth(subject: Subject) -> Truth:
    assert subject.truth is not None  # `Measure.applies` has seen to it
    return subject.truth


def _mask(subject: Subject) -> Mask:
    mask = _truth(subject).mask
    assert mask is not None
    return mask


def _deletion(subject: Subject) -> float:
    return deletion(subject.picture, subject.values, subject.follow, np.random.default_rng([subject.seed, 0]))


def _insertion(subject: Subject) -> float:
    return insertion(
        subject.picture, subject.values, subject.follow, np.random.default_rng([subject.seed, 1])
    )


def _compactness(subject: Subject) -> float:
    return compactness(subject.energy, subject.truth.box if subject.truth else subject.box)


def _accuracy_at(share: float) -> Callable[[Subject], float]:
    at = int(np.abs(THRESHOLDS - share).argmin())
    return lambda subject: float(explanation_accuracy(subject.energy, _mask(subject))[at])


def _third(middle: bool) -> Callable[[Subject], float]:
    def take(subject: Subject) -> float:
        mask = _mask(subject)
        if not mask.any():
            return math.nan
        return over_foreground(subject.energy, third(mask, subject.target, middle=middle))

    return take


def _evidence_ratio(subject: Subject) -> float:
    truth = _truth(subject)
    assert truth.evidence is not None
    if not (truth.evidence & subject.box_pixels).any():
        return math.nan
    return evidence_ratio(subject.energy, truth.evidence, truth.box)


_FOLLOWED = (
    "the score followed is that of the detection of the same class with the highest IoU to the explained "
    f"one, above {SAME_OBJECT:g}, among those that score {LOWEST_SCORE:g} or more, else 0; over the score "
    f"in the unchanged picture; {STEPS} steps, the k-th at a share of (k/{STEPS})² of the pixels; equal "
    "pixels in random order; area by the trapezoid rule"
)
_ENERGY = "of the map without its smallest value (of a signed map: its positive part)"
_ODAM = "Zhao and Chan 2023, section 4.2"

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            "deletion",
            "Area under the score while the pixels, most important first, are replaced by random values: "
            f"{_FOLLOWED}. {_ODAM}; Petsiuk et al. 2018",
            "lower",
            _deletion,
            of="score",
        ),
        Measure(
            "insertion",
            "Area under the score while the pixels, most important first, are put onto a black picture: "
            f"{_FOLLOWED}. {_ODAM}; Petsiuk et al. 2018",
            "higher",
            _insertion,
            of="score",
        ),
        Measure(
            "compactness",
            f"Square root of the mean squared distance to the map's peak, weighted by the energy {_ENERGY}, "
            "over half the diagonal of the true box; where no truth is known, of the detection's box. "
            f"{_ODAM}",
            "lower",
            _compactness,
        ),
        Measure(
            "sparsity",
            f"Gini index of the energy {_ENERGY}, over the picture's pixels. Hurley and Rickard 2009; "
            "Chalasani et al. 2020",
            "higher",
            lambda subject: sparsity(subject.energy),
        ),
        Measure(
            "pointing_box",
            f"Whether the map's maximum lies in the true box; equal maxima share the hit. {_ODAM}; Zhang et "
            "al. 2018",
            "higher",
            lambda subject: pointing_game(subject.energy, subject.box_pixels),
            "box",
        ),
        Measure(
            "pointing_mask",
            f"Whether the map's maximum lies on the true mask; equal maxima share the hit. {_ODAM}; Zhang "
            "et al. 2018",
            "higher",
            lambda subject: pointing_game(subject.energy, _mask(subject)),
            "mask",
        ),
        Measure(
            "energy_box",
            f"Energy-based pointing game: share of the energy {_ENERGY} in the true box. {_ODAM}; Wang et "
            "al. 2020",
            "higher",
            lambda subject: energy_share(subject.energy, subject.box_pixels),
            "box",
        ),
        Measure(
            "energy_mask",
            f"Energy-based pointing game: share of the energy {_ENERGY} on the true mask. {_ODAM}; Wang et "
            "al. 2020",
            "higher",
            lambda subject: energy_share(subject.energy, _mask(subject)),
            "mask",
        ),
        Measure(
            "odi_box",
            f"Object discrimination index: energy {_ENERGY} in the boxes of other objects, over that in the "
            f"boxes of all; not defined for a picture of one object. {_ODAM}",
            "lower",
            lambda s: object_discrimination(s.energy, s.box_pixels, _truth(s).other_boxes),
            "box",
        ),
        Measure(
            "odi_mask",
            f"Object discrimination index: energy {_ENERGY} on the masks of other objects, over that on the "
            f"masks of all; not defined for a picture of one object. {_ODAM}",
            "lower",
            lambda s: object_discrimination(s.energy, _mask(s), _truth(s).other_masks),
            "mask",
        ),
        Measure(
            "vea",
            "Visual explanation accuracy: area under the IoU of the true mask with the pixels of at least "
            f"t times the maximum, {_ENERGY}, over t = 0, 0.01 … 1. {_ODAM}; Oramas et al. 2019",
            "higher",
            lambda subject: explanation_accuracy_area(subject.energy, _mask(subject)),
            "mask",
        ),
        Measure(
            "vea_at_0.1",
            f"Visual explanation accuracy at t = 0.1; see vea. {_ODAM}",
            "higher",
            _accuracy_at(0.1),
            "mask",
        ),
        Measure(
            "own_half",
            f"Share of the energy {_ENERGY} in the true box that lies in the half at the target's side",
            "higher",
            lambda subject: own_half_share(subject.energy, subject.target, _truth(subject).box),
            "box",
            "side",
        ),
        Measure(
            "iof_own_third",
            f"Intersection over foreground: share of the foreground (map blurred with σ = {BLUR:g} pixels, "
            f"above {FOREGROUND:g} of its maximum) that lies in the third of the true mask at the target's "
            "side. Validation of ODSmoothGrad, section 4.2",
            "higher",
            _third(middle=False),
            "mask",
            "side",
        ),
        Measure(
            "iof_middle_third",
            "Intersection over foreground with the middle third of the true mask, along the same axis; see "
            "iof_own_third, which should be larger",
            "lower",
            _third(middle=True),
            "mask",
            "side",
        ),
        Measure(
            "evidence_ratio",
            f"Share of the energy {_ENERGY} on the pixels that decide the class, over their share of the "
            "true box; 1 is no better than spreading it evenly over the box",
            "higher",
            _evidence_ratio,
            "evidence",
            "score",
        ),
    )
}
"""By name, in the order in which they are told of."""
