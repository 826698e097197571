"""Weights files: safetensors, or PyTorch's own format read as tensors only."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from whybox.recipe import Recipe, RecipeError

PACKED = "weights.safetensors"
"""The name of a packed checkpoint's file."""

_CODE = re.compile(r"unsupported (?:global: )?global ([\w.]+)", re.IGNORECASE)
"""What torch says of a name that is not data."""

TRAINING = "model"
"""Where torchvision's reference training script puts the weights in its checkpoints."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name; code in a pickle is refused.

    Of a checkpoint of torchvision's reference training script, its model.

    Raises:
        RecipeError: if the file is missing or holds anything else.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise RecipeError(f"{path}: the weights cannot be read: {error}") from error
    loaded = unpickle(path)
    if isinstance(loaded, dict) and isinstance(loaded.get(TRAINING), dict):
        loaded = loaded[TRAINING]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise RecipeError(f"{path}: expected a state dict, tensors by name; got {type(loaded).__name__}")
    return loaded


def unpickle(path: Path) -> object:
    """Read a file of `torch.save`: tensors, and what plain data is around them.

    Raises:
        RecipeError: if it is missing, is no such file, or names anything else.
    """
    try:
        # torchvision's reference training script keeps its options too, which are data alone.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RecipeError(f"{path}: the weights cannot be read: {error}") from error
    except Exception as error:  # what a reader of pickles does with other files has no end
        if code := _CODE.search(str(error)):
            reason = f"it holds code ({code[1]}); save a state dict, or safetensors"
        else:
            reason = f"not a file of torch.save ({type(error).__name__})"
        raise RecipeError(f"{path}: the weights cannot be read: {reason}") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a weights file into a model, in the model's own precision; see `fit_weights`."""
    fit_weights(model, read_weights(path), path)


def fit_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    path: Path,
    *,
    optional: Callable[[str], bool] = lambda _name: False,
) -> None:
    """Load weights into a model, in the model's own precision.

    Counters of batches (``num_batches_tracked``) may be missing: evaluation does not use them.

    Args:
        model: the model.
        weights: by name.
        path: where they come from, for messages.
        optional: says of a name that it may be missing besides; the model keeps its own value then.

    Raises:
        RecipeError: naming keys that are missing, left over or of another shape.
    """
    wanted = model.state_dict()
    missing = [
        k for k in wanted if k not in weights and not k.endswith("num_batches_tracked") and not optional(k)
    ]
    extra = [k for k in weights if k not in wanted]
    shaped = [
        f"{k} {tuple(weights[k].shape)}, expected {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in weights and weights[k].shape != v.shape
    ]
    refuse_misfits(path, missing, extra, shaped)
    model.load_state_dict(weights, strict=False)


def refuse_misfits(path: Path, missing: Sequence[str], extra: Sequence[str], shaped: Sequence[str]) -> None:
    """Check that the weights of a file are those of a model.

    Args:
        path: of the file or folder.
        missing: names that the file lacks.
        extra: names that the model lacks.
        shaped: names of another shape, with both.

    Raises:
        RecipeError: naming the first of them.
    """
    for what, names in (("missing", missing), ("not in the model", extra), ("of another shape", shaped)):
        if names:
            listed = ", ".join(names[:5]) + (f", … ({len(names)} in all)" if len(names) > 5 else "")
            raise RecipeError(f"{path}: the weights do not fit the architecture; {what}: {listed}")


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name as safetensors, each with memory of its own."""
    safetensors.torch.save_file(
        {name: value.detach().clone().contiguous() for name, value in weights.items()}, path
    )


def pack_file(recipe: Recipe, weights: Path, folder: Path) -> tuple[Recipe, Path]:
    """Pack a checkpoint that is one file of tensors by name; see `whybox.detectors.registry.Family.pack`.

    Raises:
        RecipeError: if the file holds anything else.
    """
    packed = folder / PACKED
    if weights.suffix == ".safetensors" and weights.is_file():
        shutil.copyfile(weights, packed)
    else:
        write_weights(read_weights(weights), packed)
    return recipe, packed
