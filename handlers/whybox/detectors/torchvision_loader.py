"""From a recipe and a weights file to a torchvision detector: the demo models and torchvision's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import detection

from whybox.detectors.small import ARCHITECTURES, build_small
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.detectors.weights import load_weights, pack_file
from whybox.recipe import Recipe, RecipeError

OFFICIAL: dict[str, Callable[..., nn.Module]] = {
    "retinanet_resnet50_fpn": detection.retinanet_resnet50_fpn,
    "retinanet_resnet50_fpn_v2": detection.retinanet_resnet50_fpn_v2,
    "fcos_resnet50_fpn": detection.fcos_resnet50_fpn,
    "fasterrcnn_resnet50_fpn": detection.fasterrcnn_resnet50_fpn,
    "fasterrcnn_resnet50_fpn_v2": detection.fasterrcnn_resnet50_fpn_v2,
    "maskrcnn_resnet50_fpn": detection.maskrcnn_resnet50_fpn,
    "maskrcnn_resnet50_fpn_v2": detection.maskrcnn_resnet50_fpn_v2,
}
"""torchvision's own builders; the first class of their heads is the background."""

pack = pack_file
"""All of the configuration is in the recipe."""


def load(recipe: Recipe, weights: Path) -> TorchvisionDetector:
    """Build the recipe's architecture, load its weights, wrap it.

    Architectures are those of `OFFICIAL`, and ``small/…`` for the demo detectors of `whybox.detectors.small`.

    Raises:
        RecipeError: for an unknown architecture, or weights or labels that do not fit.
    """
    model = _build(recipe)
    load_weights(model, weights)
    try:
        return wrap(model, recipe.labels, background=recipe.background)
    except ValueError as error:
        raise RecipeError(f"{recipe.name}: {error}") from error


def _build(recipe: Recipe) -> nn.Module:
    group, slash, name = recipe.architecture.partition("/")
    if slash and group == "small" and name in ARCHITECTURES:
        return build_small(name, len(recipe.labels))
    if recipe.architecture not in OFFICIAL:
        known = [*OFFICIAL, *(f"small/{name}" for name in ARCHITECTURES)]
        raise RecipeError(
            f"{recipe.name}: architecture: expected one of {', '.join(known)}; got {recipe.architecture!r}"
        )
    options: dict[str, Any] = {"num_classes": len(recipe.labels) + 1, **recipe.options}
    try:
        return OFFICIAL[recipe.architecture](weights=None, weights_backbone=None, **options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{recipe.name}: options: {error}") from error
