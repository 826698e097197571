"""Tiny detectron2 models with random weights. Importing this needs detectron2."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.modeling import FCOS, build_model
from omegaconf import OmegaConf
from torch import nn

from builders import LABELS
from whybox.detectors.detectron2 import Detectron2Detector
from whybox.detectors.registry import load_detector
from whybox.recipe import Recipe

RCNN: dict[str, Any] = {
    "META_ARCHITECTURE": "GeneralizedRCNN",
    "RPN": {"POST_NMS_TOPK_TEST": 20, "PRE_NMS_TOPK_TEST": 200, "CONV_DIMS": [16]},
    "ROI_HEADS": {"NAME": "StandardROIHeads", "NUM_CLASSES": len(LABELS)},
    "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "FC_DIM": 32, "POOLER_RESOLUTION": 7},
    "ROI_MASK_HEAD": {"NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 1, "CONV_DIM": 8},
}
FPN: dict[str, Any] = {
    "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
    "RESNETS": {"OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
    "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"]},
    "ANCHOR_GENERATOR": {"SIZES": [[16], [32], [64], [96], [128]]},
    "RPN": {"IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"]},
    "ROI_HEADS": {"IN_FEATURES": ["p2", "p3", "p4", "p5"]},
}
MODELS: dict[str, list[dict[str, Any]]] = {
    "retinanet": [
        {
            "META_ARCHITECTURE": "RetinaNet",
            "BACKBONE": {"NAME": "build_retinanet_resnet_fpn_backbone"},
            "RESNETS": {"OUT_FEATURES": ["res3", "res4", "res5"]},
            "FPN": {"IN_FEATURES": ["res3", "res4", "res5"]},
            "ANCHOR_GENERATOR": {"SIZES": [[16, 20], [32, 40], [64, 80], [96, 112], [128, 144]]},
            "RETINANET": {"NUM_CLASSES": len(LABELS), "NUM_CONVS": 2, "NORM": ""},
        }
    ],
    "faster-rcnn": [RCNN, FPN],
    "mask-rcnn": [RCNN, FPN, {"MASK_ON": True, "ROI_BOX_HEAD": {"POOLER_SAMPLING_RATIO": 2}}],
    "cascade": [
        *(RCNN, FPN),
        {
            "MASK_ON": True,
            "ROI_HEADS": {"NAME": "CascadeROIHeads"},
            "ROI_BOX_HEAD": {"CLS_AGNOSTIC_BBOX_REG": True},
        },
    ],
    "c4": [
        RCNN,
        {
            "MASK_ON": True,
            "ROI_HEADS": {"NAME": "Res5ROIHeads", "IN_FEATURES": ["res4"]},
            "ROI_BOX_HEAD": {"NAME": "", "POOLER_RESOLUTION": 6},
            "ANCHOR_GENERATOR": {"SIZES": [[16, 32, 64]]},
            "RPN": {"CONV_DIMS": [-1]},
        },
    ],
    "dc5": [
        RCNN,
        {
            "RESNETS": {"OUT_FEATURES": ["res5"], "RES5_DILATION": 2},
            "ROI_HEADS": {"IN_FEATURES": ["res5"]},
            "RPN": {"IN_FEATURES": ["res5"]},
            "ANCHOR_GENERATOR": {"SIZES": [[16, 32, 64]]},
        },
    ],
}
"""Sections of ``MODEL``, each over those before it."""

ARCHITECTURES = (*MODELS, "fcos")

LAZY: dict[str, Any] = {
    "model": {
        "_target_": "detectron2.modeling.FCOS",
        "backbone": {
            "_target_": "detectron2.modeling.FPN",
            "bottom_up": {
                "_target_": "detectron2.modeling.ResNet",
                "stem": {
                    "_target_": "detectron2.modeling.backbone.resnet.BasicStem",
                    "in_channels": 3,
                    "out_channels": 64,
                    "norm": "FrozenBN",
                },
                "stages": {
                    "_target_": "detectron2.modeling.ResNet.make_default_stages",
                    "depth": 18,
                    "norm": "FrozenBN",
                },
                "out_features": ["res3", "res4", "res5"],
            },
            "in_features": "${.bottom_up.out_features}",
            "out_channels": 64,
            "top_block": {
                "_target_": "detectron2.modeling.backbone.fpn.LastLevelP6P7",
                "in_channels": "${..out_channels}",
                "out_channels": "${..out_channels}",
                "in_feature": "p5",
            },
        },
        "head": {
            "_target_": "detectron2.modeling.meta_arch.fcos.FCOSHead",
            "input_shape": [{"_target_": "detectron2.layers.ShapeSpec", "channels": 64}] * 5,
            "num_classes": "${..num_classes}",
            "conv_dims": [64, 64],
            "norm": "GN",
        },
        "num_classes": len(LABELS),
        "head_in_features": ["p3", "p4", "p5", "p6", "p7"],
        "test_score_thresh": 0.2,
        "pixel_mean": [103.53, 116.28, 123.675],
        "pixel_std": [57.375, 57.12, 58.395],
    },
    "input": {"min_size": 0, "max_size": 0, "format": "BGR"},
}
"""A tiny lazy configuration, of FCOS."""


def sections(architecture: str, **input_: Any) -> dict[str, Any]:
    """A tiny configuration, of sections; whoever changes it changes it alone."""
    model: dict[str, Any] = {
        "RESNETS": {
            "DEPTH": 50,
            "STEM_OUT_CHANNELS": 8,
            "RES2_OUT_CHANNELS": 16,
            "WIDTH_PER_GROUP": 4,
            "NORM": "FrozenBN",
        },
        "FPN": {"OUT_CHANNELS": 16},
        "PIXEL_STD": [57.375, 57.12, 58.395],
    }
    for part in MODELS[architecture]:
        model = _over(model, copy.deepcopy(part))
    seen = {"MIN_SIZE_TEST": 0, "MAX_SIZE_TEST": 0, **input_}
    return {"VERSION": 2, "MODEL": model, "INPUT": seen}


def _over(base: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _over(base[name], part[name])
        for name in base.keys() & part.keys()
        if isinstance(base[name], dict)
    }
    return {**base, **part, **both}


def write(architecture: str, folder: Path, *, seed: int = 0, **input_: Any) -> Path:
    """Write a model as detectron2's training leaves it in a folder: configuration and final checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    if architecture == "fcos":
        data: dict[str, Any] = {**LAZY, "input": {**LAZY["input"], **_lazy_input(input_)}}
        model = instantiate(OmegaConf.create(LAZY["model"]))
    else:
        data = sections(architecture, **input_)
        model = build_model(config_of(data))
    _spread(model)
    (folder / "config.yaml").write_text(yaml.safe_dump(data))
    torch.save({"model": model.state_dict(), "iteration": 5}, folder / "model_final.pth")
    return folder


