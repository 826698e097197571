"""Suppression against the obvious loop."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from whybox.nms import suppress


def obvious(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in torch.argsort(scores, descending=True).tolist():
        overlaps = [
            float(box_iou(boxes[i : i + 1], boxes[k : k + 1])) for k in kept if labels[k] == labels[i]
        ]
        if all(overlap <= threshold for overlap in overlaps):
            kept.append(i)
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_greedy_equals_the_obvious_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(60, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 5 + torch.rand(60, 2, generator=generator) * 20], 1)
    scores = torch.rand(60, generator=generator)
    labels = torch.randint(0, 3, (60,), generator=generator)
    kept = suppress(boxes, scores, labels, iou_threshold=0.4).tolist()
    assert kept == obvious(boxes, scores, labels, 0.4)
    assert 0 < len(kept) < 60


def test_none_keeps_all_best_first_and_empty_input_is_fine() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1]] * 3)
    scores = torch.tensor([0.1, 0.9, 0.5])
    labels = torch.zeros(3, dtype=torch.int64)
    assert suppress(boxes, scores, labels, kind="none").tolist() == [1, 2, 0]
    for kind in ("iou", "none"):
        assert suppress(boxes[:0], scores[:0], labels[:0], kind=kind).tolist() == []
    with pytest.raises(ValueError, match="kind is one of iou, none; got 'hard'"):
        suppress(boxes, scores, labels, kind="hard")
