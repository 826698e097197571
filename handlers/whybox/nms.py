"""Suppression of duplicates."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

KINDS = ("iou", "none")


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, kind: str = "iou", iou_threshold: float = 0.5
) -> Tensor:
    """Choose which boxes stay, best score first.

    Args:
        boxes: float (N, 4), [x1, y1, x2, y2].
        scores: float (N,).
        labels: int64 (N,); boxes of different labels never suppress each other.
        kind: ``iou``, greedy by score: a box goes when its IoU with a better one that stays is above
            `iou_threshold`; ``none``, all stay.
        iou_threshold: see `kind`.

    Returns:
        int64 (M,), positions of the boxes that stay.

    Raises:
        ValueError: for another kind.
    """
    if kind == "iou":
        kept: Tensor = batched_nms(boxes, scores, labels, iou_threshold)
        return kept
    if kind == "none":
        return torch.argsort(scores, descending=True, stable=True)
    raise ValueError(f"kind is one of {', '.join(KINDS)}; got {kind!r}")
