"""Figures of a detector's answers in crowds: AP50, log-average miss rate, Jaccard index, recall.

A detection can match an object of its own class with IoU >= 0.5. All figures come with the same bootstrap
samples of the scenes, so that those of two detectors or settings can be subtracted.

=========  ================================================================================================
ap50       COCO's average precision at IoU 0.5: each detection, best first, takes the free object that it
           overlaps most; mean over classes of the precision at 101 levels of recall
mr         log-average miss rate MR⁻²: geometric mean of the miss rate at nine rates of false positives per
           picture from 0.01 to 1, log-spaced; all classes in one list (Dollár et al., 2012). Lower is better
ji         Jaccard index: matches / (detections + objects - matches) with as many matches as can be made,
           mean over pictures, at the score threshold at which it is highest (Chu et al., CVPR 2020)
crowded    recall, at that threshold, of objects that overlap another one of their class with IoU > 0.5
sparse     recall, at that threshold, of the others
=========  ================================================================================================

Letters: S scenes, D detections of all scenes, R bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from whybox.detectors.base import Detections
from whybox.evaluation.bootstrap import CONFIDENCE, SEED, Estimate

Array = NDArray[np.float64]

FIGURES = ("ap50", "mr", "ji", "crowded", "sparse")
LOWER_IS_BETTER = ("mr",)
MATCH_IOU = 0.5
RESAMPLES = 1000

_RECALLS = np.linspace(0, 1, 101)
_FALSE_POSITIVES = np.logspace(-2, 0, 9)
_THRESHOLDS = np.arange(1, 20) / 20
_LEAST_MISSES = 1e-10  # a miss rate of 0 has no logarithm


@dataclass(frozen=True)
class Truths:
    """The objects of one scene: float (G, 4) boxes, int64 (G,) labels."""

    boxes: Tensor
    labels: Tensor

    @property
    def crowded(self) -> NDArray[np.bool_]:
        """Which of them overlap another one of their class with IoU > 0.5."""
        overlap = box_iou(self.boxes, self.boxes) * (self.labels[:, None] == self.labels)
        overlap.fill_diagonal_(0)
        return np.asarray((overlap > MATCH_IOU).any(1).numpy())


@dataclass(frozen=True)
class Figures:
    """Each figure's value, and its values in R bootstrap samples: name → (value, (R,))."""

    values: dict[str, tuple[float, Array]]

    def estimate(self, name: str) -> Estimate:
        """Return a figure with its interval."""
        value, drawn = self.values[name]
        return _estimate(value, drawn)

    def gain(self, name: str, other: Figures) -> Estimate:
        """Return how much higher a figure is than another's of the same scenes."""
        (mine, drawn), (theirs, also) = self.values[name], other.values[name]
        return _estimate(mine - theirs, drawn - also)


def _estimate(value: float, drawn: Array) -> Estimate:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, math.nan, math.nan, 0)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high), len(drawn))


def figures(found: Sequence[Detections], truths: Sequence[Truths], resamples: int = RESAMPLES) -> Figures:
    """Take all figures.

    Args:
        found: detections of each of S scenes, best first, on the CPU.
        truths: of the same scenes.
        resamples: R; 0 for no intervals.
    """
    matched = [match(*pair) for pair in zip(found, truths, strict=True)]  # position of the object, or -1
    count = len(found)
    scene = np.repeat(np.arange(count), [len(one) for one in found])
    scores = np.concatenate([one.scores.double().numpy() for one in found])
    labels = np.concatenate([one.labels.numpy() for one in found])
    hit = np.concatenate(matched) >= 0
    order = np.argsort(-scores, kind="stable")
    scene, labels, hit = scene[order], labels[order], hit[order]
    classes = sorted({label for truth in truths for label in truth.labels.tolist()})
    of_class = {label: labels == label for label in classes}
    objects = np.array([[int((t.labels == label).sum()) for label in classes] for t in truths])  # [S, K]
    jaccard = np.stack([_jaccard(*pair) for pair in zip(found, truths, strict=True)])  # [S, thresholds]
    recalled = np.stack([_recalled(*row) for row in zip(found, truths, matched, strict=True)])  # [S, 2, …]
    kinds = np.array([[t.crowded.sum(), (~t.crowded).sum()] for t in truths])  # [S, 2]

    def take(weights: Array) -> list[float]:
        """All figures, scene s counted weights[s] times."""
        seen = weights[scene]
        totals = weights @ objects
        precision = [
            _average_precision(seen[mine], hit[mine], total)
            for mine, total in zip(of_class.values(), totals, strict=True)
            if total
        ]
        best = (weights @ jaccard).argmax()
        shares = (np.tensordot(weights, recalled, 1)[:, best], weights @ kinds)
        recall = [part / whole if whole else math.nan for part, whole in zip(*shares, strict=True)]
        return [
            float(np.mean(precision)),
            _miss_rate(seen, hit, totals.sum(), weights.sum()),
            float((weights @ jaccard)[best] / weights.sum()),
            *map(float, recall),
        ]

    random = np.random.default_rng(SEED)
    draws = [np.bincount(random.integers(0, count, count), minlength=count) for _ in range(resamples)]
    drawn = np.array([take(draw.astype(float)) for draw in draws]).reshape(resamples, len(FIGURES))
    whole = take(np.ones(count))
    return Figures({name: (whole[i], drawn[:, i]) for i, name in enumerate(FIGURES)})


