"""Pseudo-targets: the least change of what a network says that gives the layout.

For each object the candidates whose boxes fit it best shall say its class and box; candidates that would stay
after post-processing and fit nothing shall say background; all others keep what they say, and have no part in
the loss. Source: Cao and Johnson 2021, section 3.2, "Updating Pseudo-Targets".

Letters: N candidates, K classes, L objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from whybox.detectors.stage_outputs import StageOutputs


@dataclass(frozen=True)
class Objects:
    """What the picture shall show.

    Attributes:
        boxes: float (L, 4), network frame.
        labels: int64 (L,).
        wanted: bool (L,): those of which enough is in view; the others are neither asked for nor background.
    """

    boxes: Tensor
    labels: Tensor
    wanted: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PseudoTargets:
    """Of one stage.

    Attributes:
        rows: int64 (n,), candidates that shall be objects, each once.
        objects: int64 (n,), which object each shall be.
        background: int64 (m,), candidates that shall be none.
    """

    rows: Tensor
    objects: Tensor
    background: Tensor


@torch.no_grad()
def assign(
    proposals: StageOutputs,
    objects: Objects,
    *,
    most: int,
    score_threshold: float,
    overlap: float,
    background: bool = True,
) -> PseudoTargets:
    """Assign pseudo-targets.

    Args:
        proposals: of a stage; the objects' classes count unless it is the ``rpn``.
        objects: of the layout.
        most: candidates for each object.
        score_threshold: candidates above it would stay after post-processing.
        overlap: IoU with a matched object's box from which a candidate of its class would be suppressed.
        background: whether what fits nothing shall be background.
    """
    labels = objects.labels if proposals.stage != "rpn" else torch.zeros_like(objects.labels)
    ious = _overlaps(proposals, objects.boxes, labels)
    rows, chosen = _match(_ranking(proposals, objects.boxes, labels, ious, most), objects.wanted, most)
    if not background:
        return PseudoTargets(rows, chosen, rows[:0])
    scores = proposals.scores()
    # A candidate is unwanted for a class that no object which it covers has.
    covered = torch.zeros_like(scores, dtype=torch.bool)
    near = ious >= overlap
    for position, label in enumerate(labels.tolist()):
        covered[:, label] |= near[:, position]
    unwanted = ((scores > score_threshold) & ~covered).any(1)
    unwanted[rows] = False
    return PseudoTargets(rows, chosen, torch.where(unwanted)[0])


@torch.no_grad()
def assign_single(proposals: StageOutputs, objects: Objects) -> PseudoTargets:
    """Take for each object the one candidate whose anchor fits its box best; nothing is background."""
    rows, chosen = _match(box_iou(proposals.anchors, objects.boxes), objects.wanted, 1)
    return PseudoTargets(rows, chosen, rows[:0])


def _overlaps(proposals: StageOutputs, boxes: Tensor, labels: Tensor) -> Tensor:
    """IoU of every candidate's box, of the object's class, with every object's: float (N, L)."""
    return _pairwise(box_iou, proposals, boxes, labels).nan_to_num(0)


def _ranking(proposals: StageOutputs, boxes: Tensor, labels: Tensor, ious: Tensor, most: int) -> Tensor:
    """What candidates are matched by: IoU, and where that is 0 how near they are (generalised IoU)."""
    if bool(((ious > 0).sum(0) >= most * ious.shape[1]).all()):
        return ious
    nearness = _pairwise(generalized_box_iou, proposals, boxes, labels).nan_to_num(-1)
    return torch.where(ious > 0, ious, nearness - 1)


def _pairwise(
    measure: Callable[[Tensor, Tensor], Tensor], proposals: StageOutputs, boxes: Tensor, labels: Tensor
) -> Tensor:
    """Measure of every candidate's box, of the object's class, with every object's: float (N, L)."""
    if proposals.boxes.ndim == 2:
        return measure(proposals.boxes, boxes)
    columns = [
        measure(proposals.boxes[:, label], box[None])[:, 0]
        for label, box in zip(labels.tolist(), boxes, strict=True)
    ]
    return torch.stack(columns, 1) if columns else proposals.boxes.new_zeros((len(proposals.boxes), 0))


def _match(ranking: Tensor, wanted: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Match up to `most` candidates to each object that is wanted, each candidate once, the best pairs first.

    Every object has one before any has two.

    Returns:
        rows and objects, int64 (n,) each.
    """
    objects = torch.where(wanted)[0]
    deepest = min(most * len(objects), len(ranking))
    values, rows = ranking[:, objects].topk(deepest, 0)  # [deepest, l]
    order = values.flatten().argsort(descending=True, stable=True)
    pairs = list(
        zip(rows.flatten()[order].tolist(), objects.expand_as(rows).flatten()[order].tolist(), strict=True)
    )
    taken: dict[int, int] = {}
    have: Counter[int] = Counter()
    for limit in sorted({1, most}):
        for row, thing in pairs:
            if row not in taken and have[thing] < limit:
                taken[row] = thing
                have[thing] += 1
    device = ranking.device
    return (
        torch.tensor(list(taken), dtype=torch.int64, device=device),
        torch.tensor(list(taken.values()), dtype=torch.int64, device=device),
    )
