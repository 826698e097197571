"""A layout as tensors, and how well detections fit it.

Letters: L objects, H, W pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from whybox.detectors.base import Detections
from whybox_proto import rle
from whybox_proto.v1 import explainer_pb2, types_pb2

FOUND = 0.5
"""IoU above which a detection of its class finds an object."""
CONFIDENT = 0.5
"""Score above which a detection that finds nothing is told."""


@dataclass(frozen=True)
class Layout:
    """What a picture shall show.

    Attributes:
        width, height: W and H.
        boxes: float (L, 4), image frame.
        labels: int64 (L,).
        masks: bool (L, H, W), or None where no object has one; empty for an object without.
        masked: positions of the objects that have a mask.
    """

    width: int
    height: int
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    masked: tuple[int, ...]

    @classmethod
    def of(cls, message: types_pb2.Layout, labels: Sequence[str], device: torch.device) -> Layout:
        """Read a layout that has been checked."""
        height, width = message.height, message.width
        masked = tuple(i for i, thing in enumerate(message.objects) if thing.mask)
        masks = torch.zeros(len(message.objects), height, width, dtype=torch.bool) if masked else None
        for i in masked:
            assert masks is not None
            masks[i] = torch.from_numpy(rle.decode(message.objects[i].mask, height, width))
        return cls(
            width,
            height,
            torch.tensor([list(thing.box) for thing in message.objects], device=device),
            torch.tensor([list(labels).index(thing.label) for thing in message.objects], device=device),
            None if masks is None else masks.to(device),
            masked,
        )


def matches(boxes: Tensor, labels: Tensor, found: Detections) -> Tensor:
    """Say which detection finds each object: that of its class with the highest IoU, above `FOUND`.

    A detection finds one object: of several, that which it fits best.

    Args:
        boxes: float (L, 4), of the objects.
        labels: int64 (L,).
        found: detections, in the frame of the boxes.

    Returns:
        int64 (L,), positions in `found`; -1 where there is none.
    """
    ious = box_iou(boxes, found.boxes).nan_to_num(0) * (labels[:, None] == found.labels)  # [L, D]
    chosen = torch.full((len(labels),), -1, dtype=torch.int64, device=labels.device)
    while ious.numel() and float(ious.max()) > FOUND:
        thing, detection = divmod(int(ious.argmax()), ious.shape[1])
        chosen[thing] = detection
        ious[thing] = 0
        ious[:, detection] = 0
    return chosen


def match_of(layout: Layout, found: Detections, threshold: float) -> explainer_pb2.LayoutMatch:
    """Measure how well detections fit a layout; see the message.

    Args:
        layout: what should be found.
        found: all detections, in the image frame.
        threshold: score from which a detection is told; average precision counts the others too.
    """
    told = found[found.scores >= threshold]
    chosen = matches(layout.boxes, layout.labels, told)
    there = chosen >= 0
    ious = box_iou(layout.boxes[there], told.boxes[chosen[there]]).diagonal()
    spare = torch.ones(len(told), dtype=torch.bool, device=chosen.device)
    spare[chosen[there]] = False
    return explainer_pb2.LayoutMatch(
        mean_iou=float(ious.mean()) if len(ious) else 0.0,
        recall=float(there.float().mean()),
        ap=average_precision([(layout, found)], [0.5 + 0.05 * i for i in range(10)]),
        ap50=average_precision([(layout, found)], [0.5]),
        unmatched=int((spare & (told.scores > CONFIDENT)).sum()),
    )


def average_precision(pictures: Sequence[tuple[Layout, Detections]], overlaps: Sequence[float]) -> float:
    """Return COCO's average precision over some pictures, the mean over classes and IoU thresholds, 0 to 1.

    Area under the precision-recall curve at 101 recalls; classes that no picture shows are left out.
    Source: COCO's evaluation (pycocotools), areas not told apart, all detections counted.

    Args:
        pictures: what is there and what was found, at least one object in all.
        overlaps: IoU thresholds.
    """
    classes = torch.cat([layout.labels for layout, _ in pictures]).unique().tolist()
    values = [_class_precision(pictures, label, overlap) for label in classes for overlap in overlaps]
    return sum(values) / len(values)


def _class_precision(pictures: Sequence[tuple[Layout, Detections]], label: int, overlap: float) -> float:
    scores, hits, there = [], [], 0
    for layout, found in pictures:
        boxes = layout.boxes[layout.labels == label]
        there += len(boxes)
        mine = found[found.labels == label]
        ious = box_iou(mine.boxes, boxes).nan_to_num(0)
        free = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        for position in mine.scores.argsort(descending=True, stable=True).tolist():
            fits = torch.where(free, ious[position], -1.0)
            best = int(fits.argmax()) if len(boxes) else -1
            hit = best >= 0 and float(fits[best]) >= overlap
            if hit:
                free[best] = False
            scores.append(float(mine.scores[position]))
            hits.append(hit)
    if not there:
        return 0.0
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    right = torch.tensor([hits[i] for i in order], dtype=torch.float64).cumsum(0)
    if not len(right):
        return 0.0
    precision = right / torch.arange(1, len(right) + 1)
    precision = precision.flip(0).cummax(0).values.flip(0)
    recall = right / there
    at = torch.searchsorted(recall, torch.linspace(0, 1, 101, dtype=torch.float64) - 1e-12)
    return float(torch.cat([precision, precision.new_zeros(1)])[at].mean())
