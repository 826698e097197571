"""How far what a network says is from its pseudo-targets.

Letters: N candidates, n that shall be objects, m that shall be background, K classes, L objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, roi_align, sigmoid_focal_loss

from whybox.detectors.stage_outputs import StageOutputs
from whybox.inversion.settings import Settings
from whybox.inversion.targets import Objects, PseudoTargets


def stage_losses(
    proposals: StageOutputs, targets: PseudoTargets, objects: Objects, settings: Settings
) -> dict[str, Tensor]:
    """Return the losses of one stage, without their weights.

    Args:
        proposals: what the stage says.
        targets: what it shall say.
        objects: of the layout.
        settings: the loss of the classes, and the levels' weights.

    Returns:
        ``cls``: of the classes, the mean over the n, plus the sum over the m over the number of objects. It
        takes in FCOS' centre-ness. ``logit``: minus the mean class logit of the n. ``reg``: mean of
        1 - GIoU of the n. Each a scalar, the candidates weighted by their level.
    """
    labels = objects.labels if proposals.stage != "rpn" else torch.zeros_like(objects.labels)
    labels = labels[targets.objects]  # [n]
    rows, count = torch.cat([targets.rows, targets.background]), len(targets.rows)
    weights = _level_weights(proposals, rows, settings.levels)
    each = _classification(proposals, rows, labels, focal=settings.classification == "focal")
    each = each * weights
    share = weights[:count] / max(1, count)
    columns = labels + 1 if proposals.softmax else labels
    chosen = proposals.logits[targets.rows].gather(1, columns[:, None])[:, 0]
    boxes = proposals.boxes_of(targets.rows, labels)
    regression = generalized_box_iou_loss(boxes, objects.boxes[targets.objects])
    return {
        "cls": each[:count].sum() / max(1, count) + each[count:].sum() / max(1, len(objects)),
        "logit": -(chosen * share).sum(),
        "reg": (regression * share).sum(),
    }


def mask_bins(masks: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Cut masks into the bins of a mask head: float (L, M, M), 0 or 1.

    Args:
        masks: bool (L, H, W).
        boxes: float (L, 4), in their pixels; M bins over each.
        side: M.
    """
    each = [
        roi_align(mask[None, None].float(), [box[None].float()], side, aligned=True)
        for mask, box in zip(masks, boxes, strict=True)
    ]
    return (torch.cat(each)[:, 0] >= 0.5).float()


def mask_loss(
    proposals: StageOutputs, objects: Objects, which: Sequence[int], bins: Callable[[int], Tensor]
) -> Tensor:
    """Cross-entropy of the objects' masks: a scalar, the mean over the bins of those that have one.

    Args:
        proposals: of a stage with masks.
        objects: of the layout; their own boxes are looked at, as the detector does at the end.
        which: positions of the objects whose masks count, at least one.
        bins: M → what the masks shall be, float (L, M, M); see `mask_bins`.
    """
    assert proposals.masks is not None
    logits = proposals.masks(objects.boxes[list(which)], objects.labels[list(which)])  # [n, M, M]
    wanted = bins(logits.shape[-1])[list(which)].to(logits)
    return F.binary_cross_entropy_with_logits(logits, wanted)


def _classification(proposals: StageOutputs, rows: Tensor, labels: Tensor, *, focal: bool) -> Tensor:
    """Loss of the classes of candidates, of which those after the labels are background: (n + m,)."""
    logits, count = proposals.logits[rows], len(labels)
    if proposals.softmax:
        wanted = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        wanted[:count] = labels + 1
        return F.cross_entropy(logits, wanted, reduction="none")
    hot = torch.zeros_like(logits)
    hot[torch.arange(count, device=rows.device), labels] = 1
    loss: Tensor = (
        sigmoid_focal_loss(logits, hot)
        if focal
        else F.binary_cross_entropy_with_logits(logits, hot, reduction="none")
    ).sum(1)
    if proposals.quality is not None:  # of what is background it may be what it will
        quality = proposals.quality[rows[:count]]
        raised = F.binary_cross_entropy_with_logits(quality, torch.ones_like(quality), reduction="none")
        loss = loss + F.pad(raised, (0, len(rows) - count))
    return loss


def _level_weights(proposals: StageOutputs, rows: Tensor, weights: Sequence[float]) -> Tensor:
    """Weight of each candidate: its level's, the last one's for levels beyond; 1 where none are given."""
    if not weights or proposals.stage == "roi":
        return torch.ones(len(rows), device=rows.device)
    table = torch.tensor(weights, dtype=torch.float32, device=rows.device)
    return table[proposals.groups[rows].clamp(max=len(weights) - 1)]
