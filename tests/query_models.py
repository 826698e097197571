"""Tiny query-based detectors with random weights, and checkpoints of them as the library writes them.

Tests that import this are skipped where transformers is not installed.
"""

# ruff: noqa: E402

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

transformers: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'whybox[transformers]'"
)

from builders import LABELS
from whybox.detectors.transformers import KINDS, TransformersDetector

SIZES = [8, 12, 16, 24]
SHORT, LONG, FIXED = 64, 100, 64


def resnet(*stages: int, kind: str = "ResNetConfig") -> Any:
    """A ResNet's configuration."""
    return getattr(transformers, kind)(
        embedding_size=8,
        hidden_sizes=SIZES,
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=[f"stage{stage}" for stage in stages],
    )


def hgnet() -> Any:
    """D-FINE's backbone."""
    return transformers.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 12, 16],
        stage_mid_channels=[4] * 4,
        stage_out_channels=SIZES,
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[1] * 4,
        stage_downsample=[False, True, True, True],
        stage_light_block=[False] * 4,
        stage_kernel_size=[3] * 4,
        hidden_sizes=SIZES,
        embedding_size=8,
        out_features=["stage2", "stage3", "stage4"],
    )


COMMON: dict[str, Any] = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_labels": len(LABELS),
}
DETR = {**COMMON, "d_model": 16, "num_queries": 7}
DEFORMABLE = {
    **COMMON,
    "d_model": 32,
    "num_queries": 7,
    "num_feature_levels": 4,
    "encoder_n_points": 2,
    "decoder_n_points": 2,
}
RT = {
    **COMMON,
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": SIZES[1:],
    "decoder_in_channels": [16] * 3,
    "num_queries": 9,
    "decoder_n_points": 2,
}


def config_of(name: str) -> Any:
    """The configuration of one of `NAMES`."""
    if name in ("detr", "conditional_detr"):
        kind = {"detr": "DetrConfig", "conditional_detr": "ConditionalDetrConfig"}[name]
        return getattr(transformers, kind)(backbone_config=resnet(4), **DETR)
    if name.startswith("deformable_detr"):
        two = {"two_stage": True, "two_stage_num_proposals": 7, "with_box_refine": True}
        more = two if name.endswith("two_stage") else {}
        return transformers.DeformableDetrConfig(backbone_config=resnet(2, 3, 4), **DEFORMABLE, **more)
    if name == "d_fine":
        return transformers.DFineConfig(backbone_config=hgnet(), **RT)
    kind = {"rt_detr": "RTDetrConfig", "rt_detr_v2": "RTDetrV2Config"}[name]
    return getattr(transformers, kind)(backbone_config=resnet(2, 3, 4, kind="RTDetrResNetConfig"), **RT)


NAMES = (*KINDS, "deformable_detr_two_stage")


def random_query_model(name: str, *, seed: int = 0, classes: int = len(LABELS)) -> Any:
    """A model that answers with many objects of different classes and boxes."""
    config = config_of(name)
    config.num_labels = classes
    torch.manual_seed(seed)
    model = getattr(transformers, KINDS[config.model_type].model)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim == 1 and key.endswith("weight"):
                value.fill_(1)  # norms, which some architectures start near 0
            if value.ndim < 2 or "sampling_offsets" in key:
                continue
            scale = (2 / value[0].numel()) ** 0.5
            if "class" in key or "score" in key:
                scale *= 2
            elif "query_position" in key:
                scale = 2.0
            value.copy_(torch.randn(value.shape, generator=generator) * scale)
    return model.to(torch.get_default_dtype()).eval()


def processor_of(model: Any) -> Any:
    """The image processor of a model, for small pictures."""
    name = KINDS[model.config.model_type].processor
    size = {"shortest_edge": SHORT, "longest_edge": LONG}
    if name == "RTDetrImageProcessor":
        size = {"height": FIXED, "width": FIXED}
    return getattr(transformers, name)(size=size)


def random_query_detector(name: str, *, seed: int = 0) -> TransformersDetector:
    """A detector of a random model."""
    model = random_query_model(name, seed=seed)
    return TransformersDetector(model, processor_of(model), LABELS)


def write_checkpoint(folder: Path, name: str, **fields: object) -> Path:
    """Write a random model as the library does, into ``checkpoint``, and a recipe beside it."""
    model = random_query_model(name)
    model.save_pretrained(folder / "checkpoint")
    processor_of(model).save_pretrained(folder / "checkpoint")
    recipe = {
        "name": name.replace("_", "-"),
        "family": "transformers",
        "architecture": model.config.model_type,
        "labels": list(LABELS),
        "weights": "checkpoint",
    }
    path = folder / f"{recipe['name']}.yaml"
    path.write_text(yaml.safe_dump({**recipe, **fields}))
    return path
