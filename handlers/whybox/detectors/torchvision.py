"""The torchvision family: RetinaNet, FCOS, Faster R-CNN and Mask R-CNN, any backbone with FPN."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList

from whybox.detectors.base import (
    Batch,
    Candidates,
    Detections,
    Forward,
    Frame,
    Grids,
    Layer,
    Outputs,
    PostProcessing,
    Tap,
    WhiteBoxDetector,
    group_by_shape,
    require_images,
)
from whybox.detectors.dense import Tower, locate
from whybox.detectors.postprocess import postprocess
from whybox.detectors.taps import (
    DenseHead,
    DenseLevelTap,
    Regions,
    RoiLevelTap,
    RoiTap,
    StageTap,
    level_grids,
)


def wrap(model: nn.Module, labels: Sequence[str], *, background: bool = False) -> TorchvisionDetector:
    """Wrap a torchvision detection model.

    Args:
        model: a RetinaNet, FCOS, FasterRCNN or MaskRCNN; it is put in evaluation mode, its weights frozen.
        labels: the classes' names, background left out.
        background: the first class of a one-stage head is an unused background (so in torchvision's COCO
            weights); R-CNN heads always have one.

    Raises:
        TypeError: for another model.
        ValueError: if the number of labels does not fit the head.
    """
    kinds: dict[type, type[TorchvisionDetector]] = {
        RetinaNet: RetinaNetDetector,
        FCOS: FcosDetector,
        FasterRCNN: RcnnDetector,
        MaskRCNN: RcnnDetector,
    }
    for kind, detector in kinds.items():
        if isinstance(model, kind):
            return detector(model, labels, background=background)
    raise TypeError(f"expected one of {[k.__name__ for k in kinds]}; got {type(model).__name__}")


class TorchvisionDetector(WhiteBoxDetector):
    """What torchvision's detectors share: the transform, the body and the FPN."""

    def __init__(self, model: Any, labels: Sequence[str], *, background: bool) -> None:
        """See `wrap`."""
        self.model = model.eval().requires_grad_(False)
        self.labels = tuple(labels)
        self.first = int(background)
        if len(labels) != self._head_classes() - self.first:
            raise ValueError(
                f"labels: expected {self._head_classes() - self.first} names for this head; got {len(labels)}"
            )
        self.defaults = self._defaults()
        self.layers = self._find_layers()

    @property
    def weight(self) -> Tensor:
        """Any of the weights: its device and dtype are the detector's."""
        parameter: Tensor = next(self.model.parameters())
        return parameter

    @property
    def device(self) -> torch.device:
        """See `Detector.device`."""
        return self.weight.device

    def to(self, device: torch.device | str) -> Self:
        """See `Detector.to`."""
        self.model.to(device)
        return self

    def prepare(self, images: Sequence[Tensor]) -> list[tuple[list[int], Batch]]:
        """See `WhiteBoxDetector.prepare`."""
        require_images(images)
        prepared = []
        for image in images:
            pixels = image.permute(2, 0, 1).to(self.weight).div(255)  # [3, H, W]
            listed, _ = self.model.transform([pixels])
            height, width = listed.image_sizes[0]
            prepared.append((listed.tensors, Frame(image.shape[1], image.shape[0], width, height)))
        return [
            (
                group,
                Batch(torch.cat([prepared[i][0] for i in group]), tuple(prepared[i][1] for i in group)),
            )
            for group in group_by_shape([tuple(pixels.shape) for pixels, _ in prepared])
        ]

    @torch.no_grad()
    def forward(self, batch: Batch, *, keep: bool = False) -> Forward:
        """See `WhiteBoxDetector.forward`."""
        stages: dict[str, Tensor] = {}
        x = batch.pixels
        for name, module in self.model.backbone.body.items():
            x = module(x)
            if next(module.children(), None) is not None:  # a stage, not a lone convolution or ReLU
                stages[name] = x
        levels = self._pyramid(stages)
        forward = Forward(batch, stages, levels)
        self.run_head(forward, keep=keep)
        if not keep:
            forward.stages = {}
        return forward

    def tap(self, forward: Forward, image: int, layer: str, candidates: Tensor, labels: Tensor) -> Tap:
        """See `WhiteBoxDetector.tap`."""
        if layer not in self.layers:
            raise ValueError(f"layer is one of {', '.join(self.layers)}; got {layer!r}")
        if not forward.stages:
            raise ValueError("expected a forward pass made with keep=True")
        if self.layers[layer].kind != "stage":
            return self._local_tap(forward, image, layer, candidates, labels)
        level_tap = self._local_tap(forward, image, "level", candidates, labels)
        assert isinstance(level_tap, DenseLevelTap | RoiLevelTap)
        stage = forward.stages[layer][image]
        return StageTap(
            level_tap,
            lambda activation: self._upper(layer, activation, forward, image),
            stage,
            _grids(forward, image, [stage], torch.zeros_like(candidates)),
        )

    def _pyramid(self, stages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = OrderedDict(
            (out, stages[name]) for name, out in self.model.backbone.body.return_layers.items()
        )
        return dict(self.model.backbone.fpn(features))

    def _upper(self, stage: str, activation: Tensor, forward: Forward, image: int) -> list[Tensor]:
        """Run the network from a stage's map (1, C, H, W) to all levels."""
        below = True
        stages = {}
        x = activation
        for name, module in self.model.backbone.body.items():
            if name == stage:
                stages[name] = x
                below = False
            elif below and name in forward.stages:
                stages[name] = forward.stages[name][image : image + 1]
            elif not below:
                x = module(x)
                stages[name] = x
        return list(self._pyramid(stages).values())

    def _find_layers(self) -> dict[str, Layer]:
        """Run a small black picture through the network to see what its layers look like."""
        side = 128
        batch = Batch(self.weight.new_zeros(1, 3, side, side), (Frame(side, side, side, side),))
        forward = self.forward(batch, keep=True)
        level = next(iter(forward.levels.values()))
        local = [Layer("level", "level", level.shape[1])]
        if isinstance(self, RcnnDetector):
            local.append(Layer("roi", "roi", level.shape[1]))
        stages = [
            Layer(name, "stage", stage.shape[1], side / stage.shape[3])
            for name, stage in forward.stages.items()
        ]
        return {layer.name: layer for layer in [*local, *stages]}

    def _level_sizes(self, forward: Forward) -> list[tuple[int, int]]:
        return [(level.shape[2], level.shape[3]) for level in forward.levels.values()]

    @abstractmethod
    def _head_classes(self) -> int:
        """Count the classes of the head, background included."""

    @abstractmethod
    def _defaults(self) -> PostProcessing:
        """Read the post-processing that the model came with."""

    @abstractmethod
    def run_head(self, forward: Forward, *, keep: bool = False) -> None:
        """Run the head over all levels and leave its outputs in `forward.extra`."""

    @abstractmethod
    def _local_tap(self, forward: Forward, image: int, layer: str, candidates: Tensor, labels: Tensor) -> Tap:
        """Tap a layer that is local to the candidate."""


class OneStageDetector(TorchvisionDetector):
    """RetinaNet and FCOS: towers over every level, one candidate for each anchor."""

    @cached_property
    def towers(self) -> list[Tower]:
        """The head's towers, checked once."""
        return self._towers()

    @abstractmethod
    def _towers(self) -> list[Tower]:
        """Take the head's towers."""

    @abstractmethod
    def _decode(self, raw: Mapping[str, Tensor], anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Decode raw outputs (..., width) into class scores (..., K) and boxes (..., 4)."""

    def run_head(self, forward: Forward, *, keep: bool = False) -> None:
        """See `TorchvisionDetector.run_head`."""
        levels = list(forward.levels.values())
        anchors = self.model.anchor_generator(_image_list(forward.batch), levels)[
            0
        ]  # [N, 4], the same for every picture
        per_cell = len(anchors) // sum(h * w for h, w in self._level_sizes(forward))
        runs = [[tower.run(level, keep=keep) for level in levels] for tower in self.towers]
        forward.extra["anchors"] = anchors
        forward.extra["per_cell"] = per_cell
        forward.extra["raw"] = {
            name: torch.cat([_by_candidate(outputs[name], per_cell) for outputs, _ in run], 1)
            for run in runs
            for name in run[0][0]
        }
        if keep:
            forward.extra["factors"] = [[factors for _, factors in run] for run in runs]

    def candidates(self, forward: Forward, image: int) -> Candidates:
        """See `WhiteBoxDetector.candidates`."""
        raw = {name: value[image] for name, value in forward.extra["raw"].items()}
        scores, boxes = self._decode(raw, forward.extra["anchors"])
        counts = torch.tensor([h * w * forward.extra["per_cell"] for h, w in self._level_sizes(forward)])
        groups = torch.arange(len(counts)).repeat_interleave(counts).to(boxes.device)
        return Candidates(boxes, scores, groups)

    def postprocess(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Detections:
        """See `WhiteBoxDetector.postprocess`."""
        return postprocess(candidates, frame, settings, group_limit=self.model.topk_candidates)

    def _head_classes(self) -> int:
        return int(self.model.head.classification_head.num_classes)

    def _defaults(self) -> PostProcessing:
        model = self.model
        return PostProcessing(model.score_thresh, model.detections_per_img, "iou", model.nms_thresh)

    def _local_tap(self, forward: Forward, image: int, layer: str, candidates: Tensor, labels: Tensor) -> Tap:
        del layer  # the level is the only local one
        extra = forward.extra
        head = DenseHead(
            self.towers,
            [[[f[image] for f in level] for level in tower] for tower in extra["factors"]],
            [level[image] for level in forward.levels.values()],
        )
        places = locate(candidates, head.sizes, extra["per_cell"])
        anchors = extra["anchors"][candidates]
        raw = {name: value[image, candidates] for name, value in extra["raw"].items()}

        def outputs(raw: Mapping[str, Tensor]) -> Outputs:
            scores, sides = self._decode(raw, anchors)
            return Outputs(scores, sides, labels)

        return DenseLevelTap(
            head, places, raw, outputs, _grids(forward, image, head.levels, places.levels), outputs(raw).sides
        )


class RetinaNetDetector(OneStageDetector):
    """torchvision's RetinaNet."""

    def _towers(self) -> list[Tower]:
        classification, regression = self.model.head.classification_head, self.model.head.regression_head
        return [
            Tower.of(classification.conv, logits=classification.cls_logits),
            Tower.of(regression.conv, deltas=regression.bbox_reg),
        ]

    def _decode(self, raw: Mapping[str, Tensor], anchors: Tensor) -> tuple[Tensor, Tensor]:
        scores = raw["logits"][:, self.first :].sigmoid()
        return scores, self.model.head.regression_head.box_coder.decode_single(raw["deltas"], anchors)


class FcosDetector(OneStageDetector):
    """torchvision's FCOS; the final score is the geometric mean of class and centre-ness."""

    def _towers(self) -> list[Tower]:
        classification, regression = self.model.head.classification_head, self.model.head.regression_head
        return [
            Tower.of(classification.conv, logits=classification.cls_logits),
            Tower.of(regression.conv, distances=regression.bbox_reg, centerness=regression.bbox_ctrness),
        ]

    def _decode(self, raw: Mapping[str, Tensor], anchors: Tensor) -> tuple[Tensor, Tensor]:
        logits = raw["logits"][:, self.first :]
        # The root of the product of two sigmoids; in logarithms its derivative stays finite.
        scores = (0.5 * (logsigmoid(logits) + logsigmoid(raw["centerness"]))).exp()
        return scores, self.model.box_coder.decode(raw["distances"].relu(), anchors)


class RcnnDetector(TorchvisionDetector):
    """torchvision's Faster R-CNN and Mask R-CNN: region features through the box head."""

    def __init__(self, model: Any, labels: Sequence[str], *, background: bool) -> None:
        """See `wrap`; an R-CNN head always has a background class."""
        del background
        super().__init__(model, labels, background=True)

    def _head_classes(self) -> int:
        return int(self.model.roi_heads.box_predictor.cls_score.out_features)

    def _defaults(self) -> PostProcessing:
        heads = self.model.roi_heads
        return PostProcessing(heads.score_thresh, heads.detections_per_img, "iou", heads.nms_thresh)

    def run_head(self, forward: Forward, *, keep: bool = False) -> None:
        """See `TorchvisionDetector.run_head`."""
        del keep  # regions are pooled again for the chosen candidates: cheaper than keeping all of them
        images = _image_list(forward.batch)
        proposals, _ = self.model.rpn(images, forward.levels, None)
        features = self.model.roi_heads.box_roi_pool(forward.levels, proposals, images.image_sizes)
        raw = self._box_head(features)
        counts = [len(p) for p in proposals]
        forward.extra["proposals"] = proposals
        forward.extra["raw"] = {name: value.split(counts) for name, value in raw.items()}

    def _box_head(self, features: Tensor) -> dict[str, Tensor]:
        heads = self.model.roi_heads
        logits, deltas = heads.box_predictor(heads.box_head(features))
        return {"logits": logits, "deltas": deltas}

    def candidates(self, forward: Forward, image: int) -> Candidates:
        """See `WhiteBoxDetector.candidates`."""
        proposals = forward.extra["proposals"][image]
        scores = forward.extra["raw"]["logits"][image].softmax(1)[:, self.first :]
        boxes = self.model.roi_heads.box_coder.decode(forward.extra["raw"]["deltas"][image], [proposals])
        return Candidates(
            boxes[:, self.first :], scores, proposals.new_zeros(len(proposals), dtype=torch.int64)
        )

    def postprocess(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Detections:
        """See `WhiteBoxDetector.postprocess`."""
        return postprocess(candidates, frame, settings, min_side=1e-2)

    def _local_tap(self, forward: Forward, image: int, layer: str, candidates: Tensor, labels: Tensor) -> Tap:
        heads = self.model.roi_heads
        pool = heads.box_roi_pool
        proposals = forward.extra["proposals"][image][candidates]
        names = [str(name) for name in pool.featmap_names]
        levels = [forward.levels[name][image] for name in names]
        pooled_from = pool.map_levels([proposals])
        regions = Regions(proposals, pooled_from, pool.scales, tuple(pool.output_size), pool.sampling_ratio)

        def outputs(raw: Mapping[str, Tensor], picks: Tensor) -> Outputs:
            columns = (labels[picks, None] + self.first) * 4 + torch.arange(4, device=picks.device)
            sides = heads.box_coder.decode_single(raw["deltas"].gather(1, columns), proposals[picks])
            return Outputs(raw["logits"].softmax(1)[:, self.first :], sides, labels[picks])

        raw = {name: value[image][candidates] for name, value in forward.extra["raw"].items()}
        boxes = outputs(raw, torch.arange(len(candidates), device=proposals.device)).sides
        tap = RoiTap(regions, levels, self._box_head, outputs, boxes)
        return (
            tap
            if layer == "roi"
            else RoiLevelTap(tap, _grids(forward, image, forward.levels.values(), pooled_from))
        )


def _grids(forward: Forward, image: int, maps: Iterable[Tensor], which: Tensor) -> Grids:
    """Grids of whole maps (..., H, W), and which of them each candidate has: int64 (N,)."""
    padded = forward.batch.pixels.shape
    sizes = [(m.shape[-2], m.shape[-1]) for m in maps]
    return level_grids(forward.batch.frames[image], (padded[2], padded[3]), sizes, which)


def _image_list(batch: Batch) -> ImageList:
    """The batch as torchvision's own modules take it."""
    return ImageList(batch.pixels, [(f.network_height, f.network_width) for f in batch.frames])


def _by_candidate(output: Tensor, per_cell: int) -> Tensor:
    """Turn (B, A·width, H, W) into (B, H·W·A, width), anchors innermost."""
    split = output.unflatten(1, (per_cell, -1))  # [B, A, width, H, W]
    rows: Tensor = split.permute(0, 3, 4, 1, 2).flatten(1, 3)
    return rows
