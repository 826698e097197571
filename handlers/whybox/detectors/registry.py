"""The families of detectors, by name. A family's library is imported when one of its models is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from whybox.detectors.base import Detector
from whybox.recipe import Recipe, RecipeError

FAMILIES: dict[str, str] = {
    "torchvision": "whybox.detectors.torchvision_loader:load",
}
"""Name → ``module:function``; the function takes a recipe and the weights file and returns a `Detector`."""


def load_detector(recipe: Recipe, weights: Path) -> Detector:
    """Load the detector of a recipe.

    Args:
        recipe: the recipe.
        weights: the file with its weights.

    Raises:
        RecipeError: if the family or architecture is unknown, or the weights or labels do not fit.
    """
    if recipe.family not in FAMILIES:
        raise RecipeError(f"family: expected one of {', '.join(FAMILIES)}; got {recipe.family!r}")
    module, function = FAMILIES[recipe.family].split(":")
    load: Callable[[Recipe, Path], Detector] = getattr(importlib.import_module(module), function)
    return load(recipe, weights)
