"""How detections of changed pictures answer to given ones: D-RISE's similarity, and the best match.

Letters: M changed pictures, D detections of all of them together, N target detections, K classes. The
detections of the M pictures lie in one flat list, so one IoU matrix serves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.ops import box_iou

from whybox.detectors.base import Detections


@dataclass(frozen=True)
class Found:
    """What a detector finds in M pictures.

    Attributes:
        detections: D, picture by picture, best score first within each.
        pictures: int64 (D,), the picture that each is of, 0 to M - 1.
        count: M, pictures without a detection included.
    """

    detections: Detections
    pictures: Tensor
    count: int

    @classmethod
    def of(cls, found: Sequence[Detections]) -> Found:
        """Join the detections of M pictures, at least one.

        Raises:
            ValueError: if there is no picture.
        """
        if not found:
            raise ValueError("expected the detections of at least one picture")
        joined = [torch.cat([getattr(f, name) for f in found]) for name in Detections.__dataclass_fields__]
        counts = torch.tensor([len(f) for f in found], device=joined[0].device)
        pictures = torch.arange(len(found), device=joined[0].device).repeat_interleave(counts)
        return cls(Detections(*joined), pictures, len(found))

    def best(self, values: Tensor, least: float = 0.0) -> Tensor:
        """Return the largest value of each picture.

        Args:
            values: float (D, N), a row for each detection.
            least: what a picture without detections has, and the least that any has.

        Returns:
            float (M, N).
        """
        best = values.new_full((self.count, values.shape[1]), least)
        rows = self.pictures[:, None].expand_as(values)
        return best.scatter_reduce_(0, rows, values, "amax")


def similarities(boxes: Tensor, class_scores: Tensor, found: Found) -> Tensor:
    """How much of each target detection is still found in each picture: D-RISE's similarity.

    The largest product, over a picture's detections, of the IoU of the boxes and the cosine of the class
    vectors; 0 for a picture without detections, and against a class vector of zeros. The paper's third
    factor, objectness, is left out, as the paper does for detectors that give none.

    Source: Petsiuk et al., "Black-box explanation of object detectors via saliency maps", CVPR 2021,
    equations 3 to 6.

    Args:
        boxes: float (N, 4), of the targets, in the frame of the detections.
        class_scores: float (N, K), of the targets.
        found: in M pictures.

    Returns:
        float (M, N), 0 to 1.
    """
    overlap = _overlaps(found, boxes)  # [D, N]
    cosine = normalize(found.detections.class_scores) @ normalize(class_scores).T  # [D, N]
    return found.best(overlap * cosine)


@dataclass(frozen=True)
class Matches:
    """The best match of N targets in M pictures.

    Attributes:
        positions: int64 (M, N), in `Found.detections`; -1 where there is none.
        overlaps: float (M, N), IoU with the target; 0 where there is none.
        scores: float (M, N), of the match; 0 where there is none.
    """

    positions: Tensor
    overlaps: Tensor
    scores: Tensor


def best_matches(boxes: Tensor, labels: Tensor, found: Found, *, min_overlap: float = 0.0) -> Matches:
    """Find in each picture the detection of a target's class with the highest IoU to the target's box.

    Of equal ones the first is taken, which has the higher score.

    Args:
        boxes: float (N, 4), of the targets, in the frame of the detections.
        labels: int64 (N,), of the targets.
        found: in M pictures.
        min_overlap: IoU that a match must exceed. At the default of 0 a box that does not touch the target's
            is none.
    """
    detections = found.detections
    overlap = _overlaps(found, boxes)  # [D, N]
    fits = (detections.labels[:, None] == labels) & (overlap > min_overlap)
    overlap = torch.where(fits, overlap, 0)
    overlaps = found.best(overlap)  # [M, N]
    # Among the best of a picture, the first: the largest of the positions counted backwards.
    size = len(detections)
    backwards = torch.arange(size, 0, -1, device=labels.device)[:, None]  # [D, 1], D to 1
    is_best = fits & (overlap == overlaps[found.pictures])
    positions = size - found.best(torch.where(is_best, backwards, 0))  # [M, N]; D where there is none
    there = positions < size
    scores = torch.cat([detections.scores, detections.scores.new_zeros(1)])[positions]
    return Matches(torch.where(there, positions, -1), overlaps, scores)


def _overlaps(found: Found, boxes: Tensor) -> Tensor:
    """IoU of all detections with the targets, float (D, N); that of two boxes without area is 0."""
    overlaps: Tensor = box_iou(found.detections.boxes, boxes).nan_to_num(0)
    return overlaps
