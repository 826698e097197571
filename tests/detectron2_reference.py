"""The slow reference for detectron2: one ``autograd.grad`` per scalar, through detectron2's own modules.

It knows nothing of whybox's taps: a stage is replaced by a leaf with a hook on its module, and what is above
it is the backbone's own forward pass; heads run on whole maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import FPN
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from builders import random_image
from slow_reference import Answer, gradients_of, held
from whybox.detectors.base import Batch, Forward
from whybox.detectors.detectron2 import Detectron2Detector


class SeenDetectron2:
    """A detector and its pass over one picture, as `reference_parts.Seen` has them, in double precision.

    detectron2's RPN works in single precision alone: its proposals are held.
    """

    def __init__(self, detector: Detectron2Detector) -> None:
        self.detector = detector
        self.model: Any = detector.model
        # The last row and column of the finest levels lie on the padding, where there is one.
        ((_, batch),) = detector.prepare([random_image(90, 118)])
        found = detector.forward(batch).extra.get("proposals")
        in_double(self.model)
        held = {} if found is None else {"proposals": found[0].double()}
        traced = detector.trace(Batch(batch.pixels.double(), batch.frames), held)
        self.forward: Forward = traced.forward

    def gradients(
        self,
        layer: str,
        candidate: int,
        label: int,
        level: int,
        targets: Sequence[tuple[str, str]],
        *,
        exact: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """See `reference_parts.Seen.gradients`."""
        levels = dict(self.forward.levels)
        dense = hasattr(self.model, "head")
        model, norms = held(self.model) if dense and not exact else (self.model, [])
        if norms:
            dense_outputs(model, levels)  # records the statistics
        for norm in norms:
            norm.recording = False
        if layer == "roi":
            regions = self.forward.extra["proposals"][0][candidate : candidate + 1]
            leaf = pool(model, levels, last(regions)).clone().requires_grad_()
            answer = region_outputs(model, leaf, regions, self.earlier(regions))
            candidate = 0
        else:
            if layer == "level":
                name = list(levels)[level]
                leaf = levels[name].clone().requires_grad_()
                levels[name] = leaf
            else:
                leaf = self.forward.stages[layer].clone().requires_grad_()
                levels = levels_above(model, self.forward.batch.pixels, layer, leaf)
            if dense:
                answer = dense_outputs(model, levels)
            else:
                regions = self.forward.extra["proposals"][0]
                features = pool(model, levels, last(regions))
                answer = region_outputs(model, features, regions, self.earlier(regions))
        return leaf.detach()[0], gradients_of(answer, leaf, targets, candidate, label)

    def earlier(self, regions: Tensor) -> list[Tensor]:
        """The scores of a cascade's heads but the last, held fixed."""
        if regions.ndim == 2:
            return []
        heads = self.model.roi_heads
        levels = dict(self.forward.levels)
        said = []
        with torch.no_grad():
            for k in range(regions.shape[1] - 1):
                features = heads.box_head[k](pool(self.model, levels, regions[:, k]))
                said.append(heads.box_predictor[k](features)[0].softmax(1))
        return said


class DoubleTransform:
    """A transform of boxes that computes in the precision it is given; detectron2's own rounds to single."""

    def __init__(self, transform: Box2BoxTransform) -> None:
        self.coder = BoxCoder(transform.weights, transform.scale_clamp)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        made: Tensor = self.coder.decode_single(deltas, boxes)
        return made


def in_double(model: Any) -> None:
    """Give a model double precision, also where it decodes its boxes."""
    for module in model.double().modules():
        transform = getattr(module, "box2box_transform", None)
        if isinstance(transform, Box2BoxTransform):
            module.box2box_transform = DoubleTransform(transform)


def levels_above(model: Any, pixels: Tensor, stage: str, leaf: Tensor) -> dict[str, Tensor]:
    """All that the backbone makes when a stage's output is a leaf."""
    bottom_up = model.backbone.bottom_up if isinstance(model.backbone, FPN) else model.backbone
    hook = getattr(bottom_up, stage).register_forward_hook(lambda *_: leaf)
    try:
        return dict(model.backbone(pixels))
    finally:
        hook.remove()


def dense_outputs(model: Any, levels: dict[str, Tensor]) -> Answer:
    """All candidates, by detectron2's own head."""
    features = [levels[name] for name in model.head_in_features]
    said = model.head(features)
    widths = [model.num_classes, 4, 1][: len(said)]
    logits, deltas, *quality = [
        torch.cat(of_levels, 1)[0] for of_levels in model._transpose_dense_predictions(said, widths)
    ]
    anchors = Boxes.cat(model.anchor_generator(features)).tensor
    scores = (logits.sigmoid() * quality[0].sigmoid()).sqrt() if quality else logits.sigmoid()
    return scores, model.box2box_transform.apply_deltas(deltas, anchors), logits


def last(regions: Tensor) -> Tensor:
    """What the last head of a cascade looks at."""
    return regions[:, -1] if regions.ndim == 3 else regions


def pool(model: Any, levels: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """Region features, by detectron2's own pooler."""
    heads = model.roi_heads
    pooler = heads.pooler if hasattr(heads, "res5") else heads.box_pooler
    features: Tensor = pooler([levels[name] for name in heads.in_features], [Boxes(boxes)])
    return features


def region_outputs(model: Any, features: Tensor, regions: Tensor, earlier: list[Tensor]) -> Answer:
    """Regions' answers from their features, by detectron2's own heads."""
    heads = model.roi_heads
    if hasattr(heads, "res5"):
        logits, deltas = heads.box_predictor(heads.res5(features).mean(dim=[2, 3]))
        transform = heads.box_predictor.box2box_transform
    elif regions.ndim == 3:
        logits, deltas = heads.box_predictor[-1](heads.box_head[-1](features))
        transform = heads.box_predictor[-1].box2box_transform
    else:
        logits, deltas = heads.box_predictor(heads.box_head(features))
        transform = heads.box_predictor.box2box_transform
    scores = (sum(earlier, torch.zeros(())) + logits.softmax(1)) / (len(earlier) + 1)
    boxes = transform.apply_deltas(deltas, last(regions))
    if boxes.shape[1] > 4:
        boxes = boxes.view(len(boxes), -1, 4)
    return scores[:, :-1], boxes, logits[:, :-1]
