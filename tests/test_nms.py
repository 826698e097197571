"""Each kind of suppression against the obvious loop."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou, nms

from whybox.detectors.base import PostProcessing
from whybox.nms import KINDS, Reasons, needs_maps, odam, soft, suppress
from whybox.patience import NobodyWaitsError

GREEDY = PostProcessing(0.0, 1000, "iou", 0.4)
EVERY_KIND = [replace(GREEDY, nms=kind, corr_low=0.3, corr_high=0.8) for kind in KINDS]


def iou_of(boxes: Tensor, i: int, k: int) -> float:
    return float(box_iou(boxes[i : i + 1], boxes[k : k + 1]).nan_to_num(0))  # no area, no overlap


def best_first(scores: Tensor) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: -float(scores[i]))  # stable, so the earlier of equals


def obvious_greedy(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in best_first(scores):
        if all(labels[k] != labels[i] or iou_of(boxes, i, k) <= threshold for k in kept):
            kept.append(i)
    return kept


def obvious_odam(
    boxes: Tensor, scores: Tensor, labels: Tensor, maps: Tensor, settings: PostProcessing
) -> tuple[list[int], dict[int, tuple[int, float, float, str]]]:
    """Kept boxes, and for each dropped one: by which, IoU, correlation, rule."""
    kept: list[int] = []
    dropped: dict[int, tuple[int, float, float, str]] = {}
    for p in best_first(scores):
        for d in kept:
            if labels[d] != labels[p]:
                continue
            iou, alike = iou_of(boxes, p, d), float(maps[p] @ maps[d])
            if iou > settings.iou_threshold and alike > settings.corr_low:
                dropped[p] = (d, iou, alike, "same_object")
            elif iou <= settings.iou_threshold and alike > settings.corr_high:
                dropped[p] = (d, iou, alike, "same_evidence")
            else:
                continue
            break
        else:
            kept.append(p)
    return kept, dropped


def obvious_soft(
    boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float, final: float
) -> list[tuple[int, float]]:
    """Kept boxes with their scores, best first."""
    kept = []
    for label in labels.unique().tolist():
        left = {i: float(scores[i]) for i in range(len(scores)) if labels[i] == label}
        while left:
            best = max(left, key=lambda i: (left[i], float(scores[i]), -i))
            score = left.pop(best)
            if score < final:
                break
            kept.append((best, score))
            left = {i: s * math.exp(-(iou_of(boxes, i, best) ** 2) / sigma) for i, s in left.items()}
            left = {i: s for i, s in left.items() if s >= final}
    return kept


def random_boxes(seed: int, count: int, *, ties: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, scores, labels and unit maps (two of them zeros); with ties, on a coarse grid of values."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 40
    sides = 5 + torch.rand(count, 2, generator=generator) * 20
    scores = torch.rand(count, generator=generator)
    if ties:
        corners, sides = (corners / 10).round() * 10, (sides / 10).ceil() * 10
        scores = (scores * 4).round() / 4
    labels = torch.randint(0, 3, (count,), generator=generator)
    # Coordinates of 0 and 1 in four dimensions: correlations are few numbers, 0 and 1 among them.
    maps = (torch.rand(count, 4, generator=generator) < 0.6).float()
    maps[:2] = 0
    maps = maps / maps.norm(dim=1, keepdim=True).clamp(min=1)
    return torch.cat([corners, corners + sides], 1), scores, labels, maps


def correlate_of(maps: Tensor):
    return lambda first, second: (maps[first] @ maps[second].T).clamp(0, 1)


def told(reasons: Reasons | None) -> dict[int, tuple[int, float, float, str]]:
    assert reasons is not None
    rows = zip(
        reasons.dropped.tolist(),
        reasons.by.tolist(),
        reasons.ious.tolist(),
        reasons.correlations.tolist(),
        reasons.rules,
        strict=True,
    )
    return {dropped: (by, iou, alike, rule) for dropped, by, iou, alike, rule in rows}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_equals_the_obvious_loop(seed: int, ties: bool) -> None:
    boxes, scores, labels, _ = random_boxes(seed, 60, ties=ties)
    verdict = suppress(boxes, scores, labels, GREEDY, explain=True)
    kept = verdict.kept.tolist()
    assert kept == obvious_greedy(boxes, scores, labels, 0.4)
    assert 0 < len(kept) < 60
    assert torch.equal(verdict.scores, scores[verdict.kept])
    reasons = told(verdict.reasons)
    assert sorted([*kept, *reasons]) == list(range(60))
    for dropped, (by, iou, alike, rule) in reasons.items():
        overlapping = [k for k in kept if labels[k] == labels[dropped] and iou_of(boxes, k, dropped) > 0.4]
        assert by == overlapping[0]  # the best of them came first
        assert iou == iou_of(boxes, by, dropped)
        assert math.isnan(alike)
        assert rule == "iou"


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.8), (0.0, 1.0), (-1.0, 0.5), (0.6, 0.4), (0.5, 1.0)])
def test_odam_equals_the_obvious_loop(seed: int, ties: bool, low: float, high: float) -> None:
    boxes, scores, labels, maps = random_boxes(seed, 50, ties=ties)
    settings = PostProcessing(0.0, 1000, "odam", 0.5, corr_low=low, corr_high=high)
    verdict = suppress(boxes, scores, labels, settings, correlate=correlate_of(maps))
    kept, dropped = obvious_odam(boxes, scores, labels, maps, settings)
    assert verdict.kept.tolist() == kept
    assert list(told(verdict.reasons)) == [i for i in best_first(scores) if i in dropped]
    for i, (by, iou, alike, rule) in told(verdict.reasons).items():
        assert (by, iou, rule) == (dropped[i][0], dropped[i][1], dropped[i][3])
        assert alike == pytest.approx(dropped[i][2], abs=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 1 / 3, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_odam_without_say_of_the_maps_is_greedy(seed: int, threshold: float) -> None:
    """Thresholds of -1 and 1; on the grid many IoU are exactly 1/3, 0.5 or 1."""
    boxes, scores, labels, maps = random_boxes(seed, 80, ties=True)
    greedy = suppress(boxes, scores, labels, replace(GREEDY, iou_threshold=threshold), explain=True)
    full = odam(
        boxes, scores, labels, correlate_of(maps), iou_threshold=threshold, corr_high=1.0, corr_low=-1.0
    )
    settings = PostProcessing(0.0, 1000, "odam", threshold, corr_high=1.0, corr_low=-1.0)
    assert not needs_maps(settings)
    short = suppress(boxes, scores, labels, settings, explain=True)
    assert full.kept.tolist() == short.kept.tolist() == greedy.kept.tolist()
    for verdict in (full, short):
        assert {i: row[:2] for i, row in told(verdict.reasons).items()} == {
            i: row[:2] for i, row in told(greedy.reasons).items()
        }
        assert set(told(verdict.reasons)) <= set(range(80))
        assert {rule for *_, rule in told(verdict.reasons).values()} <= {"same_object"}


def test_an_iou_at_the_threshold_counts_as_torchvision_counts_it() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4]])  # IoU 0.4 in float32, a little above 0.4
    scores, labels = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64)
    for threshold in (0.4, float(torch.tensor(0.4)), 0.39, 0.41):
        kept = nms(boxes, scores, threshold).tolist()
        verdict = odam(
            boxes,
            scores,
            labels,
            lambda a, b: torch.zeros(len(a), len(b)),
            iou_threshold=threshold,
            corr_high=1.0,
            corr_low=-1.0,
        )
        assert verdict.kept.tolist() == kept


@given(
    st.lists(
        st.tuples(*[st.integers(0, 4)] * 4, st.integers(0, 3), st.integers(0, 1), st.integers(0, 3)),
        max_size=14,
    ),
    st.sampled_from([-1.0, 0.0, 0.5]),
    st.sampled_from([0.5, 0.75, 1.0]),
)
def test_odam_on_any_input(rows: list[tuple[int, ...]], low: float, high: float) -> None:
    """Small whole numbers, so that ties, equal boxes, zero maps, one box and no box all come up."""
    corners = torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4)
    boxes = torch.cat([corners[:, :2], corners[:, :2] + 1 + corners[:, 2:]], 1)
    scores = torch.tensor([row[4] / 4 for row in rows])
    labels = torch.tensor([row[5] for row in rows], dtype=torch.int64)
    directions = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    maps = directions[torch.tensor([row[6] for row in rows], dtype=torch.int64)]
    settings = PostProcessing(0.0, 1000, "odam", 0.5, corr_low=low, corr_high=high)
    verdict = suppress(boxes, scores, labels, settings, correlate=correlate_of(maps), explain=True)
    assert verdict.kept.tolist() == obvious_odam(boxes, scores, labels, maps, settings)[0]


@pytest.mark.parametrize("size", [1, 7, 59])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    boxes, scores, labels, maps = random_boxes(3, 60, ties=True)
    results = []
    for boxes_together, pairs_together in ((128, 1 << 21), (size, size)):
        monkeypatch.setattr("whybox.nms._BLOCK", boxes_together)
        monkeypatch.setattr("whybox.nms._LARGEST_BLOCK", boxes_together)
        monkeypatch.setattr("whybox.nms._BLOCK_CELLS", pairs_together)
        for settings in EVERY_KIND:
            verdict = suppress(boxes, scores, labels, settings, correlate=correlate_of(maps), explain=True)
            results.append((verdict.kept.tolist(), str(told(verdict.reasons))))
    assert results[: len(EVERY_KIND)] == results[len(EVERY_KIND) :]


@pytest.mark.parametrize("limit", [1, 5, 20])
def test_a_limit_saves_maps_and_changes_nothing(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("whybox.nms._BLOCK", 8)
    monkeypatch.setattr("whybox.nms._LARGEST_BLOCK", 8)
    boxes, scores, labels, maps = random_boxes(5, 200, ties=False)
    asked: set[int] = set()

    def correlate(first: Tensor, second: Tensor) -> Tensor:
        asked.update([*first.tolist(), *second.tolist()])
        return correlate_of(maps)(first, second)

    settings = PostProcessing(0.0, limit, "odam", 0.5, corr_low=0.2, corr_high=0.8)
    kept = suppress(boxes, scores, labels, settings, correlate=correlate).kept.tolist()
    few = len(asked)
    everything = suppress(boxes, scores, labels, settings, correlate=correlate, explain=True)
    assert kept[:limit] == everything.kept.tolist()[:limit]
    assert len(kept) >= limit
    assert few < 100 < len(asked)
    assert sorted([*everything.kept.tolist(), *told(everything.reasons)]) == list(range(200))


def test_boxes_without_rivals_are_not_correlated() -> None:
    boxes, scores, _, maps = random_boxes(5, 6, ties=False)
    labels = torch.tensor([0, 1, 2, 0, 3, 4])
    asked: set[int] = set()

    def correlate(first: Tensor, second: Tensor) -> Tensor:
        asked.update([*first.tolist(), *second.tolist()])
        return correlate_of(maps)(first, second)

    suppress(boxes, scores, labels, EVERY_KIND[2], correlate=correlate)
    assert EVERY_KIND[2].nms == "odam"
    assert asked == {0, 3}


@pytest.mark.parametrize(
    ("limit", "same", "blocks"),
    [
        (100, False, [128]),  # each is kept
        (300, False, [300]),
        (1000, False, [512, 488]),
        (None, True, [512, 488]),
        (100, True, [128, 512, 360]),  # none but the first is kept: as many as may be
    ],
)
def test_odam_looks_at_as_many_as_the_answer_seems_to_need(
    limit: int | None, same: bool, blocks: list[int]
) -> None:
    count = 1000
    boxes, scores = torch.rand(count, 4).cumsum(1), torch.linspace(1, 0.5, count)
    asked: list[int] = []

    def correlate(first: Tensor, second: Tensor) -> Tensor:
        asked.append(len(first))
        return torch.full((len(first), len(second)), float(same))

    verdict = odam(
        boxes,
        scores,
        torch.zeros(count, dtype=torch.int64),
        correlate,
        iou_threshold=1.0,
        corr_high=0.5,
        corr_low=0.5,
        limit=limit,
    )
    assert asked == blocks
    assert len(verdict.kept) == (1 if same else sum(blocks))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("sigma", "final"), [(0.5, 0.05), (0.1, 0.3), (2.0, 0.0)])
def test_soft_equals_the_obvious_loop(seed: int, ties: bool, sigma: float, final: float) -> None:
    boxes, scores, labels, _ = random_boxes(seed, 50, ties=ties)
    verdict = soft(boxes, scores, labels, sigma, final)
    expected = dict(obvious_soft(boxes, scores, labels, sigma, final))
    assert set(verdict.kept.tolist()) == set(expected)
    assert verdict.scores.tolist() == sorted(verdict.scores.tolist(), reverse=True)
    for place, score in zip(verdict.kept.tolist(), verdict.scores.tolist(), strict=True):
        assert score == pytest.approx(expected[place], rel=1e-5)
    for dropped, (by, iou, alike, rule) in told(verdict.reasons).items():
        rivals = [k for k in expected if labels[k] == labels[dropped]]
        most = max((iou_of(boxes, dropped, k) for k in rivals), default=0.0)
        assert iou == most
        assert by == -1 if most == 0 else iou_of(boxes, dropped, by) == most
        assert math.isnan(alike)
        assert rule == "soft"


def test_soft_in_numbers() -> None:
    """Two boxes of IoU 1/3, then one that is alone and weak."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [50, 50, 60, 60], [90, 90, 99, 99]])
    scores, labels = torch.tensor([0.8, 0.6, 0.5, 0.04]), torch.zeros(4, dtype=torch.int64)
    verdict = soft(boxes, scores, labels, 0.5, 0.05)
    assert verdict.kept.tolist() == [0, 2, 1]
    assert verdict.scores.tolist() == pytest.approx([0.8, 0.5, 0.6 * math.exp(-2 / 9)])
    assert told(verdict.reasons)[3][:2] == (-1, 0.0)  # nobody's doing: its own score is too low


