"""Architectures of the demo detectors: torchvision's detector classes on a backbone that trains on two CPU
cores.

All four keep the usual structure — `model.backbone.body` returns the stages, `model.backbone.fpn` the
pyramid — and
the usual ratio of object to stride: a feature map in which an object spans only two or three cells cannot
point.

Layout: images float32 [3, H, W] in 0–1, RGB. Labels are torchvision's: 1..K for the K classes, 0 is
background.

| architecture | pyramid strides | anchors | parameters |
|---|---|---|---|
| `retinanet` | 4 8 16 32 | 4.5 strides · {1, √2} | 1.5 M |
| `fcos` | 8 16 32 | one a cell, 1 stride | 1.5 M |
| `faster-rcnn` | 8 16 32 | 2.5 strides · {0.9, 1.35} | 2.3 M |
| `mask-rcnn` | 8 16 32 | 2.5 strides · {0.9, 1.35} | 2.5 M |
| `ssd` | 8 16 32, stages as they are | 2.25 and 3.4 strides; 2.5 and 3.75; 2.8 and 4.2 | 1.3 M |

The single-stage anchors follow the published ratio. The two-stage detectors may start at stride 8: RoIAlign
reads the features at the object's own scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock
from torchvision.ops import MultiScaleRoIAlign

STEM_CHANNELS: Final = 16
STAGE_CHANNELS: Final = (32, 64, 128, 256)  # layer1..layer4, at strides 4, 8, 16, 32
PYRAMID_CHANNELS: Final = 64
HEAD_CONVOLUTIONS: Final = 2
_RETINANET_CHANNELS = 48  # of its pyramid, whose level of stride 4 costs most of the training
_MASK_CHANNELS = 32
MAX_SIDE: Final = 640
"""Pictures whose longer side exceeds this many pixels are scaled down to it; none is scaled up."""

_ANCHOR_SIDES = (18, 36, 72, 144)  # RetinaNet: 4.5 strides on levels of stride 4, 8, 16, 32
_PROPOSAL_SIDES = (
    (18, 27),
    (40, 60),
    (90, 135),
)  # R-CNN: a factor of 1.5 apart, on levels of stride 8, 16, 32
# RoIs of 112 px and more are read at stride 16 (= 2^4), smaller ones at stride 8: from 56 px on, 7 bins
# span 7 cells.
_CANONICAL_SCALE, _CANONICAL_LEVEL = 112, 4
_MEAN, _STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]


class ShrinkLarge(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's transform, except that a picture keeps its size unless its longer side exceeds
    `max_side` pixels.

    torchvision can only bring every picture to one `min_size`; the demo detectors know signs of 16–160 px
    as they are.
    """

    def __init__(self, max_side: int = MAX_SIDE) -> None:
        super().__init__(min_size=max_side, max_size=max_side, image_mean=_MEAN, image_std=_STD)

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Image [C, H, W] and its target, scaled down if too large, unchanged otherwise."""
        if max(image.shape[-2:]) <= self.max_size:
            return image, target
        resized: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
        return resized


class SmallBody(nn.Module):
    """A stem (stride 2) and four stages of one `BasicBlock`: `layer1` (stride 4) to `layer4` (stride 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(STEM_CHANNELS),
            nn.ReLU(inplace=True),
        )
        before = STEM_CHANNELS
        for number, channels in enumerate(STAGE_CHANNELS, start=1):
            shortcut = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride=2, bias=False), nn.BatchNorm2d(channels)
            )
            self.add_module(f"layer{number}", BasicBlock(before, channels, stride=2, downsample=shortcut))
            before = channels


class StageBackbone(nn.Module):
    """Stages from `layer2` on as they are, where others have a pyramid: named as in `BackboneWithFPN`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(SmallBody(), {f"layer{i + 2}": str(i) for i in range(3)})
        self.fpn = nn.Identity()
        self.out_channels = list(STAGE_CHANNELS[1:])

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pictures [B, 3, H, W] → level name → [B, C, H, W]."""
        levels: dict[str, Tensor] = self.fpn(self.body(pixels))
        return levels


