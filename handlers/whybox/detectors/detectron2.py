"""The detectron2 family: RetinaNet, FCOS, Faster, Mask and Cascade R-CNN, on a ResNet with or without FPN."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from detectron2.layers import ROIAlign
from detectron2.modeling import FCOS, FPN, GeneralizedRCNN, ResNet, RetinaNet
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from whybox.detectors.base import (
    Batch,
    Candidates,
    Contenders,
    Forward,
    Frame,
    Grids,
    Outputs,
    PostProcessing,
    require_images,
)
from whybox.detectors.dense import Tower
from whybox.detectors.network import batches_of
from whybox.detectors.one_stage import OneStageDetector, least_logit, root_of_sigmoids
from whybox.detectors.postprocess import contenders
from whybox.detectors.pyramid import PyramidDetector
from whybox.detectors.roi_taps import Regions
from whybox.detectors.stage_outputs import StageOutputs
from whybox.detectors.taps import strided_grids
from whybox.detectors.two_stage import RegionHead, TwoStageDetector

ALL_DETECTIONS = 10_000
"""Most that are kept where a model has no limit."""


@dataclass(frozen=True)
class Pictures:
    """How a model takes pictures, as `DefaultPredictor` prepares them.

    Attributes:
        min_size: pixels of the shorter side after resizing; 0 to leave pictures as they are.
        max_size: pixels that the longer side may have then.
        format: ``BGR`` or ``RGB``, the order of the network's channels.
    """

    min_size: int
    max_size: int
    format: str


def wrap(model: nn.Module, labels: Sequence[str], pictures: Pictures) -> Detectron2Detector:
    """Wrap a detectron2 model.

    Args:
        model: a RetinaNet, FCOS or GeneralizedRCNN; it is put in evaluation mode, its weights frozen.
        labels: the classes' names.
        pictures: how it takes pictures.

    Raises:
        TypeError: for another model, or one with parts that cannot be looked into.
        ValueError: if the number of labels does not fit the head.
    """
    if isinstance(model, FCOS):
        return FcosDetector(model, labels, pictures)
    if isinstance(model, RetinaNet):
        return RetinaNetDetector(model, labels, pictures)
    if isinstance(model, GeneralizedRCNN):
        cascade = isinstance(model.roi_heads, CascadeROIHeads)
        return (CascadeDetector if cascade else RcnnDetector)(model, labels, pictures)
    raise TypeError(f"expected a RetinaNet, FCOS or GeneralizedRCNN; got {type(model).__name__}")


class Detectron2Detector(PyramidDetector):
    """What detectron2's detectors share: preprocessing, the backbone, and boxes trimmed in the end."""

    def __init__(self, model: Any, labels: Sequence[str], pictures: Pictures) -> None:
        """See `wrap`."""
        super().__init__(model, labels)
        self.pictures = pictures
        self.require_labels(self._head_classes())
        if pictures.min_size:
            # The longer side ends at `max_size` at most, and the shorter one is rounded: half a pixel is one.
            self.max_aspect = 2 * pictures.max_size - 1
        backbone = model.backbone
        self._bottom_up = backbone.bottom_up if isinstance(backbone, FPN) else backbone
        if not isinstance(self._bottom_up, ResNet):
            raise TypeError(f"backbone: expected a ResNet; got {type(self._bottom_up).__name__}")
        self._top = _without_bottom_up(backbone) if isinstance(backbone, FPN) else None
        self._strides: dict[str, int] = {**self._bottom_up._out_feature_strides}
        self._strides |= {name: shape.stride for name, shape in backbone.output_shape().items()}
        self._level_names = by_stride(self._head_levels(), self._strides)
        self.defaults = self._defaults()
        self.layers = self._find_layers()

    def prepare(self, images: Sequence[Tensor]) -> list[tuple[list[int], Batch]]:
        """See `WhiteBoxDetector.prepare`."""
        require_images(images)
        prepared = []
        for image in images:
            height, width = image.shape[:2]
            pixels = image.cpu().numpy()
            if self.pictures.min_size:
                size = self._size(height, width)
                pixels = ResizeTransform(height, width, *size).apply_image(pixels)  # by Pillow, as uint8
            planes = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)).to(self.weight)
            prepared.append(self._normalised(planes, (height, width)))
        return batches_of(prepared)

    def embed(self, picture: Tensor) -> Batch:
        """See `WhiteBoxDetector.embed`; what Pillow rounds when it resizes is not rounded."""
        height, width = picture.shape[1:]
        planes = picture * 255
        if self.pictures.min_size:
            size = self._size(height, width)
            if size != (height, width):
                planes = F.interpolate(planes[None], size, mode="bilinear", antialias=True)[0]
        pixels, frame = self._normalised(planes, (height, width))
        return Batch(pixels, (frame,))

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing."""
        edge, longest = self.pictures.min_size, self.pictures.max_size
        size: tuple[int, int] = ResizeShortestEdge.get_output_shape(height, width, edge, longest)
        return size

    def _normalised(self, planes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Frame]:
        """Normalise and pad RGB planes (3, h, w), 0 to 255; `size` is (height, width) before resizing."""
        if self.pictures.format == "BGR":
            planes = planes.flip(0)
        listed = self.model.preprocess_image([{"image": planes}])
        return listed.tensor, Frame(size[1], size[0], planes.shape[2], planes.shape[1])

    def _chain(self) -> Iterable[tuple[str, nn.Module, bool]]:
        yield "stem", self._bottom_up.stem, False
        for name, stage in zip(self._bottom_up.stage_names, self._bottom_up.stages, strict=True):
            yield name, stage, True

    def _pyramid(self, stages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = stages if self._top is None else self._top(stages)
        return {name: features[name] for name in self._level_names}

    def _grids(self, forward: Forward, image: int, names: Iterable[str], which: Tensor) -> Grids:
        """See `NetworkDetector._grids`; a backbone without FPN takes pictures that are not padded."""
        known = list(names)
        maps = [forward.levels[name] if name in forward.levels else forward.stages[name] for name in known]
        sizes = [(m.shape[-2], m.shape[-1]) for m in maps]
        strides = [self._strides[name] for name in known]
        return strided_grids(forward.batch.frames[image], strides, sizes, which)

    @abstractmethod
    def _head_classes(self) -> int:
        """Count the classes of the head, background left out."""

    @abstractmethod
    def _head_levels(self) -> set[str]:
        """Name the backbone's outputs that the heads look at."""

    @abstractmethod
    def _defaults(self) -> PostProcessing:
        """Read the post-processing that the model came with."""