def test_soft_looks_up_from_its_work() -> None:
    """In long classes, and over many short ones; what is raised there ends it."""
    boxes = torch.rand(1000, 4).cumsum(1)
    scores = torch.linspace(1, 0.5, 1000)
    settings = replace(GREEDY, nms="soft", sigma=0.5, final_threshold=0.0)
    for labels in (torch.zeros(1000, dtype=torch.int64), torch.arange(1000) // 2):
        looks = Mock()
        suppress(boxes, scores, labels, settings, between=looks)
        assert looks.call_count == 1000 // 128
        with pytest.raises(NobodyWaitsError):
            suppress(boxes, scores, labels, settings, between=Mock(side_effect=NobodyWaitsError))


def test_none_keeps_all_best_first() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1]] * 3)
    scores, labels = torch.tensor([0.1, 0.9, 0.5]), torch.zeros(3, dtype=torch.int64)
    verdict = suppress(boxes, scores, labels, replace(GREEDY, nms="none"), explain=True)
    assert verdict.kept.tolist() == [1, 2, 0]
    assert told(verdict.reasons) == {}


@pytest.mark.parametrize("settings", EVERY_KIND, ids=list(KINDS))
def test_boxes_without_area_overlap_nothing(settings: PostProcessing) -> None:
    boxes = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3], [0, 0, 9, 9]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    verdict = suppress(boxes, scores, labels, settings, correlate=correlate_of(torch.zeros(3, 4)))
    assert verdict.kept.tolist() == [0, 1, 2]
    assert verdict.scores.tolist() == scores.tolist()


@pytest.mark.parametrize("settings", EVERY_KIND, ids=list(KINDS))
@pytest.mark.parametrize("count", [0, 1])
def test_no_box_and_one_box(settings: PostProcessing, count: int) -> None:
    boxes, scores = torch.tensor([[0.0, 0, 9, 9]])[:count], torch.tensor([0.5])[:count]
    labels = torch.zeros(count, dtype=torch.int64)
    maps = torch.zeros(count, 4)
    verdict = suppress(boxes, scores, labels, settings, correlate=correlate_of(maps), explain=True)
    assert verdict.kept.tolist() == list(range(count))
    assert verdict.scores.tolist() == scores.tolist()
    assert told(verdict.reasons) == {}


def test_what_cannot_be_done_is_refused() -> None:
    boxes, scores, labels, _ = random_boxes(0, 5, ties=False)
    with pytest.raises(ValueError, match="nms is one of iou, soft, odam, none; got 'hard'"):
        suppress(boxes, scores, labels, replace(GREEDY, nms="hard"))
    with pytest.raises(ValueError, match="Odam-NMS needs heat maps"):
        suppress(boxes, scores, labels, replace(GREEDY, nms="odam"))
