"""Reads detectron2's checkpoints, ``.pkl`` of arrays, ``.pth`` or safetensors, as tensors by name.

Nothing here needs detectron2, and no code in a file is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whybox.detectors.array_pickle import ArrayPickleError, read_arrays
from whybox.detectors.weights import read_weights, unpickle
from whybox.recipe import RecipeError

SUFFIXES = (".safetensors", ".pth", ".pkl")
CONFIG_FILE = "config.yaml"
"""What detectron2's training leaves beside its checkpoints."""

_LAST = "last_checkpoint"
_FINAL = "model_final"
_NOT_WEIGHTS = ("pixel_mean", "pixel_std")
"""In older checkpoints; the configuration says them."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file.

    Attributes:
        path: the file.
        weights: by name, on the CPU.
        by_suffix: names are parts of the model's, to be matched to them.
        caffe2: names are those of Detectron's Caffe2 models.
    """

    path: Path
    weights: dict[str, Tensor]
    by_suffix: bool = False
    caffe2: bool = False


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint in a folder: the one that ``last_checkpoint`` names, else the final or only one.

    A file is itself.

    Raises:
        RecipeError: if there is none, or it is not clear which.
    """
    if not path.is_dir():
        return path
    last = path / _LAST
    if last.is_file():
        named = path / last.read_text(encoding="utf-8").strip()
        if named.parent != path or not named.is_file():
            raise RecipeError(f"{path}: {_LAST} names {named.name!r}, which is not there")
        return named
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    final = [file for file in found if file.stem == _FINAL]
    if len(final or found) == 1:
        return (final or found)[0]
    listed = ", ".join(file.name for file in found) or "none"
    raise RecipeError(
        f"{path}: expected one checkpoint ({', '.join(SUFFIXES)}), or a {_FINAL} among them; got {listed}"
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file.

    Raises:
        RecipeError: if it is missing, or holds code or no weights.
    """
    if path.suffix not in SUFFIXES:
        raise RecipeError(f"{path}: expected a checkpoint ({', '.join(SUFFIXES)}); got {path.name!r}")
    if path.suffix == ".safetensors":
        return Checkpoint(path, read_weights(path))
    loaded = _arrays(path) if path.suffix == ".pkl" else unpickle(path)
    if not isinstance(loaded, Mapping):
        raise RecipeError(f"{path}: expected weights by name; got {type(loaded).__name__}")
    zoo = "model" in loaded and isinstance(loaded["model"], Mapping)
    caffe2 = path.suffix == ".pkl" and not (zoo and "__author__" in loaded)
    weights = loaded.get("blobs", loaded) if caffe2 else loaded["model"] if zoo else loaded
    author = loaded.get("__author__") if zoo else None
    return Checkpoint(
        path,
        _by_name(weights, path, leave_out="_momentum" if caffe2 else None),
        by_suffix=caffe2 or bool(zoo and loaded.get("matching_heuristics", False)),
        caffe2=caffe2 or author == "Caffe2",
    )


def _arrays(path: Path) -> Any:
    try:
        return read_arrays(path)
    except (OSError, ArrayPickleError) as error:
        raise RecipeError(f"{path}: the weights cannot be read: {error}") from error


def _by_name(weights: Any, path: Path, *, leave_out: str | None) -> dict[str, Tensor]:
    """Turn weights into tensors, their names as a model that is not distributed has them."""
    if not isinstance(weights, Mapping) or not weights:
        raise RecipeError(f"{path}: expected weights by name; got {type(weights).__name__}")
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        if not isinstance(name, str):
            raise RecipeError(f"{path}: expected names of weights; got {name!r}")
        if leave_out is not None and name.endswith(leave_out):
            continue
        if isinstance(value, np.ndarray):
            try:
                # A copy, in the machine's byte order, of what may lie in the file's own memory.
                value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
            except TypeError as error:
                raise RecipeError(
                    f"{path}: {name}: expected numbers of a type that torch has; got {value.dtype}"
                ) from error
        if not isinstance(value, Tensor):
            raise RecipeError(f"{path}: {name}: expected an array; got {type(value).__name__}")
        named[name] = value
    if all(name.startswith("module.") for name in named):  # as DistributedDataParallel names them
        named = {name.removeprefix("module."): value for name, value in named.items()}
    return {
        name: value
        for name, value in named.items()
        if name not in _NOT_WEIGHTS and "anchor_generator.cell_anchors" not in name
    }