class DenseDetector(OneStageDetector, Detectron2Detector):
    """What detectron2's RetinaNet and FCOS share."""

    def _anchors(self, batch: Batch, levels: Sequence[Tensor]) -> Tensor:
        anchors: Tensor = Boxes.cat(self.model.anchor_generator(list(levels))).tensor
        return anchors.to(batch.pixels)

    def _decode_boxes(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        boxes: Tensor = self.model.box2box_transform.apply_deltas(deltas, anchors)
        return boxes.to(anchors)

    def contenders(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Contenders:
        """See `WhiteBoxDetector.contenders`; boxes are compared before they are clipped."""
        limit = self.model.test_topk_candidates
        return contenders(candidates, frame, settings, group_limit=limit, clip=False, trim=True)

    def _head_classes(self) -> int:
        return int(self.model.num_classes)

    def _head_levels(self) -> set[str]:
        return set(self.model.head_in_features)

    def _defaults(self) -> PostProcessing:
        model = self.model
        limit = _limit(model.max_detections_per_image)
        return PostProcessing(model.test_score_thresh, limit, "iou", model.test_nms_thresh)


class RetinaNetDetector(DenseDetector):
    """detectron2's RetinaNet."""

    def _towers(self) -> list[Tower]:
        head = self.model.head
        return [
            Tower.of(head.cls_subnet, logits=head.cls_score),
            Tower.of(head.bbox_subnet, deltas=head.bbox_pred),
        ]

    def _decode(self, raw: Mapping[str, Tensor], anchors: Tensor) -> tuple[Tensor, Tensor]:
        return raw["logits"].sigmoid(), self._decode_boxes(raw["deltas"], anchors)

    def _least_logit(self, threshold: float) -> float:
        return least_logit(threshold)


class FcosDetector(DenseDetector):
    """detectron2's FCOS; the final score is the geometric mean of class and centre-ness."""

    def _towers(self) -> list[Tower]:
        head = self.model.head
        return [
            Tower.of(head.cls_subnet, logits=head.cls_score),
            Tower.of(head.bbox_subnet, deltas=head.bbox_pred, centerness=head.ctrness),
        ]

    def _decode(self, raw: Mapping[str, Tensor], anchors: Tensor) -> tuple[Tensor, Tensor]:
        scores = root_of_sigmoids(raw["logits"], raw["centerness"])
        return scores, self._decode_boxes(raw["deltas"], anchors)

    def _least_logit(self, threshold: float) -> float:
        return least_logit(threshold**2)  # of a candidate whose centre-ness is 1


class RcnnDetector(TwoStageDetector, Detectron2Detector):
    """detectron2's Faster and Mask R-CNN: over FPN, over one stage (DC5), with a stage in the head (C4)."""

    def __init__(self, model: Any, labels: Sequence[str], pictures: Pictures) -> None:
        """See `wrap`."""
        heads = model.roi_heads
        if not isinstance(model.proposal_generator, RPN):
            raise TypeError(f"proposals: expected an RPN; got {type(model.proposal_generator).__name__}")
        if not isinstance(heads, Res5ROIHeads | StandardROIHeads):
            raise TypeError(f"roi_heads: expected Res5ROIHeads, StandardROIHeads; got {type(heads).__name__}")
        self._res5 = heads.res5 if isinstance(heads, Res5ROIHeads) else None
        self._pooler = heads.pooler if self._res5 is not None else heads.box_pooler
        self.masks = bool(heads.mask_on) and (self._res5 is not None or heads.mask_pooler is not None)
        own = [heads.mask_pooler] if self.masks and self._res5 is None else []  # of the masks alone
        for pooler in (level for each in (self._pooler, *own) for level in each.level_poolers):
            if not isinstance(pooler, ROIAlign):
                raise TypeError(f"roi_heads: expected RoIAlign; got {pooler}")
        super().__init__(model, labels, pictures)

    @property
    def _predictor(self) -> Any:
        """What says classes and boxes in the end."""
        return self.model.roi_heads.box_predictor

    def _head_classes(self) -> int:
        return int(self.model.roi_heads.num_classes)

    def _head_levels(self) -> set[str]:
        heads = self.model.roi_heads
        masks = heads.mask_in_features if self.masks and self._res5 is None else []
        return {*self.model.proposal_generator.in_features, *heads.in_features, *masks}

    def _defaults(self) -> PostProcessing:
        last = self._predictor
        limit = _limit(last.test_topk_per_image)
        return PostProcessing(last.test_score_thresh, limit, "iou", last.test_nms_thresh)

    def _propose(self, forward: Forward) -> list[Tensor]:
        found, _ = self.model.proposal_generator(_image_list(forward.batch), forward.levels, None)
        return [each.proposal_boxes.tensor.to(forward.batch.pixels) for each in found]

    def _run_regions(self, forward: Forward, proposals: list[Tensor]) -> None:
        raw = self._box_head(self._pool(forward, proposals))
        counts = [len(p) for p in proposals]
        forward.extra["proposals"] = proposals
        forward.extra["raw"] = {name: value.split(counts) for name, value in raw.items()}

    def _pool(self, forward: Forward, boxes: Sequence[Tensor]) -> Tensor:
        """Pool the features of boxes (N, 4) of each picture: float (ΣN, C, h, w)."""
        maps = [forward.levels[name] for name in self.model.roi_heads.in_features]
        features: Tensor = self._pooler(maps, [Boxes(each) for each in boxes])
        return features

    def _box_head(self, features: Tensor) -> dict[str, Tensor]:
        heads = self.model.roi_heads
        seen = heads.box_head(features) if self._res5 is None else self._res5(features).mean((2, 3))
        logits, deltas = heads.box_predictor(seen)
        return {"logits": logits, "deltas": deltas}

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Scores of the classes, and of the background last: (..., K + 1)."""
        return logits.sigmoid() if self._predictor.use_sigmoid_ce else logits.softmax(-1)

    def _decode_boxes(self, deltas: Tensor, regions: Tensor) -> Tensor:
        """Boxes of regions (N, 4): float (N, 4), or (N, K, 4) where they depend on the class."""
        boxes: Tensor = self._predictor.box2box_transform.apply_deltas(deltas, regions).to(regions)
        return boxes if boxes.shape[1] == 4 else boxes.unflatten(1, (-1, 4))

    def candidates(self, forward: Forward, image: int) -> Candidates:
        """See `WhiteBoxDetector.candidates`."""
        raw = {name: value[image] for name, value in forward.extra["raw"].items()}
        proposals = forward.extra["proposals"][image]
        scores = self._probabilities(raw["logits"])[:, :-1]
        groups = proposals.new_zeros(len(proposals), dtype=torch.int64)
        return Candidates(self._decode_boxes(raw["deltas"], proposals), scores, groups)

    def contenders(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Contenders:
        """See `WhiteBoxDetector.contenders`."""
        return contenders(candidates, frame, settings, trim=True)

    def _regions(self, boxes: Tensor) -> Regions:
        """Return how the features of boxes (N, 4) are pooled, levels counted among all of the pyramid."""
        pooler, names = self._pooler, self.model.roi_heads.in_features
        which = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        if len(names) > 1:
            which = assign_boxes_to_levels(
                [Boxes(boxes)],
                pooler.min_level,
                pooler.max_level,
                pooler.canonical_box_size,
                pooler.canonical_level,
            )
        places = torch.tensor([self._level_names.index(name) for name in names], device=boxes.device)
        one = pooler.level_poolers[0]
        scales = [1 / self._strides[name] for name in self._level_names]
        return Regions(
            boxes, places[which], scales, tuple(pooler.output_size), max(0, one.sampling_ratio), one.aligned
        )

    def _region_head(self, forward: Forward, image: int, candidates: Tensor, labels: Tensor) -> RegionHead:
        proposals = forward.extra["proposals"][image][candidates]

        def outputs(raw: Mapping[str, Tensor], picks: Tensor) -> Outputs:
            logits, sides = raw["logits"], self._own_sides(raw["deltas"], proposals[picks], labels[picks])
            return Outputs(self._probabilities(logits)[:, :-1], sides, labels[picks], logits[:, :-1])

        raw = {name: value[image][candidates] for name, value in forward.extra["raw"].items()}
        return RegionHead(self._regions(proposals), self._box_head, outputs, raw)

    def _own_sides(self, deltas: Tensor, regions: Tensor, labels: Tensor) -> Tensor:
        """Boxes (N, 4) of regions (N, 4) as their own classes, int64 (N,)."""
        if deltas.shape[1] > 4:
            columns = labels[:, None] * 4 + torch.arange(4, device=labels.device)
            deltas = deltas.gather(1, columns)
        return self._decode_boxes(deltas, regions)

    def _stage_outputs(self, forward: Forward, regions: Tensor | None) -> list[StageOutputs]:
        rpn = self.model.proposal_generator
        levels = [forward.levels[name] for name in rpn.in_features]
        anchors = rpn.anchor_generator(levels)
        objectness, deltas = rpn.rpn_head(levels)
        objectness = [level.permute(0, 2, 3, 1).flatten(1) for level in objectness]  # [1, H·W·A]
        deltas = [
            x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas
        ]  # [1, H·W·A, 4]
        if regions is None:
            (found,) = rpn.predict_proposals(
                anchors,
                [level.detach() for level in objectness],
                [level.detach() for level in deltas],
                _image_list(forward.batch).image_sizes,
            )
            regions = found.proposal_boxes.tensor.to(forward.batch.pixels)
        of_all: Tensor = Boxes.cat(anchors).tensor.to(forward.batch.pixels)
        boxes = rpn.box2box_transform.apply_deltas(torch.cat(deltas, 1)[0], of_all).to(of_all)
        places = torch.tensor([self._level_names.index(name) for name in rpn.in_features])
        groups = places.repeat_interleave(torch.tensor([level.shape[1] for level in objectness]))
        logits = torch.cat(objectness, 1)[0, :, None]
        first = StageOutputs("rpn", logits, boxes, of_all, groups.to(self.device))
        self._run_regions(forward, [regions])
        logits, decoded, exclusive = self._said(forward)
        second = StageOutputs(
            "roi",
            logits,
            decoded,
            regions,
            torch.zeros(len(regions), dtype=torch.int64, device=self.device),
            softmax=exclusive,
            masks=(lambda boxes, labels: self._mask_logits(forward, boxes, labels)) if self.masks else None,
        )
        return [first, second]

    def _said(self, forward: Forward) -> tuple[Tensor, Tensor, bool]:
        """Logits and boxes of one picture's regions as `StageOutputs` has them, and its `softmax`."""
        raw = {name: value[0] for name, value in forward.extra["raw"].items()}
        boxes = self._decode_boxes(raw["deltas"], forward.extra["proposals"][0])
        if self._predictor.use_sigmoid_ce:
            return raw["logits"][:, :-1], boxes, False
        return raw["logits"].roll(1, 1), boxes, True

    def _mask_logits(self, forward: Forward, boxes: Tensor, labels: Tensor) -> Tensor:
        heads = self.model.roi_heads
        if self._res5 is not None:
            features = self._res5(self._pool(forward, [boxes]))
        else:
            maps = [forward.levels[name] for name in heads.mask_in_features]
            features = heads.mask_pooler(maps, [Boxes(boxes)])
        logits: Tensor = heads.mask_head.layers(features)  # [n, K, M, M], or [n, 1, M, M] for all classes
        if logits.shape[1] == 1:
            return logits[:, 0]
        return logits[torch.arange(len(labels), device=labels.device), labels]


class CascadeDetector(RcnnDetector):
    """detectron2's Cascade R-CNN.

    A proposal goes through several box heads, each looking at the box that the one before it made. Its scores
    are the means over the heads, its box is the last one's. Taps see the last head: what the earlier ones say
    is held fixed, as proposals are.
    """

    def __init__(self, model: Any, labels: Sequence[str], pictures: Pictures) -> None:
        """See `wrap`."""
        if any(predictor.bbox_pred.out_features != 4 for predictor in model.roi_heads.box_predictor):
            raise TypeError("roi_heads: expected a cascade whose boxes do not depend on the class")
        super().__init__(model, labels, pictures)

    @property
    def _predictor(self) -> Any:
        return self.model.roi_heads.box_predictor[-1]

    def _run_regions(self, forward: Forward, proposals: list[Tensor]) -> None:
        """See `TwoStageDetector`; proposals (N, 4), or (N, S, 4) to hold what each of S heads looks at."""
        heads = self.model.roi_heads
        held = proposals[0].ndim == 3
        boxes = [each[:, 0] if held else each for each in proposals]
        counts = [len(each) for each in boxes]
        looked, scores = [boxes], []
        for number, (head, predictor) in enumerate(zip(heads.box_head, heads.box_predictor, strict=True)):
            logits, deltas = predictor(head(self._pool(forward, boxes)))
            if predictor is self._predictor:
                break
            scores.append(self._probabilities(logits))
            if held:
                boxes = [each[:, number + 1] for each in proposals]
            else:
                made = predictor.box2box_transform.apply_deltas(deltas.detach(), torch.cat(boxes))
                boxes = [
                    clip_boxes_to_image(each, (frame.network_height, frame.network_width)).to(logits)
                    for each, frame in zip(made.split(counts), forward.batch.frames, strict=True)
                ]
            looked.append(boxes)
        forward.extra["proposals"] = [torch.stack(each, 1) for each in zip(*looked, strict=True)]  # [N, S, 4]
        earlier = torch.stack(scores).sum(0) if scores else torch.zeros_like(logits)
        raw = {"logits": logits, "deltas": deltas, "earlier": earlier}
        forward.extra["raw"] = {name: value.split(counts) for name, value in raw.items()}

    def _box_head(self, features: Tensor) -> dict[str, Tensor]:
        logits, deltas = self._predictor(self.model.roi_heads.box_head[-1](features))
        return {"logits": logits, "deltas": deltas}

    def _mean(self, earlier: Tensor, logits: Tensor) -> Tensor:
        """Scores (..., K + 1) over all heads, from the sum of the earlier ones' and the last one's logits."""
        return (earlier + self._probabilities(logits)) / len(self.model.roi_heads.box_head)

    def candidates(self, forward: Forward, image: int) -> Candidates:
        """See `WhiteBoxDetector.candidates`."""
        raw = {name: value[image] for name, value in forward.extra["raw"].items()}
        last = forward.extra["proposals"][image][:, -1]
        scores = self._mean(raw["earlier"], raw["logits"])[:, :-1]
        groups = last.new_zeros(len(last), dtype=torch.int64)
        return Candidates(self._decode_boxes(raw["deltas"], last), scores, groups)

    def _region_head(self, forward: Forward, image: int, candidates: Tensor, labels: Tensor) -> RegionHead:
        last = forward.extra["proposals"][image][candidates, -1]
        raw = {name: value[image][candidates] for name, value in forward.extra["raw"].items()}
        earlier = raw.pop("earlier")

        def outputs(raw: Mapping[str, Tensor], picks: Tensor) -> Outputs:
            logits, sides = raw["logits"], self._own_sides(raw["deltas"], last[picks], labels[picks])
            scores = self._mean(earlier[picks], logits)[:, :-1]
            return Outputs(scores, sides, labels[picks], logits[:, :-1])

        return RegionHead(self._regions(last), self._box_head, outputs, raw)

    def _said(self, forward: Forward) -> tuple[Tensor, Tensor, bool]:
        raw = {name: value[0] for name, value in forward.extra["raw"].items()}
        boxes = self._decode_boxes(raw["deltas"], forward.extra["proposals"][0][:, -1])
        scores = self._mean(raw["earlier"], raw["logits"])
        tiny = torch.finfo(scores.dtype).tiny
        if self._predictor.use_sigmoid_ce:
            return scores[:, :-1].logit(eps=torch.finfo(scores.dtype).eps), boxes, False
        return scores.clamp(min=tiny).log().roll(1, 1), boxes, True  # whose softmax the mean scores are


def by_stride(names: Iterable[str], strides: Mapping[str, int]) -> list[str]:
    """Sort levels, the finest first; those of equal strides, as DC5 has them, by name."""
    return sorted(names, key=lambda name: (strides[name], name))


def _without_bottom_up(pyramid: Any) -> nn.Module:
    """Copy an FPN so that it takes the stages' maps; all modules but the backbone below it are the same."""
    top: nn.Module = copy.copy(pyramid)
    top._modules = {**pyramid._modules, "bottom_up": nn.Identity()}
    return top


def _limit(most: int) -> int:
    return most if most >= 0 else ALL_DETECTIONS


def _image_list(batch: Batch) -> Any:
    """The batch as detectron2's own modules take it."""
    return ImageList(batch.pixels, [(f.network_height, f.network_width) for f in batch.frames])
