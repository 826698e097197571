"""From candidates to those that enter suppression: the same for every family that ends in NMS."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from whybox.detectors.base import Candidates, Contenders, Frame, PostProcessing

MANY = 20_000
"""Scores of which the best are looked for before they are sorted."""


def contenders(
    candidates: Candidates,
    frame: Frame,
    settings: PostProcessing,
    *,
    group_limit: int | None = None,
    class_limit: int | None = None,
    min_side: float = 0.0,
    clip: bool = True,
    trim: bool = False,
) -> Contenders:
    """Threshold, limit each group, clip to the picture.

    The order is torchvision's, so that equal settings give equal detections.

    Args:
        candidates: of one picture.
        frame: where the picture sits in the network's input.
        settings: thresholds and limits.
        group_limit: most (candidate, class) pairs that enter NMS from each group; None for no limit.
        class_limit: most candidates of each class that enter; None for no limit.
        min_side: boxes with a shorter side after clipping, in network pixels, are dropped.
        clip: clip; otherwise `min_side` is of the boxes as they are.
        trim: see `Contenders`.
    """
    rows, labels = _above(candidates, settings.score_threshold, group_limit)
    if class_limit is not None:
        best = _best_of_each(candidates.scores[rows, labels], labels, class_limit)
        rows, labels = rows[best], labels[best]
    scores = candidates.scores[rows, labels]
    boxes = candidates.boxes_of(rows, labels)
    if clip:
        boxes = clip_boxes_to_image(boxes, (frame.network_height, frame.network_width))
    wide = ((boxes[:, 2:] - boxes[:, :2]) >= min_side).all(1)
    return Contenders(boxes[wide], labels[wide], scores[wide], rows[wide], trim)


def _above(candidates: Candidates, threshold: float, group_limit: int | None) -> tuple[Tensor, Tensor]:
    """Return the (candidate, class) pairs above the threshold, the best `group_limit` of each group."""
    above = candidates.scores > threshold
    if group_limit is not None and int(above.sum()) > MANY:
        above &= candidates.scores >= _least(candidates, group_limit)[:, None]
    rows, labels = torch.where(above)
    if group_limit is None:
        return rows, labels
    best = _best_of_each(candidates.scores[rows, labels], candidates.groups[rows], group_limit)
    return rows[best], labels[best]


def _best_of_each(scores: Tensor, groups: Tensor, limit: int) -> Tensor:
    """Return the positions of the best `limit` of each group, group by group, best first."""
    among = _contestants(scores, groups, limit) if len(scores) > MANY else None
    if among is not None:
        scores, groups = scores[among], groups[among]
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(groups[order], stable=True)]
    counts = torch.bincount(groups, minlength=1)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rank = torch.arange(len(order), device=order.device) - starts
    best = order[rank < limit]
    return best if among is None else among[best]


def _least(candidates: Candidates, limit: int) -> Tensor:
    """Return for each candidate the score (N,) that the best `limit` pairs of its group reach."""
    least = torch.full_like(candidates.scores[:, 0], -torch.inf)
    for group in candidates.groups.unique().tolist():
        here = candidates.groups == group
        own = candidates.scores[here].flatten()
        if len(own) > limit:
            least[here] = own.topk(limit).values[-1]
    return least


def _contestants(scores: Tensor, groups: Tensor, limit: int) -> Tensor:
    """Return the positions, ascending, of those that are among the best `limit` of their group.

    Of equal scores the first: as if all were sorted, which takes far longer.
    """
    chosen = []
    for group in groups.unique().tolist():
        here = torch.where(groups == group)[0]
        if len(here) > limit:
            own = scores[here]
            least = own.topk(limit).values[-1]
            better = torch.where(own > least)[0]
            equal = torch.where(own == least)[0][: limit - len(better)]
            here = here[torch.cat([better, equal])]
        chosen.append(here)
    return torch.cat(chosen).sort().values
