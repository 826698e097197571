"""The slow, obvious reference for ODAM: one ``autograd.grad`` per scalar over the full map.

It knows torchvision's modules and nothing of whybox's taps: every output is computed by torchvision's own
head on whole feature maps.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from builders import LABELS

Answer = tuple[Tensor, Tensor, Tensor]
"""Scores (N, K), boxes (N, 4) or (N, K, 4), and logits (N, K)."""


class HeldGroupNorm(nn.Module):
    """A GroupNorm whose statistics are those of recorded inputs, held constant, one for each call in turn."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.recorded: list[tuple[Tensor, Tensor]] = []
        self.recording = True
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(1, (self.norm.num_groups, -1))
        if self.recording:
            self.recorded.append(
                (
                    grouped.mean((2, 3, 4), keepdim=True).detach(),
                    (grouped.var((2, 3, 4), correction=0, keepdim=True) + self.norm.eps).sqrt().detach(),
                )
            )
            return self.norm(x)
        mean, sigma = self.recorded[self.turn % len(self.recorded)]
        self.turn += 1
        y = ((grouped - mean) / sigma).flatten(1, 2)
        return y * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]


def held(model: nn.Module) -> tuple[nn.Module, list[HeldGroupNorm]]:
    """Copy a model with every GroupNorm of its head made holdable."""
    model = copy.deepcopy(model)
    found = []
    for parent in list(model.head.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.GroupNorm):
                replacement = HeldGroupNorm(child)
                setattr(parent, name, replacement)
                found.append(replacement)
    return model, found


def full_levels(model, stages: dict[str, Tensor], stage: str | None, leaf: Tensor | None) -> OrderedDict:
    """Run body (from a stage on) and FPN on whole maps."""
    features = OrderedDict()
    x = leaf
    started = stage is None
    for name, module in model.backbone.body.items():
        if name == stage:
            started, value = True, leaf
        elif started:
            x = module(x)
            value = x
        else:
            value = stages.get(name)
        if name in model.backbone.body.return_layers:
            features[model.backbone.body.return_layers[name]] = value
    return model.backbone.fpn(features)


def outputs_of(model, pixels: Tensor, levels: OrderedDict, proposals: Tensor | None) -> tuple[Tensor, Tensor]:
    """All candidates' class scores (N, K) and boxes (N, 4) or (N, K, 4), by torchvision's own heads."""
    return all_outputs_of(model, pixels, levels, proposals)[:2]


def all_outputs_of(model, pixels: Tensor, levels: OrderedDict, proposals: Tensor | None) -> Answer:
    """What `outputs_of` gives, and the logits (N, K) of the classes."""
    size = (pixels.shape[2], pixels.shape[3])
    kind = type(model).__name__
    if kind in ("RetinaNet", "FCOS", "SSD"):
        features = list(levels.values())
        head = model.head(features)
        anchors = model.anchor_generator(ImageList(pixels, [size]), features)[0]
        logits, deltas = head["cls_logits"][0], head["bbox_regression"][0]
        if kind == "RetinaNet":
            boxes = model.head.regression_head.box_coder.decode_single(deltas, anchors)
            return logits.sigmoid(), boxes, logits
        if kind == "SSD":
            return logits.softmax(1), model.box_coder.decode_single(deltas, anchors), logits
        scores = (logits.sigmoid() * head["bbox_ctrness"][0].sigmoid()).sqrt()
        return scores, model.box_coder.decode(deltas, anchors), logits
    heads = model.roi_heads
    features = heads.box_roi_pool(levels, [proposals], [size])
    return region_outputs_of(model, features, proposals)


def region_outputs_of(model, features: Tensor, proposals: Tensor) -> Answer:
    """Scores, boxes and logits of regions, from their features."""
    heads = model.roi_heads
    logits, deltas = heads.box_predictor(heads.box_head(features))
    return logits.softmax(1)[:, 1:], heads.box_coder.decode(deltas, [proposals])[:, 1:], logits[:, 1:]


def scalar_of(target: str, scores: Tensor, boxes: Tensor, candidate: int, label: int) -> Tensor:
    """One scalar of one candidate: ``class`` or ``class:NAME``, or ``x1``, ``y1``, ``x2``, ``y2``."""
    if target == "class":
        return scores[candidate, label]
    if target.startswith("class:"):
        return scores[candidate, LABELS.index(target[6:])]
    side = ("x1", "y1", "x2", "y2").index(target)
    box = boxes[candidate, label] if boxes.ndim == 3 else boxes[candidate]
    return -box[side] if side < 2 else box[side]


def gradients_of(
    answer: Answer, leaf: Tensor, targets: Sequence[tuple[str, str]], candidate: int, label: int
) -> list[Tensor]:
    """The gradient (C, H, W) of each target by a leaf (1, C, H, W), one backward pass per scalar.

    Args:
        answer: with the graph down to the leaf.
        leaf: a layer's map, or one candidate's region features.
        targets: each with the ``score`` or ``logit`` that is meant by its class.
        candidate: position in the answer.
        label: that it is explained for.
    """
    scores, boxes, logits = answer
    gradients = []
    for target, score in targets:
        values = logits if score == "logit" else scores
        value = scalar_of(target, values, boxes, candidate, label)
        (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, materialize_grads=True)
        gradients.append(gradient[0])
    return gradients


def smooth(gradient: Tensor, sigma_x: float, sigma_y: float) -> Tensor:
    """Φ on a whole map (C, H, W): a normalised Gaussian cut at two σ, zeros beyond the border."""

    def kernel(sigma: float) -> Tensor:
        radius = int(torch.tensor(2 * sigma).ceil())
        steps = torch.arange(-radius, radius + 1, dtype=gradient.dtype)
        weights = torch.exp(-0.5 * (steps / max(sigma, 1e-6)) ** 2)
        return weights / weights.sum()

    ky, kx = kernel(sigma_y), kernel(sigma_x)
    planes = gradient[:, None]
    planes = F.conv2d(planes, ky[None, None, :, None], padding=(len(ky) // 2, 0))
    return F.conv2d(planes, kx[None, None, None, :], padding=(0, len(kx) // 2))[:, 0]