def build_small(architecture: str, num_classes: int) -> nn.Module:
    """A demo detector with random weights, in training mode.

    Args:
        architecture: One of `ARCHITECTURES`.
        num_classes: K, without the background. The model's labels are 1..K, as in torchvision's own models.

    Raises:
        ValueError: unknown architecture, or no class at all.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    model = ARCHITECTURES[architecture](num_classes + 1)
    model.transform = ShrinkLarge()
    return model


def _backbone(first_stage: int, channels: int = PYRAMID_CHANNELS) -> BackboneWithFPN:
    """Stages from `first_stage` (1–4) on, and a pyramid of the same strides with 64 channels each."""
    stages = range(first_stage, len(STAGE_CHANNELS) + 1)
    backbone = BackboneWithFPN(
        SmallBody(),
        return_layers={f"layer{stage}": str(i) for i, stage in enumerate(stages)},
        in_channels_list=[STAGE_CHANNELS[stage - 1] for stage in stages],
        out_channels=channels,
    )
    backbone.fpn.extra_blocks = None  # torchvision's default is one more level, by max-pooling
    return backbone


def _retinanet(outputs: int) -> RetinaNet:
    sizes = tuple((side, round(side * 2**0.5)) for side in _ANCHOR_SIDES)
    head = RetinaNetHead(_RETINANET_CHANNELS, num_anchors=2, num_classes=outputs)
    for part in (head.classification_head, head.regression_head):
        part.conv = part.conv[:HEAD_CONVOLUTIONS]
    return RetinaNet(
        _backbone(1, _RETINANET_CHANNELS),
        outputs,
        anchor_generator=AnchorGenerator(sizes, ((1.0,),) * len(sizes)),
        head=head,
        topk_candidates=300,
        detections_per_img=100,
    )


def _fcos(outputs: int) -> FCOS:
    sizes = ((8,), (16,), (32,))  # FCOS assigns objects to levels by these: one stride each
    return FCOS(
        _backbone(2),
        outputs,
        anchor_generator=AnchorGenerator(sizes, ((1.0,),) * len(sizes)),
        head=FCOSHead(PYRAMID_CHANNELS, num_anchors=1, num_classes=outputs, num_convs=HEAD_CONVOLUTIONS),
        nms_thresh=0.5,
        topk_candidates=300,
        detections_per_img=100,
    )


def _two_stage(outputs: int) -> dict[str, Any]:
    """Arguments that Faster and Mask R-CNN share."""
    return {
        "rpn_anchor_generator": AnchorGenerator(_PROPOSAL_SIDES, ((1.0,),) * len(_PROPOSAL_SIDES)),
        "rpn_head": RPNHead(PYRAMID_CHANNELS, num_anchors=2),
        "rpn_pre_nms_top_n_train": 300,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_train": 200,
        "rpn_post_nms_top_n_test": 100,
        "rpn_batch_size_per_image": 128,
        "box_roi_pool": _roi_align(7),
        "box_head": TwoMLPHead(PYRAMID_CHANNELS * 7 * 7, 256),
        "box_predictor": FastRCNNPredictor(256, outputs),
        "box_batch_size_per_image": 48,
    }


def _roi_align(bins: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(
        ["0", "1", "2"],
        bins,
        sampling_ratio=2,
        canonical_scale=_CANONICAL_SCALE,
        canonical_level=_CANONICAL_LEVEL,
    )


def _faster_rcnn(outputs: int) -> FasterRCNN:
    return FasterRCNN(_backbone(2), **_two_stage(outputs))


def _mask_rcnn(outputs: int) -> MaskRCNN:
    return MaskRCNN(
        _backbone(2),
        **_two_stage(outputs),
        mask_roi_pool=_roi_align(14),
        mask_head=MaskRCNNHeads(PYRAMID_CHANNELS, (_MASK_CHANNELS,) * 2, 1),
        mask_predictor=MaskRCNNPredictor(_MASK_CHANNELS, _MASK_CHANNELS, outputs),
    )


def _ssd(outputs: int) -> SSD:
    """An SSD whose default boxes are given in pixels, so that it takes pictures of any size."""
    backbone = StageBackbone()
    return SSD(
        backbone,
        AnchorGenerator(_PROPOSAL_SIDES, ((1.0,),) * len(_PROPOSAL_SIDES)),
        (MAX_SIDE, MAX_SIDE),
        outputs,
        head=SSDHead(backbone.out_channels, [2, 2, 2], outputs),
        nms_thresh=0.5,
        topk_candidates=300,
        detections_per_img=100,
    )


ARCHITECTURES: Final[dict[str, Callable[[int], nn.Module]]] = {
    "retinanet": _retinanet,
    "fcos": _fcos,
    "faster-rcnn": _faster_rcnn,
    "mask-rcnn": _mask_rcnn,
    "ssd": _ssd,
}
"""Name → builder; the builder's argument counts the background."""
