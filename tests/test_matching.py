"""Detections of changed pictures against given ones: the fast paths beside obvious loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from whybox.detectors.base import Detections
from whybox.matching import Found, best_matches, similarities

CLASSES = 3


def detections(count: int, seed: int, *, coarse: bool = False) -> Detections:
    """Random boxes, best score first; coarse ones share corners, so that overlaps tie."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 4
    side = torch.rand(count, 2, generator=generator) * 4 + 0.5
    boxes = torch.cat([corner, corner + side], 1)
    class_scores = torch.rand(count, CLASSES, generator=generator)
    class_scores = class_scores[class_scores.amax(1).argsort(descending=True)]
    if coarse:
        boxes = torch.stack([*boxes[:, :2].round().T, *(boxes[:, :2].round() + 2).T], 1)
    scores, labels = class_scores.max(1)
    return Detections(boxes, labels, scores, class_scores, torch.arange(count))


def nothing() -> Detections:
    return detections(1, 0)[:0]


def iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / area


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    length = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    return dot / length if length else 0.0


def slow_similarities(targets: Detections, pictures: list[Detections]) -> Tensor:
    rows = []
    for found in pictures:
        row = []
        for box, scores in zip(targets.boxes.tolist(), targets.class_scores.tolist(), strict=True):
            best = 0.0
            for other, others in zip(found.boxes.tolist(), found.class_scores.tolist(), strict=True):
                best = max(best, iou(box, other) * cosine(scores, others))
            row.append(best)
        rows.append(row)
    return torch.tensor(rows)


def slow_matches(targets: Detections, pictures: list[Detections], least: float) -> list[list[int]]:
    """Positions of the best matches in the flat list, -1 for none."""
    rows, start = [], 0
    for found in pictures:
        row = []
        for box, label in zip(targets.boxes.tolist(), targets.labels.tolist(), strict=True):
            position, best = -1, least
            for i, (other, of) in enumerate(zip(found.boxes.tolist(), found.labels.tolist(), strict=True)):
                if of == label and iou(box, other) > best:
                    position, best = start + i, iou(box, other)
            row.append(position)
        rows.append(row)
        start += len(found)
    return rows


PICTURES = [detections(7, 1), nothing(), detections(1, 2), detections(20, 3), nothing()]
COARSE = [detections(30, seed, coarse=True) for seed in range(4)]


@pytest.mark.parametrize("pictures", [PICTURES, COARSE, [nothing()]])
def test_similarities_equal_the_loop(pictures: list[Detections]) -> None:
    targets = detections(6, 9, coarse=pictures is COARSE)
    found = similarities(targets.boxes, targets.class_scores, Found.of(pictures))
    assert found.shape == (len(pictures), 6)
    torch.testing.assert_close(found, slow_similarities(targets, pictures))


@pytest.mark.parametrize("least", [0.0, 0.3])
@pytest.mark.parametrize("pictures", [PICTURES, COARSE, [nothing()]])
def test_best_matches_equal_the_loop(pictures: list[Detections], least: float) -> None:
    targets = detections(6, 9, coarse=pictures is COARSE)
    found = Found.of(pictures)
    matches = best_matches(targets.boxes, targets.labels, found, min_overlap=least)
    assert matches.positions.tolist() == slow_matches(targets, pictures, least)
    for row, positions in enumerate(matches.positions.tolist()):
        for column, position in enumerate(positions):
            score = float(found.detections.scores[position]) if position >= 0 else 0.0
            assert float(matches.scores[row, column]) == score
            overlap = 0.0
            if position >= 0:
                overlap = iou(targets.boxes[column].tolist(), found.detections.boxes[position].tolist())
            assert float(matches.overlaps[row, column]) == pytest.approx(overlap, rel=1e-5)


def test_there_are_ties_in_the_coarse_pictures() -> None:
    """Else the loops above would not show how ties are broken."""
    targets = detections(6, 9, coarse=True)
    tied = 0
    for found in COARSE:
        for box, label in zip(targets.boxes.tolist(), targets.labels.tolist(), strict=True):
            values = [
                iou(box, other)
                for other, of in zip(found.boxes.tolist(), found.labels.tolist(), strict=True)
                if of == label
            ]
            tied += max(values) > 0 and values.count(max(values)) > 1
    assert tied > 3


def test_without_targets() -> None:
    none = nothing()
    found = Found.of(PICTURES)
    assert similarities(none.boxes, none.class_scores, found).shape == (5, 0)
    assert best_matches(none.boxes, none.labels, found).positions.shape == (5, 0)


def test_without_pictures() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        Found.of([])


def test_the_numbers_of_one_case() -> None:
    """Half the box at a right angle of classes is nothing; half the box at 45° is 0.5 · √½."""
    target = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    half = torch.tensor([[0.0, 0.0, 1.0, 2.0]]).repeat(2, 1)
    vectors = torch.tensor([[0.0, 0.9, 0.0], [0.3, 0.3, 0.0]])
    found = Detections(half, torch.tensor([1, 0]), torch.tensor([0.9, 0.3]), vectors, torch.arange(2))
    first = torch.tensor([[0.5, 0.0, 0.0]])
    assert float(similarities(target, first, Found.of([found[:1]]))) == 0
    assert float(similarities(target, first, Found.of([found]))) == pytest.approx(0.5 * 0.5**0.5)
    matches = best_matches(target, torch.tensor([0]), Found.of([found]))
    assert matches.positions.tolist() == [[1]]
    assert float(matches.scores) == pytest.approx(0.3)
    assert float(matches.overlaps) == pytest.approx(0.5)


def test_a_box_without_area_overlaps_nothing() -> None:
    """At a picture's border a detection may be clipped to a line; its IoU with itself is 0 / 0."""
    line = detections(1, 0)
    line.boxes[0, 2] = line.boxes[0, 0]
    found = Found.of([line])
    assert similarities(line.boxes, line.class_scores, found).tolist() == [[0]]
    assert best_matches(line.boxes, line.labels, found).positions.tolist() == [[-1]]
