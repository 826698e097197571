"""Set prediction: each object of a layout is asked of one query, and all other queries shall say no object.

Query-based detectors have no suppression of duplicates that could take away a second box on an object, so
that pseudo-targets are not what overlaps (`targets`) but the one matching of objects and queries that costs
least, as when such a detector is trained.

Source: Carion et al., "End-to-end object detection with transformers", ECCV 2020, section 3.1; the focal
costs and losses of sigmoids from Zhu et al., "Deformable DETR", ICLR 2021, appendix A.4.

Letters: Q queries, L objects, K classes, n of the queries matched, m of them background.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import (
    box_convert,
    generalized_box_iou,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from whybox.detectors.base import Frame
from whybox.detectors.stage_outputs import StageOutputs
from whybox.inversion.targets import Objects, PseudoTargets

CLASS_COST, FOCAL_COST, SIDES_COST, OVERLAP_COST = 1.0, 2.0, 5.0, 2.0
"""Of softmaxes, of sigmoids, of boxes as shares of the picture (L1), of generalised IoU."""

BACKGROUND_WEIGHT = 0.1
"""Of a query that shall say no object, over that of one that shall say an object, of softmaxes."""

ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss."""


@torch.no_grad()
def match_queries(
    said: StageOutputs, objects: Objects, frame: Frame, *, background: bool = True
) -> PseudoTargets:
    """Match objects and queries, one to one, at the least cost in all.

    Objects that are not wanted are matched too, and their queries left alone.

    Args:
        said: of the queries.
        objects: of the layout.
        frame: of the picture: costs of sides are shares of it.
        background: whether the other queries shall say no object.
    """
    costs = _class_costs(said, objects.labels) + SIDES_COST * torch.cdist(
        _shares(said.boxes, frame), _shares(objects.boxes, frame), p=1
    )
    costs -= OVERLAP_COST * generalized_box_iou(said.boxes, objects.boxes)  # [Q, L]
    found = linear_sum_assignment(costs.double().nan_to_num(1e9).cpu().numpy())
    rows, chosen = (torch.from_numpy(part).to(objects.labels) for part in found)
    free = torch.ones(len(said.boxes), dtype=torch.bool, device=rows.device)
    free[rows] = False
    wanted = objects.wanted[chosen]
    return PseudoTargets(rows[wanted], chosen[wanted], torch.where(free & background)[0])


def query_losses(
    said: StageOutputs, targets: PseudoTargets, objects: Objects, frame: Frame
) -> dict[str, Tensor]:
    """Return the losses of queries, without their weights.

    Args:
        said: of the queries.
        targets: what they shall say.
        objects: of the layout.
        frame: of the picture.

    Returns:
        ``cls``: of softmaxes cross-entropy, its weighted mean over the n + m; of sigmoids the focal loss,
        summed over these and the classes, over the number of objects. ``logit``: minus the mean class logit
        of the n. ``reg``: mean over the n of 1 - GIoU and, as DETR weighs the two, 2.5 times the L1 distance
        of centre and size, as shares of the picture. Each a scalar.
    """
    labels, count = objects.labels[targets.objects], len(targets.rows)
    rows = torch.cat([targets.rows, targets.background])
    boxes, wanted = said.boxes[targets.rows], objects.boxes[targets.objects]
    far = (_shares(boxes, frame) - _shares(wanted, frame)).abs().sum(1)
    regression = generalized_box_iou_loss(boxes, wanted) + SIDES_COST / OVERLAP_COST * far
    columns = labels + 1 if said.softmax else labels
    chosen = said.logits[targets.rows].gather(1, columns[:, None])[:, 0]
    return {
        "cls": _classification(said.logits[rows], labels, max(1, len(objects)), softmax=said.softmax),
        "logit": -chosen.sum() / max(1, count),
        "reg": regression.sum() / max(1, count),
    }


def _classification(logits: Tensor, labels: Tensor, objects: int, *, softmax: bool) -> Tensor:
    """Loss of the classes of queries, of which those after the labels are background."""
    count = len(labels)
    if softmax:
        wanted = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        wanted[:count] = labels + 1
        weights = logits.new_full((len(logits),), BACKGROUND_WEIGHT)
        weights[:count] = 1
        each = F.cross_entropy(logits, wanted, reduction="none")
        return (weights * each).sum() / weights.sum().clamp(min=BACKGROUND_WEIGHT)
    hot = torch.zeros_like(logits)
    hot[torch.arange(count, device=logits.device), labels] = 1
    total: Tensor = sigmoid_focal_loss(logits, hot, ALPHA, GAMMA, reduction="sum")
    return total / objects


def _class_costs(said: StageOutputs, labels: Tensor) -> Tensor:
    """What it costs to take each query for each object's class: float (Q, L)."""
    scores = said.scores()[:, labels]
    if said.softmax:
        return -CLASS_COST * scores
    logits = said.logits[:, labels]
    yes = -ALPHA * (1 - scores) ** GAMMA * F.logsigmoid(logits)
    no = -(1 - ALPHA) * scores**GAMMA * F.logsigmoid(-logits)
    return FOCAL_COST * (yes - no)


def _shares(boxes: Tensor, frame: Frame) -> Tensor:
    """Centre and size of boxes (n, 4), network frame, as shares of the picture."""
    size = boxes.new_tensor([frame.network_width, frame.network_height] * 2)
    shares: Tensor = box_convert(boxes, "xyxy", "cxcywh") / size
    return shares
