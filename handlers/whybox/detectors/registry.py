"""The families of detectors, by name. A family's library is imported when one of its models is loaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from whybox.detectors.base import Detector
from whybox.recipe import Recipe, RecipeError

FAMILIES: dict[str, str] = {
    "torchvision": "whybox.detectors.torchvision_loader",
    "transformers": "whybox.detectors.transformers_loader",
    "detectron2": "whybox.detectors.detectron2_loader",
}
"""Name → module with the functions of a `Family`."""


class Family(Protocol):
    """What a family's module has. Weights are given as they come, a file or a folder, or as packed."""

    def load(self, recipe: Recipe, weights: Path) -> Detector:
        """Load the recipe's detector.

        Raises:
            RecipeError: if the architecture is unknown, or the weights or labels do not fit.
        """

    def pack(self, recipe: Recipe, weights: Path, folder: Path) -> tuple[Recipe, Path]:
        """Make a checkpoint self-contained.

        Args:
            recipe: the recipe.
            weights: as they come.
            folder: for the file that is written; exists.

        Returns:
            The recipe with all of the checkpoint's own configuration in its `options`, and one safetensors
            file in the folder: what `load` takes where nothing else of the checkpoint is.

        Raises:
            RecipeError: if the checkpoint cannot be read.
        """


def load_detector(recipe: Recipe, weights: Path) -> Detector:
    """Load the detector of a recipe.

    Args:
        recipe: the recipe.
        weights: file or folder with its weights.

    Raises:
        RecipeError: if the family or architecture is unknown, its library is not installed, or the weights or
            labels do not fit.
    """
    return _family(recipe).load(recipe, weights)


def pack_detector(recipe: Recipe, weights: Path, folder: Path) -> tuple[Recipe, Path]:
    """Make a recipe's checkpoint self-contained; see `Family.pack`.

    Raises:
        RecipeError: if the family is unknown, its library is not installed, or the checkpoint cannot be read.
    """
    return _family(recipe).pack(recipe, weights, folder)


def _family(recipe: Recipe) -> Family:
    if recipe.family not in FAMILIES:
        raise RecipeError(f"family: expected one of {', '.join(FAMILIES)}; got {recipe.family!r}")
    try:
        return cast(Family, importlib.import_module(FAMILIES[recipe.family]))
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library == "whybox":
            raise
        raise RecipeError(
            f"{recipe.name}: family: {recipe.family} needs {library}, which is not installed: "
            f"see docs/detectors/{recipe.family}.md"
        ) from error
    except ImportError as error:  # such as an extension that was built for another torch
        raise RecipeError(
            f"{recipe.name}: family: {recipe.family}'s library cannot be imported, and may have to be "
            f"installed anew (docs/detectors/{recipe.family}.md): {error}"
        ) from error
