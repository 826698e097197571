"""Pseudo-targets: the least change of what a network says that gives the layout.

For each object the candidates whose boxes fit it best shall say its class and box; candidates that would stay
after post-processing and fit nothing shall say background; all others keep what they say, and have no part in
the loss. Source: Cao and Johnson 2021, section 3.2, "Updating Pseudo-Targets".

Letters: N candidates, K classes, L objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from whybox.detectors.proposals import Proposals


@dataclass(frozen=True)
class Objects:
    """What the picture shall show.

    Attributes:
        boxes: float (L, 4), network frame.
        labels: int64 (L,).
    """

    boxes: Tensor
    labels: Tensor

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
    proposals: Proposals,
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
    rows, chosen = _match(ious, most)
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
def assign_single(proposals: Proposals, objects: Objects) -> PseudoTargets:
    """Take for each object the one candidate whose anchor fits its box best; nothing is background."""
    best = box_iou(proposals.anchors, objects.boxes).argmax(0)
    return PseudoTargets(best, torch.arange(len(objects), device=best.device), best[:0])


def _overlaps(proposals: Proposals, boxes: Tensor, labels: Tensor) -> Tensor:
    """IoU of every candidate's box, of the object's class, with every object's: float (N, L)."""
    if proposals.boxes.ndim == 2:
        ious: Tensor = box_iou(proposals.boxes, boxes)
        return ious.nan_to_num(0)
    return torch.stack(
        [
            box_iou(proposals.boxes[:, label], box[None])[:, 0].nan_to_num(0)
            for label, box in zip(labels.tolist(), boxes, strict=True)
        ],
        1,
    )


def _match(ious: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Match the best `most` candidates of each object; one that several want goes to where it fits best.

    Returns:
        rows and objects, int64 (n,) each.
    """
    most = min(most, len(ious))
    values, rows = ious.topk(most, 0)  # [most, L]
    objects = torch.arange(ious.shape[1], device=ious.device).expand_as(rows)
    order = values.flatten().argsort(descending=True, stable=True)
    rows, objects = rows.flatten()[order], objects.flatten()[order]
    first = torch.ones_like(rows, dtype=torch.bool)
    seen: set[int] = set()
    for position, row in enumerate(rows.tolist()):
        first[position] = row not in seen
        seen.add(row)
    return rows[first], objects[first]
