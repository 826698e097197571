"""Checkpoints of the transformers library, read without running anything that they bring.

As they come: a folder with ``config.json``, ``preprocessor_config.json``, and the weights as safetensors or
as ``pytorch_model.bin``, in one file or in several with an index. As they are packed: one safetensors file,
both configurations in the recipe's options.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from whybox.detectors.weights import PACKED, read_weights, write_weights
from whybox.recipe import Recipe, RecipeError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

IMPLEMENTATIONS = frozenset(
    f"{prefix}{what}_implementation{suffix}"
    for prefix in ("", "_")
    for what in ("attn", "experts")
    for suffix in ("", "_internal")
)
"""Fields of a configuration that say which code computes attention: the library takes a kernel's name on its
hub for one, and would load it."""

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
        RecipeError: if a part is missing or cannot be read, or a configuration asks for code or for
            quantised weights.
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
        if _says(part, "auto_map"):
            raise RecipeError(
                f"{recipe.name}: {name} asks for code of its own (auto_map), which is never run: save the "
                "checkpoint with one of the library's own classes"
            )
        if _says(part, "quantization_config"):
            raise RecipeError(
                f"{recipe.name}: {name}: quantization_config: expected none; quantised checkpoints are not "
                "supported: save the checkpoint in full precision"
            )
        parts.append(_computed_here(part))
    return Checkpoint(parts[0], parts[1], _read_all(weights))


def _says(part: Any, field: str) -> bool:
    """Whether a configuration has a field, at any depth."""
    if isinstance(part, Mapping):
        return part.get(field) is not None or any(_says(value, field) for value in part.values())
    return isinstance(part, list) and any(_says(value, field) for value in part)


def _computed_here(part: Any) -> Any:
    """A configuration without `IMPLEMENTATIONS`, at any depth: who loads it chooses."""
    if isinstance(part, Mapping):
        return {key: _computed_here(value) for key, value in part.items() if key not in IMPLEMENTATIONS}
    return [_computed_here(value) for value in part] if isinstance(part, list) else part


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
        RecipeError: for another of timm's backbones, one with dilation, one that would be looked up
            elsewhere, or fields of another type.
    """
    made = dict(config)
    given = made.get("backbone_config")
    name, timm = made.pop("backbone", None), made.pop("use_timm_backbone", None)
    extra = made.pop("backbone_kwargs", None) or {}
    for field, value in (("backbone_config", given), ("backbone_kwargs", extra)):
        if not isinstance(value, Mapping | None):
            raise RecipeError(f"{CONFIG}: {field}: expected a mapping; got {type(value).__name__}")
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
    levels = made.get("num_feature_levels") or 1
    if not isinstance(levels, int):
        raise RecipeError(f"{CONFIG}: num_feature_levels: expected a whole number; got {levels!r}")
    stages = extra.get("out_indices") or ([2, 3, 4] if levels > 1 else [4])
    if not isinstance(stages, list | tuple) or any(
        type(stage) is not int or not 1 <= stage <= 4 for stage in stages
    ):
        raise RecipeError(f"{CONFIG}: out_indices: expected a list of stages, 1 to 4; got {stages!r}")
    made["backbone_config"] = {
        "model_type": "resnet",
        "out_features": [f"stage{index}" for index in stages],
        **RESNETS[name or "resnet50"],
    }
    return made, True


def rename_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a ResNet's weights, under a prefix, the library's own names instead of timm's."""
    return {_rename(name): value for name, value in weights.items()}


_BLOCK = re.compile(r"layer([1-9])\.(\d+)\.(?:(conv|bn)([1-9])|downsample\.([01]))\.(.+)")
"""timm's name of a weight in one of a ResNet's blocks."""

_KINDS = {"conv": "convolution", "bn": "normalization"}


def _rename(name: str) -> str:
    """The library's own name; of what timm's ResNet does not have, the name that it comes with."""
    prefix = next((p for p in ("backbone.conv_encoder.model.", "backbone.model.") if p in name), None)
    if prefix is None:
        return name
    head, _, own = name.partition(prefix)
    own = own.removeprefix("_backbone.")
    stem, _, rest = own.partition(".")
    if stem in ("conv1", "bn1"):
        return f"{head}{prefix}embedder.embedder.{_KINDS[stem[:-1]]}.{rest}"
    found = _BLOCK.fullmatch(own)
    if found is None:
        return name
    stage, block, kind, number, shortcut, rest = found.groups()
    part = (
        f"layer.{int(number) - 1}.{_KINDS[kind]}"
        if kind
        else f"shortcut.{list(_KINDS.values())[int(shortcut)]}"
    )
    return f"{head}{prefix}encoder.stages.{int(stage) - 1}.layers.{block}.{part}.{rest}"


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
