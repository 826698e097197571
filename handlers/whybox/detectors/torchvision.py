"""The torchvision family: RetinaNet, FCOS, Faster R-CNN and Mask R-CNN, any backbone with FPN."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.ssd import SSD

from whybox.detectors.base import (
    Batch,
    Candidates,
    Contenders,
    Detections,
    Forward,
    Frame,
    Grids,
    Layer,
    Outputs,
    PostProcessing,
    Tap,
    Trace,
    WhiteBoxDetector,
    group_by_shape,
    require_images,
)
from whybox.detectors.dense import Tower, locate
from whybox.detectors.postprocess import contenders
from whybox.detectors.roi_taps import Regions, RoiLevelTap, RoiTap
from whybox.detectors.stage_outputs import StageOutputs
from whybox.detectors.stage_taps import SharedTaps, StageTap, Upward
from whybox.detectors.taps import DenseHead, DenseLevelTap, PerLevelTap, level_grids
from whybox.detectors.whole_level import WholeLevelTap, spans_level


def wrap(model: nn.Module, labels: Sequence[str], *, background: bool = False) -> TorchvisionDetector:
    """Wrap a torchvision detection model.

    Args:
        model: a RetinaNet, FCOS, FasterRCNN, MaskRCNN or SSD; it is put in evaluation mode, its weights
            frozen.
        labels: the classes' names, background left out.
        background: the first class of a one-stage head is an unused background (so in torchvision's COCO
            weights); R-CNN heads always have one.

    Raises:
        TypeError: for another model.
        ValueError: if the number of labels does not fit the head.
    """
    from whybox.detectors.torchvision_ssd import SsdDetector  # which builds on this module

    kinds: dict[type, type[TorchvisionDetector]] = {
        RetinaNet: RetinaNetDetector,
        FCOS: FcosDetector,
        FasterRCNN: RcnnDetector,
        MaskRCNN: RcnnDetector,
        SSD: SsdDetector,
    }
    for kind, detector in kinds.items():
        if isinstance(model, kind):
            return detector(model, labels, background=background)
    raise TypeError(f"expected one of {[k.__name__ for k in kinds]}; got {type(model).__name__}")


class TorchvisionDetector(WhiteBoxDetector):
    """What torchvision's detectors share: the transform, the body and the FPN."""

    traces = True

    def __init__(self, model: Any, labels: Sequence[str], *, background: bool) -> None:
        """See `wrap`."""
        self.model = model.eval().requires_grad_(False)
        self.labels = tuple(labels)
        self.first = int(background)
        if len(labels) != self._head_classes() - self.first:
            raise ValueError(
                f"labels: expected {self._head_classes() - self.first} names for this head; got {len(labels)}"
            )
        if model.transform.fixed_size is None:
            # The longer side ends at `max_size`; one less, as the factor that scales both sides is rounded.
            self.max_aspect = int(model.transform.max_size) - 1
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
        stages = self._body(batch.pixels)
        levels = self._pyramid(stages)
        forward = Forward(batch, stages, levels)
        self.run_head(forward, keep=keep)
        if not keep:
            forward.stages = {}
        return forward

    def trace(self, batch: Batch, held: Mapping[str, Tensor]) -> Trace:
        """See `WhiteBoxDetector.trace`."""
        with torch.enable_grad():
            pixels = batch.pixels.detach().requires_grad_()
            stages = self._body(pixels)
            levels = self._pyramid(stages)
        own = {name: level.detach() for name, level in levels.items()}
        forward = Forward(batch, {name: stage.detach() for name, stage in stages.items()}, own)
        with torch.no_grad():
            self._held_head(forward, held)
        return Trace(forward, pixels, list(levels.values()))

    @property
    def backbone(self) -> nn.Module:
        """See `WhiteBoxDetector.backbone`."""
        backbone: nn.Module = self.model.backbone
        return backbone

    def embed(self, picture: Tensor) -> Batch:
        """See `WhiteBoxDetector.embed`."""
        listed, _ = self.model.transform([picture])
        height, width = listed.image_sizes[0]
        return Batch(listed.tensors, (Frame(picture.shape[2], picture.shape[1], width, height),))

    @torch.enable_grad()
    def stage_outputs(self, batch: Batch, regions: Tensor | None = None) -> list[StageOutputs]:
        """See `WhiteBoxDetector.stage_outputs`."""
        forward = Forward(batch, {}, self._pyramid(self._body(batch.pixels)))
        return self._stage_outputs(forward, regions)

    @abstractmethod
    def _stage_outputs(self, forward: Forward, regions: Tensor | None) -> list[StageOutputs]:
        """Run the head over levels that have their graph; see `WhiteBoxDetector.stage_outputs`."""

    def _held_head(self, forward: Forward, held: Mapping[str, Tensor]) -> None:
        """Run the head for a trace; anchors are the same in every pass."""
        del held
        self.run_head(forward, keep=True)

    def tap(
        self,
        forward: Forward,
        image: int,
        layer: str,
        candidates: Tensor,
        labels: Tensor,
        *,
        exact: bool = False,
    ) -> Tap:
        """See `WhiteBoxDetector.tap`."""
        return self.taps(forward, image, [layer], candidates, labels, exact=exact).taps[0]

    def taps(
        self,
        forward: Forward,
        image: int,
        layers: Sequence[str],
        candidates: Tensor,
        labels: Tensor,
        *,
        exact: bool = False,
    ) -> SharedTaps:
        """See `WhiteBoxDetector.taps`; the head's part is computed once for all layers."""
        for layer in layers:
            if layer not in self.layers:
                raise ValueError(f"layer is one of {', '.join(self.layers)}; got {layer!r}")
        if not forward.stages:
            raise ValueError("expected a forward pass made with keep=True")
        local = self._local_taps(forward, image, candidates, labels, exact=exact)
        names = [name for name in self.layers if name in layers and self.layers[name].kind == "stage"]
        stages = [forward.stages[name][image] for name in names]
        level_tap = local["level"]
        assert isinstance(level_tap, DenseLevelTap | PerLevelTap | RoiLevelTap)
        upward = Upward(
            level_tap,
            stages,
            lambda lowest: self._upward(names, lowest, forward, image),
        )
        one = torch.zeros_like(candidates)  # every candidate sees the same, only map
        for position, (name, stage) in enumerate(zip(names, stages, strict=True)):
            local[name] = StageTap(upward, position, grids_of(forward, image, [stage], one))
        return SharedTaps([local[layer] for layer in layers], upward)

    def _body(self, pixels: Tensor) -> dict[str, Tensor]:
        """Run the backbone: its stages, in order."""
        stages: dict[str, Tensor] = {}
        x = pixels
        for name, module in self.model.backbone.body.items():
            x = module(x)
            if next(module.children(), None) is not None:  # a stage, not a lone convolution or ReLU
                stages[name] = x
        return stages

    @torch.no_grad()
    def resume(self, forward: Forward, image: int, layer: str, maps: Sequence[Tensor]) -> Forward:
        """See `WhiteBoxDetector.resume`."""
        if not forward.stages:
            raise ValueError("expected a forward pass made with keep=True")
        if layer != "level" and layer not in forward.stages:
            raise ValueError(f"layer is one of level, {', '.join(forward.stages)}; got {layer!r}")
        own = list(forward.levels.values()) if layer == "level" else [forward.stages[layer]]
        if [m.shape[1:] for m in maps] != [m.shape[1:] for m in own]:
            raise ValueError(f"expected maps of the shapes of layer {layer!r}")
        levels = list(maps) if layer == "level" else self._upper(layer, maps[0], forward, image)
        count = len(maps[0])
        levels = [x.expand(count, -1, -1, -1) for x in levels]  # one that does not depend on the maps is one
        pixels = forward.batch.pixels[image : image + 1].expand(count, -1, -1, -1)
        batch = Batch(pixels, (forward.batch.frames[image],) * count)
        resumed = Forward(batch, {}, dict(zip(forward.levels, levels, strict=True)))
        self.run_head(resumed)
        return resumed

    def _pyramid(self, stages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = OrderedDict(
            (out, stages[name]) for name, out in self.model.backbone.body.return_layers.items()
        )
        return dict(self.model.backbone.fpn(features))

    def _upper(self, stage: str, activation: Tensor, forward: Forward, image: int) -> list[Tensor]:
        """Run the network from a stage's map (1, C, H, W) to all levels."""
        return self._upward([stage], activation, forward, image)[0]

    def _upward(
        self, names: Sequence[str], activation: Tensor, forward: Forward, image: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the network from the map (1, C, H, W) of the first of some stages, which come in order.

        Returns:
            All levels, and the maps of the stages.
        """
        below = True
        stages = {}
        x = activation
        for name, module in self.model.backbone.body.items():
            if name == names[0]:
                stages[name] = x
                below = False
            elif below and name in forward.stages:
                stages[name] = forward.stages[name][image : image + 1]
            elif not below:
                x = module(x)
                stages[name] = x
        return list(self._pyramid(stages).values()), [stages[name] for name in names]

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
    def _local_taps(
        self, forward: Forward, image: int, candidates: Tensor, labels: Tensor, *, exact: bool
    ) -> dict[str, Tap]:
        """Tap ``level``, and the other layers that are local to the candidate, by name."""


class OneStageDetector(TorchvisionDetector):
    """RetinaNet and FCOS: towers over every level, one candidate for each anchor."""

    dense = True
    stages = ("dense",)

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
        outputs, factors = self._run_towers(levels, keep=keep)
        forward.extra["anchors"] = anchors
        forward.extra["per_cell"] = per_cell
        forward.extra["raw"] = {
            name: torch.cat([_by_candidate(output, per_cell) for output in of_levels], 1)
            for name, of_levels in outputs.items()
        }
        if keep:
            forward.extra["factors"] = factors

    def _run_towers(
        self, levels: Sequence[Tensor], *, keep: bool
    ) -> tuple[dict[str, list[Tensor]], list[list[list[Tensor]]]]:
        """Run the towers on all levels.

        Returns:
            Outputs of each level by name, and for each tower and level what `Tower.run` kept.
        """
        runs = [[tower.run(level, keep=keep) for level in levels] for tower in self.towers]
        outputs = {name: [made[name] for made, _ in run] for run in runs for name in run[0][0]}
        return outputs, [[kept for _, kept in run] for run in runs]

    def candidates(self, forward: Forward, image: int) -> Candidates:
        """See `WhiteBoxDetector.candidates`."""
        raw = {name: value[image] for name, value in forward.extra["raw"].items()}
        scores, boxes = self._decode(raw, forward.extra["anchors"])
        return Candidates(boxes, scores, self._groups(forward))

    def _groups(self, forward: Forward) -> Tensor:
        """The level of every candidate: int64 (N,)."""
        counts = torch.tensor([h * w * forward.extra["per_cell"] for h, w in self._level_sizes(forward)])
        return torch.arange(len(counts)).repeat_interleave(counts).to(self.device)

    def _stage_outputs(self, forward: Forward, regions: Tensor | None) -> list[StageOutputs]:
        del regions
        self.run_head(forward)
        raw = {name: value[0] for name, value in forward.extra["raw"].items()}
        anchors = forward.extra["anchors"]
        boxes = self._decode(raw, anchors)[1]
        logits, quality = raw["logits"][:, self.first :], raw.get("centerness")
        return [
            StageOutputs(
                "dense",
                logits,
                boxes,
                anchors,
                self._groups(forward),
                quality=None if quality is None else quality[:, 0],
            )
        ]

    def detections(
        self,
        forward: Forward,
        image: int,
        settings: PostProcessing,
        *,
        between: Callable[[], None] = lambda: None,
    ) -> Detections:
        """See `WhiteBoxDetector.detections`; only what can pass the threshold is decoded."""
        raw = {name: value[image] for name, value in forward.extra["raw"].items()}
        highest = raw["logits"][:, self.first :].amax(1)
        rows = torch.where(highest > self._least_logit(settings.score_threshold))[0]
        scores, boxes = self._decode(
            {name: value[rows] for name, value in raw.items()}, forward.extra["anchors"][rows]
        )
        counts = [h * w * forward.extra["per_cell"] for h, w in self._level_sizes(forward)]
        groups = torch.bucketize(rows, torch.tensor(counts, device=rows.device).cumsum(0), right=True)
        found = self.postprocess(
            Candidates(boxes, scores, groups), forward.batch.frames[image], settings, between=between
        )
        return replace(found, candidates=rows[found.candidates])

    def _least_logit(self, threshold: float) -> float:
        """Return a class logit that every candidate has passed whose score is above the threshold."""
        del threshold
        return -math.inf

    def contenders(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Contenders:
        """See `WhiteBoxDetector.contenders`."""
        return contenders(candidates, frame, settings, group_limit=self.model.topk_candidates)

    def class_maps(self, forward: Forward, image: int, *, score: bool = False) -> list[Tensor]:
        """See `WhiteBoxDetector.class_maps`."""
        logits = forward.extra["raw"]["logits"][image][:, self.first :]  # [N, K]
        values = self.candidates(forward, image).scores if score else logits
        sizes, anchors = self._level_sizes(forward), forward.extra["per_cell"]
        parts = values.split([h * w * anchors for h, w in sizes])
        return [
            part.view(h, w, anchors, -1).permute(2, 3, 0, 1)
            for part, (h, w) in zip(parts, sizes, strict=True)
        ]

    def _head_classes(self) -> int:
        return int(self.model.head.classification_head.num_classes)

    def _defaults(self) -> PostProcessing:
        model = self.model
        return PostProcessing(model.score_thresh, model.detections_per_img, "iou", model.nms_thresh)

    def _local_taps(
        self, forward: Forward, image: int, candidates: Tensor, labels: Tensor, *, exact: bool
    ) -> dict[str, Tap]:
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
            return Outputs(scores, sides, labels, raw["logits"][:, self.first :])

        grids = grids_of(forward, image, head.levels, places.levels)
        kind = WholeLevelTap if exact and any(map(spans_level, self.towers)) else DenseLevelTap
        return {"level": kind(head, places, raw, outputs, grids, outputs(raw).sides)}


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

    def _least_logit(self, threshold: float) -> float:
        return _logit(threshold)


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

    def _least_logit(self, threshold: float) -> float:
        return _logit(threshold**2)  # of a candidate whose centre-ness is 1


class RcnnDetector(TorchvisionDetector):
    """torchvision's Faster R-CNN and Mask R-CNN: region features through the box head."""

    stages = ("rpn", "roi")

    def __init__(self, model: Any, labels: Sequence[str], *, background: bool) -> None:
        """See `wrap`; an R-CNN head always has a background class."""
        del background
        super().__init__(model, labels, background=True)
        self.masks = bool(model.roi_heads.has_mask())

    def _head_classes(self) -> int:
        return int(self.model.roi_heads.box_predictor.cls_score.out_features)

    def _defaults(self) -> PostProcessing:
        heads = self.model.roi_heads
        return PostProcessing(heads.score_thresh, heads.detections_per_img, "iou", heads.nms_thresh)

    def run_head(self, forward: Forward, *, keep: bool = False) -> None:
        """See `TorchvisionDetector.run_head`."""
        del keep  # regions are pooled again for the chosen candidates: cheaper than keeping all of them
        proposals, _ = self.model.rpn(_image_list(forward.batch), forward.levels, None)
        self._run_regions(forward, proposals)

    def hold(self, forward: Forward, image: int, candidates: Tensor) -> dict[str, Tensor]:
        """See `WhiteBoxDetector.hold`: the proposals of the candidates, in the network frame."""
        return {
            "candidates": torch.arange(len(candidates), device=candidates.device),
            "proposals": forward.extra["proposals"][image][candidates],
        }

    def _held_head(self, forward: Forward, held: Mapping[str, Tensor]) -> None:
        if "proposals" not in held:
            self.run_head(forward, keep=True)
        else:
            self._run_regions(forward, [held["proposals"]] * len(forward.batch.frames))

    def _run_regions(self, forward: Forward, proposals: list[Tensor]) -> None:
        """Run the box head over proposals (N, 4) of each picture, network frame."""
        images = _image_list(forward.batch)
        features = self.model.roi_heads.box_roi_pool(forward.levels, proposals, images.image_sizes)
        raw = self._box_head(features)
        counts = [len(p) for p in proposals]
        forward.extra["proposals"] = proposals
        forward.extra["raw"] = {name: value.split(counts) for name, value in raw.items()}

    def _box_head(self, features: Tensor) -> dict[str, Tensor]:
        heads = self.model.roi_heads
        logits, deltas = heads.box_predictor(heads.box_head(features))
        return {"logits": logits, "deltas": deltas}

    def _stage_outputs(self, forward: Forward, regions: Tensor | None) -> list[StageOutputs]:
        rpn, heads = self.model.rpn, self.model.roi_heads
        images = _image_list(forward.batch)
        levels = list(forward.levels.values())
        objectness, deltas = rpn.head(levels)
        (anchors,) = rpn.anchor_generator(images, levels)
        counts = [int(level[0].numel()) for level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        boxes = rpn.box_coder.decode(deltas, [anchors])[:, 0]  # [N, 4]
        if regions is None:
            (regions,), _ = rpn.filter_proposals(
                boxes.detach()[None], objectness.detach(), images.image_sizes, counts
            )
        groups = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(self.device)
        first = StageOutputs("rpn", objectness, boxes, anchors, groups)
        self._run_regions(forward, [regions])
        raw = {name: value[0] for name, value in forward.extra["raw"].items()}
        decoded = heads.box_coder.decode(raw["deltas"], [regions])[:, self.first :]

        def masks(boxes: Tensor, labels: Tensor) -> Tensor:
            features = heads.mask_roi_pool(forward.levels, [boxes], images.image_sizes)
            logits = heads.mask_predictor(heads.mask_head(features))  # [n, 1 + K, M, M]
            own: Tensor = logits[torch.arange(len(labels), device=labels.device), labels + self.first]
            return own

        second = StageOutputs(
            "roi",
            raw["logits"],
            decoded,
            regions,
            torch.zeros(len(regions), dtype=torch.int64, device=self.device),
            softmax=True,
            masks=masks if self.masks else None,
        )
        return [first, second]

    def candidates(self, forward: Forward, image: int) -> Candidates:
        """See `WhiteBoxDetector.candidates`."""
        proposals = forward.extra["proposals"][image]
        scores = forward.extra["raw"]["logits"][image].softmax(1)[:, self.first :]
        boxes = self.model.roi_heads.box_coder.decode(forward.extra["raw"]["deltas"][image], [proposals])
        return Candidates(
            boxes[:, self.first :], scores, proposals.new_zeros(len(proposals), dtype=torch.int64)
        )

    def contenders(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Contenders:
        """See `WhiteBoxDetector.contenders`."""
        return contenders(candidates, frame, settings, min_side=1e-2)

    def _local_taps(
        self, forward: Forward, image: int, candidates: Tensor, labels: Tensor, *, exact: bool
    ) -> dict[str, Tap]:
        del exact  # a box head sees one region: nothing of it is held
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
            logits = raw["logits"]
            return Outputs(logits.softmax(1)[:, self.first :], sides, labels[picks], logits[:, self.first :])

        raw = {name: value[image][candidates] for name, value in forward.extra["raw"].items()}
        boxes = outputs(raw, torch.arange(len(candidates), device=proposals.device)).sides
        tap = RoiTap(regions, levels, self._box_head, outputs, boxes)
        grids = grids_of(forward, image, forward.levels.values(), pooled_from)
        return {"level": RoiLevelTap(tap, grids), "roi": tap}


def grids_of(forward: Forward, image: int, maps: Iterable[Tensor], which: Tensor) -> Grids:
    """Grids of whole maps (..., H, W), and which of them each candidate has: int64 (N,)."""
    padded = forward.batch.pixels.shape
    sizes = [(m.shape[-2], m.shape[-1]) for m in maps]
    return level_grids(forward.batch.frames[image], (padded[2], padded[3]), sizes, which)


def _logit(score: float) -> float:
    """The inverse of the sigmoid, a little less for what rounding may do."""
    if not 0 < score < 1:
        return math.copysign(math.inf, score - 0.5)
    return math.log(score / (1 - score)) - 1e-3


def _image_list(batch: Batch) -> ImageList:
    """The batch as torchvision's own modules take it."""
    return ImageList(batch.pixels, [(f.network_height, f.network_width) for f in batch.frames])


def _by_candidate(output: Tensor, per_cell: int) -> Tensor:
    """Turn (B, A·width, H, W) into (B, H·W·A, width), anchors innermost."""
    split = output.unflatten(1, (per_cell, -1))  # [B, A, width, H, W]
    rows: Tensor = split.permute(0, 3, 4, 1, 2).flatten(1, 3)
    return rows