def load(architecture: str, folder: Path, **input_: Any) -> Detectron2Detector:
    """The detector of what `write` writes."""
    detector = load_detector(recipe(architecture), write(architecture, folder, **input_))
    assert isinstance(detector, Detectron2Detector)
    return detector


def recipe(name: str) -> Recipe:
    """Of a model of one's own."""
    return Recipe(name, "detectron2", "config", LABELS)


def _lazy_input(sections_: dict[str, Any]) -> dict[str, Any]:
    names = {"MIN_SIZE_TEST": "min_size", "MAX_SIZE_TEST": "max_size", "FORMAT": "format"}
    return {names[name]: value for name, value in sections_.items()}


def _spread(model: nn.Module) -> None:
    """Change random weights so that activations stay in bounds and many objects are found."""
    fcos = isinstance(model, FCOS)
    for name, module in model.named_modules():
        if name.endswith("conv3.norm"):
            module.weight.fill_(0.5)
        if isinstance(module, nn.Conv2d) and "_subnet" in name:
            nn.init.normal_(module.weight, std=0.1)
        if name.endswith(("cls_score", "bbox_pred", "ctrness")):
            # Distances below zero are zero: FCOS' boxes would have no area.
            distances = fcos and name.endswith("bbox_pred")
            nn.init.normal_(module.weight, std=0.01 if distances else 0.1)
            nn.init.constant_(module.bias, 1.5 if distances else 0.0)


def config_of(data: dict[str, Any]) -> CfgNode:
    """The same as detectron2 has it."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(data))
    cfg.MODEL.DEVICE = "cpu"
    return cfg
