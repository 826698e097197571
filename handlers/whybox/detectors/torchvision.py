"""The torchvision family: RetinaNet, FCOS, Faster R-CNN and Mask R-CNN, any backbone with FPN."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.ssd import SSD

from whybox.detectors.base import (
    Batch,
    Candidates,
    Contenders,
    Forward,
    Frame,
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
from whybox.detectors.two_stage import RegionHead, TwoStageDetector


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


class TorchvisionDetector(PyramidDetector):
    """What torchvision's detectors share: the transform, the body and the FPN."""

    def __init__(self, model: Any, labels: Sequence[str], *, background: bool) -> None:
        """See `wrap`."""
        super().__init__(model, labels)
        self.first = int(background)
        self.require_labels(self._head_classes() - self.first)
        if model.transform.fixed_size is None:
            # The longer side ends at `max_size`; one less, as the factor that scales both sides is rounded.
            self.max_aspect = int(model.transform.max_size) - 1
        self.defaults = self._defaults()
        self.layers = self._find_layers()

    def prepare(self, images: Sequence[Tensor]) -> list[tuple[list[int], Batch]]:
        """See `WhiteBoxDetector.prepare`."""
        require_images(images)
        prepared = []
        for image in images:
            pixels = image.permute(2, 0, 1).to(self.weight).div(255)  # [3, H, W]
            listed, _ = self.model.transform([pixels])
            height, width = listed.image_sizes[0]
            prepared.append((listed.tensors, Frame(image.shape[1], image.shape[0], width, height)))
        return batches_of(prepared)

    def embed(self, picture: Tensor) -> Batch:
        """See `WhiteBoxDetector.embed`."""
        listed, _ = self.model.transform([picture])
        height, width = listed.image_sizes[0]
        return Batch(listed.tensors, (Frame(picture.shape[2], picture.shape[1], width, height),))

    def _chain(self) -> Iterable[tuple[str, nn.Module, bool]]:
        for name, module in self.model.backbone.body.items():
            yield name, module, next(module.children(), None) is not None  # not a lone convolution or ReLU

    def _pyramid(self, stages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = OrderedDict(
            (out, stages[name]) for name, out in self.model.backbone.body.return_layers.items()
        )
        return dict(self.model.backbone.fpn(features))

    @abstractmethod
    def _head_classes(self) -> int:
        """Count the classes of the head, background included."""

    @abstractmethod
    def _defaults(self) -> PostProcessing:
        """Read the post-processing that the model came with."""


class TorchvisionOneStage(OneStageDetector, TorchvisionDetector):
    """What torchvision's RetinaNet, FCOS and SSD share."""

    def _anchors(self, batch: Batch, levels: Sequence[Tensor]) -> Tensor:
        anchors: Tensor = self.model.anchor_generator(_image_list(batch), list(levels))[0]
        return anchors

    def contenders(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Contenders:
        """See `WhiteBoxDetector.contenders`."""
        return contenders(candidates, frame, settings, group_limit=self.model.topk_candidates)

    def _head_classes(self) -> int:
        return int(self.model.head.classification_head.num_classes)

    def _defaults(self) -> PostProcessing:
        model = self.model
        return PostProcessing(model.score_thresh, model.detections_per_img, "iou", model.nms_thresh)


class RetinaNetDetector(TorchvisionOneStage):
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
        return least_logit(threshold)


class FcosDetector(TorchvisionOneStage):
    """torchvision's FCOS; the final score is the geometric mean of class and centre-ness."""

    def _towers(self) -> list[Tower]:
        classification, regression = self.model.head.classification_head, self.model.head.regression_head
        return [
            Tower.of(classification.conv, logits=classification.cls_logits),
            Tower.of(regression.conv, distances=regression.bbox_reg, centerness=regression.bbox_ctrness),
        ]

    def _decode(self, raw: Mapping[str, Tensor], anchors: Tensor) -> tuple[Tensor, Tensor]:
        scores = root_of_sigmoids(raw["logits"][:, self.first :], raw["centerness"])
        return scores, self.model.box_coder.decode(raw["distances"].relu(), anchors)

    def _least_logit(self, threshold: float) -> float:
        return least_logit(threshold**2)  # of a candidate whose centre-ness is 1


class RcnnDetector(TwoStageDetector, TorchvisionDetector):
    """torchvision's Faster R-CNN and Mask R-CNN: region features through the box head."""

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

    def _propose(self, forward: Forward) -> list[Tensor]:
        proposals: list[Tensor] = self.model.rpn(_image_list(forward.batch), forward.levels, None)[0]
        return proposals

    def _run_regions(self, forward: Forward, proposals: list[Tensor]) -> None:
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

    def _region_head(self, forward: Forward, image: int, candidates: Tensor, labels: Tensor) -> RegionHead:
        heads = self.model.roi_heads
        pool = heads.box_roi_pool
        proposals = forward.extra["proposals"][image][candidates]
        regions = Regions(
            proposals, pool.map_levels([proposals]), pool.scales, tuple(pool.output_size), pool.sampling_ratio
        )

        def outputs(raw: Mapping[str, Tensor], picks: Tensor) -> Outputs:
            columns = (labels[picks, None] + self.first) * 4 + torch.arange(4, device=picks.device)
            sides = heads.box_coder.decode_single(raw["deltas"].gather(1, columns), proposals[picks])
            logits = raw["logits"]
            return Outputs(logits.softmax(1)[:, self.first :], sides, labels[picks], logits[:, self.first :])

        raw = {name: value[image][candidates] for name, value in forward.extra["raw"].items()}
        return RegionHead(regions, self._box_head, outputs, raw)


def _image_list(batch: Batch) -> ImageList:
    """The batch as torchvision's own modules take it."""
    return ImageList(batch.pixels, [(f.network_height, f.network_width) for f in batch.frames])
