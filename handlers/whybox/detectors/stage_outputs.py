"""What a network says before post-processing, with its graph: what layout inversion differentiates.

Letters: N candidates, K classes, M bins on a mask's side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StageOutputs:
    """The raw outputs of one stage of a network for one picture, differentiable by the picture.

    Attributes:
        stage: ``dense`` (a one-stage detector's only one), ``rpn`` (objects of no class) and ``roi``, or
            ``queries`` (of which each object shall be found by one alone).
        logits: float (N, K); with `softmax` (N, 1 + K), background first.
        boxes: float (N, 4), or (N, K, 4) where the box depends on the class; network frame, not clipped.
        anchors: float (N, 4), network frame: what the boxes are decoded from, anchors or proposals.
        groups: int64 (N,), the pyramid level of each, 0 the finest; all 0 where levels mean nothing.
        softmax: the classes exclude each other; else each has a sigmoid of its own.
        quality: float (N,), a logit whose sigmoid multiplies the scores before their root (FCOS'
            centre-ness); None where there is none.
        masks: boxes (n, 4), network frame, and classes int64 (n,) → logits (n, M, M) of their masks, over
            the box; None for a detector without masks.
    """

    stage: str
    logits: Tensor
    boxes: Tensor
    anchors: Tensor
    groups: Tensor
    softmax: bool = False
    quality: Tensor | None = None
    masks: Callable[[Tensor, Tensor], Tensor] | None = None

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Return the scores of every class without the graph, background left out: float (N, K)."""
        scores = self.logits.softmax(1)[:, 1:] if self.softmax else self.logits.sigmoid()
        return scores if self.quality is None else (scores * self.quality.sigmoid()[:, None]).sqrt()

    def boxes_of(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the boxes of (candidate, class) pairs, int64 (n,) each: float (n, 4), network frame."""
        return self.boxes[rows, labels] if self.boxes.ndim == 3 else self.boxes[rows]
