"""Small models with random weights, and the files and pictures that tests need."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from whybox.detectors.small import ARCHITECTURES, build_small
from whybox.engine import Engine
from whybox.recipe import read_recipe

STORE = Path(__file__).parent.parent / "model_store"
LABELS = ("alpha", "beta", "gamma", "delta")
ARCHITECTURE_NAMES = tuple(ARCHITECTURES)


def random_model(architecture: str, *, seed: int = 0, classes: int = len(LABELS)) -> nn.Module:
    """A demo architecture with random weights that finds many objects."""
    torch.manual_seed(seed)
    model = build_small(architecture, classes).eval()
    if hasattr(model, "head"):
        for module in model.head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.2 if architecture == "ssd" else 0.05)
        head = model.head.classification_head
        for last in head.module_list if architecture == "ssd" else [head.cls_logits]:
            nn.init.zeros_(last.bias)
    else:
        model.rpn._post_nms_top_n["testing"] = 20
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.2)
        nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    return model


def random_image(height: int = 128, width: int = 160, *, seed: int = 0) -> Tensor:
    """Noise, uint8 (H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)


def encoded(image: Tensor, format: str = "PNG") -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, format=format)
    return buffer.getvalue()


def demo_engine(name: str) -> Engine:
    """A demo model, trained, as a worker has it."""
    return Engine.load(read_recipe(STORE / f"{name}.yaml"), STORE / "weights" / f"{name}.safetensors")


def write_recipe(folder: Path, architecture: str, **fields: object) -> Path:
    """A recipe and weights of a random model, in a folder."""
    name = f"{architecture}-random"
    safetensors.torch.save_file(random_model(architecture).state_dict(), folder / f"{name}.safetensors")
    recipe = {
        "name": name,
        "family": "torchvision",
        "architecture": f"small/{architecture}",
        "labels": list(LABELS),
        "background": True,
        "weights": f"{name}.safetensors",
        "score_threshold": 0.05,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**recipe, **fields}))
    return path