def match(found: Detections, truth: Truths) -> NDArray[np.int64]:
    """Match greedily, best score first; for each detection the object's position, or -1."""
    overlaps = _overlaps(found, truth)
    free = np.ones(len(truth.labels), bool)
    matched = np.full(len(found), -1)
    for i, row in enumerate(overlaps):
        row = np.where(free, row, 0)
        if len(row) and row.max() >= MATCH_IOU:
            matched[i] = row.argmax()
            free[matched[i]] = False
    return matched


def _overlaps(found: Detections, truth: Truths) -> Array:
    """IoU of detections and objects, 0 between classes: (n, G)."""
    same = found.labels[:, None] == truth.labels
    return np.asarray((box_iou(found.boxes.double(), truth.boxes.double()).nan_to_num(0) * same).numpy())


def _average_precision(seen: Array, hit: NDArray[np.bool_], objects: float) -> float:
    """COCO's 101 points, of detections best first that each count `seen` times."""
    right = np.cumsum(seen * hit)
    total = np.cumsum(seen)
    precision = right / np.maximum(total, 1e-12)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / objects, _RECALLS)
    return float(np.where(places < len(envelope), np.append(envelope, 0)[places], 0).mean())


def _miss_rate(seen: Array, hit: NDArray[np.bool_], objects: float, scenes: float) -> float:
    """MR⁻² of detections best first that each count `seen` times."""
    wrong = np.cumsum(seen * ~hit) / scenes
    missed = np.append(1.0, 1 - np.cumsum(seen * hit) / objects)
    places = np.searchsorted(wrong, _FALSE_POSITIVES, side="right")  # so many detections make so few errors
    return float(np.exp(np.log(np.maximum(missed[places], _LEAST_MISSES)).mean()))


def _jaccard(found: Detections, truth: Truths) -> Array:
    """Jaccard index of one scene at each of the score thresholds."""
    can = _overlaps(found, truth) >= MATCH_IOU
    taken = np.full(can.shape[1], -1)
    sizes = [0]  # of the largest matching of the best 0, 1, 2 … detections

    def place(detection: int, tried: NDArray[np.bool_]) -> bool:
        """Give a detection an object, moving others where that helps (Kuhn's algorithm)."""
        for thing in np.flatnonzero(can[detection] & ~tried):
            if tried[thing]:
                continue
            tried[thing] = True
            if taken[thing] < 0 or place(int(taken[thing]), tried):
                taken[thing] = detection
                return True
        return False

    for detection in range(len(found)):
        sizes.append(sizes[-1] + place(detection, np.zeros(len(taken), bool)))
    counts = (found.scores.double().numpy()[:, None] >= _THRESHOLDS).sum(0)
    matches = np.array(sizes)[counts]
    union = counts + len(taken) - matches
    index: Array = np.where(union > 0, matches / np.maximum(union, 1), 1.0)
    return index


def _recalled(found: Detections, truth: Truths, matched: NDArray[np.int64]) -> Array:
    """How many crowded and how many sparse objects are found at each score threshold: (2, thresholds)."""
    enough = np.asarray(found.scores.double().numpy()[:, None] >= _THRESHOLDS)
    crowded = np.append(truth.crowded, False)[matched]  # the last stands for no match
    kinds = [((matched >= 0) & (crowded == kind))[:, None] & enough for kind in (True, False)]
    counts: Array = np.stack(kinds).sum(1)
    return counts
