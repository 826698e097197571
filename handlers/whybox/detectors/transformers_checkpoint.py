"""Checkpoints of the transformers library, read without running anything that they bring.

As they come: a folder with ``config.json``, ``preprocessor_config.json``, and the weights as safetensors or
as ``pytorch_model.bin``, in one file or in several with an index. As they are packed: one safetensors file,
both configurations in the recipe's options.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from whybox.detectors.weights import PACKED, read_weights, write_weights
from whybox.recipe import Recipe, RecipeError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet34": {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet50": {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"},
    "resnet101": {
        "depths": [3, 4, 23, 3],
        "hidden_sizes": [256, 512, 1024, 2048],
        "layer_type": "bottleneck",
    },
}
"""Backbones that checkpoints name by their timm name, as the library's own ResNet has them."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's parts.

    Attributes:
        config: of the model.
        preprocessor: of the image processor.
        weights: tensors by their names in the checkpoint.
    """

    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    weights: Mapping[str, Tensor]


def read_checkpoint(recipe: Recipe, weights: Path) -> Checkpoint:
    """Read a checkpoint as it comes, or as it is packed.

    Args:
        recipe: whose options, if there are some, are ``config`` and ``preprocessor``.
        weights: the folder; with these options, or beside the two configurations, a file.

    Raises:
        RecipeError: if a part is missing or cannot be read, or a configuration asks for code.
    """
    unknown = [name for name in recipe.options if name not in ("config", "preprocessor")]
    if unknown:
        raise RecipeError(f"{recipe.name}: options: expected config and preprocessor; got {unknown[0]!r}")
    folder = weights if weights.is_dir() else weights.parent
    parts = []
    for option, name in (("config", CONFIG), ("preprocessor", PREPROCESSOR)):
        part = recipe.options.get(option)
        if part is None:
            part = _read_json(folder / name)
        if not isinstance(part, Mapping):
            raise RecipeError(f"{recipe.name}: {option}: expected a mapping; got {type(part).__name__}")
        if "auto_map" in part:
            raise RecipeError(
                f"{recipe.name}: {name} asks for code of its own (auto_map), which is never run: save the "
                "checkpoint with one of the library's own classes"
            )
        parts.append(part)
    return Checkpoint(parts[0], parts[1], _read_all(weights))


def pack_checkpoint(recipe: Recipe, weights: Path, folder: Path) -> tuple[Recipe, Path]:
    """Pack a checkpoint; see `whybox.detectors.registry.Family.pack`.

    Raises:
        RecipeError: as `read_checkpoint`.
    """
    checkpoint = read_checkpoint(recipe, weights)
    packed = folder / PACKED
    write_weights(checkpoint.weights, packed)
    options = {"config": dict(checkpoint.config), "preprocessor": dict(checkpoint.preprocessor)}
    return replace(recipe, options=options), packed


def own_backbone(config: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Say a model's configuration with a backbone of the library's own.

    DETR's published checkpoints name a ResNet of timm, as do all of DETR, Conditional and Deformable DETR
    that say nothing: the same network as the library's, under other names.

    Returns:
        The configuration, and whether it was timm's: its weights then have timm's names.

    Raises:
        RecipeError: for another of timm's backbones, one with dilation, or one that would be looked up
            elsewhere.
    """
    made = dict(config)
    given = made.get("backbone_config")
    name, timm = made.pop("backbone", None), made.pop("use_timm_backbone", None)
    extra = made.pop("backbone_kwargs", None) or {}
    made.pop("use_pretrained_backbone", None)
    by_default = str(made.get("model_type")) in ("detr", "conditional_detr", "deformable_detr")
    if isinstance(given, Mapping):
        if given.get("model_type") != "timm_backbone":
            return made, False
        name, extra, timm = given.get("backbone"), given, True
    elif name is None and not (by_default if timm is None else timm):
        return {**made, "use_timm_backbone": False} if by_default else made, False
    if name not in (None, *RESNETS) or timm is False:
        raise RecipeError(
            f"{CONFIG}: backbone: expected a backbone_config of the library's own, or timm's "
            f"{', '.join(RESNETS)}; got {name!r}"
        )
    if made.get("dilation") or extra.get("output_stride") not in (None, 32):
        raise RecipeError(f"{CONFIG}: dilation: expected none; a dilated backbone (DC5) is not supported")
    # timm counts the stem as 0. One level of features: the last stage; several: the last three.
    several = int(made.get("num_feature_levels") or 1) > 1
    stages = extra.get("out_indices") or ([2, 3, 4] if several else [4])
    made["backbone_config"] = {
        "model_type": "resnet",
        "out_features": [f"stage{index}" for index in stages],
        **RESNETS[name or "resnet50"],
    }
    return made, True


def rename_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a ResNet's weights, under a prefix, the library's own names instead of timm's."""
    return {_rename(name): value for name, value in weights.items()}


def _rename(name: str) -> str:
    prefix = next((p for p in ("backbone.conv_encoder.model.", "backbone.model.") if p in name), None)
    if prefix is None:
        return name
    head, _, own = name.partition(prefix)
    own = own.removeprefix("_backbone.")
    parts = own.split(".")
    if parts[0] in ("conv1", "bn1"):
        return ".".join([head + prefix + "embedder.embedder", _KINDS[parts[0][:-1]], *parts[1:]])
    if not parts[0].startswith("layer"):
        return name
    place = f"encoder.stages.{int(parts[0].removeprefix('layer')) - 1}.layers.{parts[1]}"
    if parts[2] == "downsample":
        part = "shortcut." + ("convolution", "normalization")[int(parts[3])]
        rest = parts[4:]
    else:
        kind, number = parts[2][:-1], int(parts[2][-1]) - 1
        part, rest = f"layer.{number}.{_KINDS[kind]}", parts[3:]
    return ".".join([head + prefix + place, part, *rest])


_KINDS = {"conv": "convolution", "bn": "normalization"}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(
            f"{path}: there is no such file; the checkpoint's folder has {CONFIG}, {PREPROCESSOR} and "
            f"{WEIGHTS[0]} or {WEIGHTS[1]}"
        ) from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error


def _read_all(path: Path) -> dict[str, Tensor]:
    """Read a file of weights, or those of a folder, in one file or several."""
    if not path.is_dir():
        return read_weights(path)
    for name in WEIGHTS:
        if (path / name).is_file():
            return read_weights(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            return _read_parts(index)
    raise RecipeError(
        f"{path}: there are no weights; expected {WEIGHTS[0]} or {WEIGHTS[1]}, or an index of parts"
    )


def _read_parts(index: Path) -> dict[str, Tensor]:
    listed = _read_json(index)
    parts = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
        raise RecipeError(f"{index}: expected weight_map, the file of each tensor")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(parts.values())):
        if Path(name).name != name:
            raise RecipeError(f"{index}: expected files beside it; got {name!r}")
        weights.update(read_weights(index.parent / name))
    return weights
