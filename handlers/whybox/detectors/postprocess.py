"""From candidates to detections, the same for every family that ends in thresholds and NMS."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from whybox.detectors.base import Candidates, Detections, Frame, PostProcessing
from whybox.nms import suppress


def postprocess(
    candidates: Candidates,
    frame: Frame,
    settings: PostProcessing,
    *,
    group_limit: int | None = None,
    min_side: float = 0.0,
) -> Detections:
    """Threshold, limit each group, clip to the picture, suppress duplicates, keep the best.

    The order is torchvision's, so that equal settings give equal detections.

    Args:
        candidates: of one picture.
        frame: where the picture sits in the network's input.
        settings: thresholds and limits.
        group_limit: most (candidate, class) pairs that enter NMS from each group; None for no limit.
        min_side: boxes with a shorter side after clipping, in network pixels, are dropped.
    """
    rows, labels = _above(candidates, settings.score_threshold, group_limit)
    scores = candidates.scores[rows, labels]
    boxes = candidates.boxes[rows, labels] if candidates.boxes.ndim == 3 else candidates.boxes[rows]
    boxes = clip_boxes_to_image(boxes, (frame.network_height, frame.network_width))
    wide = ((boxes[:, 2:] - boxes[:, :2]) >= min_side).all(1)
    boxes, scores, labels, rows = boxes[wide], scores[wide], labels[wide], rows[wide]
    keep = suppress(boxes, scores, labels, kind=settings.nms, iou_threshold=settings.iou_threshold)
    keep = keep[: settings.max_detections]
    return Detections(
        boxes=frame.to_image(boxes[keep]),
        labels=labels[keep],
        scores=scores[keep],
        class_scores=candidates.scores[rows[keep]],
        candidates=rows[keep],
    )


def _above(candidates: Candidates, threshold: float, group_limit: int | None) -> tuple[Tensor, Tensor]:
    """Return the (candidate, class) pairs above the threshold, the best `group_limit` of each group."""
    if group_limit is None:
        rows, labels = torch.where(candidates.scores > threshold)
        return rows, labels
    chosen = []
    classes = candidates.scores.shape[1]
    for group in candidates.groups.unique():
        members = torch.where(candidates.groups == group)[0]
        scores = candidates.scores[members].flatten()
        above = torch.where(scores > threshold)[0]
        best = scores[above].topk(min(group_limit, len(above))).indices
        pairs = above[best]
        chosen.append(torch.stack([members[pairs // classes], pairs % classes]))
    rows, labels = torch.cat(chosen, 1)
    return rows, labels
