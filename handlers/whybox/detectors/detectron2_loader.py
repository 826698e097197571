"""From a recipe and a checkpoint to a detectron2 detector.

A recipe's ``architecture`` is the name of a configuration in detectron2's own model zoo, or ``config`` for
one's own. Then ``options.config`` names the file, relative to the weights' folder; left out, it is the
folder's ``config.yaml``. A packed recipe has the whole configuration in ``options.config``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.registry import _convert_target_to_string, locate
from omegaconf import OmegaConf, SCMode
from torch import nn

from whybox.detectors.detectron2 import Detectron2Detector, Pictures, wrap
from whybox.detectors.detectron2_checkpoint import CONFIG_FILE, Checkpoint, find_checkpoint, read_checkpoint
from whybox.detectors.detectron2_config import (
    NAME,
    TARGET,
    check_config,
    is_lazy,
    lazy_config,
    read_config,
)
from whybox.detectors.weights import PACKED, fit_weights, write_weights
from whybox.recipe import Recipe, RecipeError

OWN = "config"
"""The architecture whose configuration is the user's own file."""

ZOO_FOLDERS = ("COCO-Detection", "COCO-InstanceSegmentation", "Misc", "COCO-Keypoints")
"""Where a name of the zoo without a folder is looked for, in this order."""

_KEPT = {"INPUT": ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST"), "TEST": ("DETECTIONS_PER_IMAGE",)}
"""Of a flattened configuration, beside ``MODEL`` and ``VERSION``."""


def load(recipe: Recipe, weights: Path) -> Detectron2Detector:
    """Load a recipe's detector; see `whybox.detectors.registry.Family.load`."""
    return _load(recipe, weights)[0]


def pack(recipe: Recipe, weights: Path, folder: Path) -> tuple[Recipe, Path]:
    """Make a checkpoint self-contained; see `whybox.detectors.registry.Family.pack`."""
    detector, config = _load(recipe, weights)
    packed = folder / PACKED
    write_weights(detector.model.state_dict(), packed)
    return dataclasses.replace(recipe, options={"config": config}), packed


def _load(recipe: Recipe, weights: Path) -> tuple[Detectron2Detector, dict[str, Any]]:
    """The detector, and its whole configuration."""
    where = f"{recipe.name}: options.config"
    if recipe.background:
        raise RecipeError(
            f"{recipe.name}: background: expected false, as detectron2's heads have no unused first class; "
            "got true"
        )
    given = _config(recipe, weights)
    try:
        model, config, pictures = (_build_lazy if is_lazy(given) else _build_sections)(given, where)
    except RecipeError:
        raise
    except Exception as error:  # whatever detectron2's own checks raise
        raise RecipeError(f"{where}: detectron2 cannot build it: {type(error).__name__}: {error}") from error
    _fit(model, read_checkpoint(find_checkpoint(weights)))
    try:
        return wrap(model, recipe.labels, pictures), config
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{recipe.name}: {error}") from error


def _config(recipe: Recipe, weights: Path) -> dict[str, Any]:
    """Read the configuration that a recipe says."""
    extra = [name for name in recipe.options if name != "config"]
    if extra:
        raise RecipeError(f"{recipe.name}: options: expected config; got {', '.join(map(str, extra))}")
    given = recipe.options.get("config")
    if isinstance(given, Mapping):
        return check_config(given, f"{recipe.name}: options.config")
    folder = weights if weights.is_dir() else weights.parent
    if given is None and recipe.architecture != OWN:
        return zoo_config(recipe)
    if given is None:
        given = CONFIG_FILE
    if not isinstance(given, str):
        raise RecipeError(f"{recipe.name}: options.config: expected a file; got {given!r}")
    path = folder / given
    if path.suffix == ".py":
        raise RecipeError(
            f"{recipe.name}: options.config: expected YAML, as LazyConfig.save writes it: a lazy config in "
            f"Python is a program; got {given!r}"
        )
    return read_config(path, folder)


def zoo_config(recipe: Recipe) -> dict[str, Any]:
    """Read the configuration of the installed detectron2's model zoo that is a recipe's architecture.

    Case does not matter; a name without its folder is looked for in `ZOO_FOLDERS`.

    Raises:
        RecipeError: if there is none of that name.
    """
    root = Path(str(importlib.resources.files("detectron2"))) / "model_zoo" / "configs"
    named = {
        f"{folder}/{path.name}".casefold(): path
        for folder in ZOO_FOLDERS
        for suffix in ("*.py", "*.yaml")
        for path in sorted((root / folder).glob(suffix))
    }
    asked = recipe.architecture.casefold()
    folders = [""] if "/" in asked else [f"{folder.casefold()}/" for folder in ZOO_FOLDERS]
    for folder in folders:
        for suffix in ("", ".yaml", ".py"):
            path = named.get(f"{folder}{asked}{suffix}")
            if path is not None:
                return _lazy_zoo(path) if path.suffix == ".py" else read_config(path, root)
    known = sorted({path.stem for path in named.values()})
    near = difflib.get_close_matches(recipe.architecture, known, 3) or known[:3]
    raise RecipeError(
        f"{recipe.name}: architecture: expected {OWN}, or a name of detectron2's model zoo such as "
        f"{', '.join(near)}; got {recipe.architecture!r}"
    )


def _lazy_zoo(path: Path) -> dict[str, Any]:
    """Run a lazy config that detectron2 itself comes with."""
    loaded = LazyConfig.load(str(path))
    said = {name: loaded[name] for name in ("model", "dataloader") if name in loaded}
    plain = {name: _plain(part) for name, part in _contained(said).items()}
    return check_config(lazy_config(plain, str(path)), str(path))


def _contained(data: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve the references within a lazy config."""
    made = OmegaConf.create(dict(data), flags={"allow_objects": True})
    found: Any = OmegaConf.to_container(made, resolve=True, structured_config_mode=SCMode.INSTANTIATE)
    return dict(found)


def _plain(value: Any, *, called: bool = False) -> Any:
    """Write a lazy config as plain data: names instead of what they name, of which some are called."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {TARGET: _convert_target_to_string(type(value)), **fields}
    if isinstance(value, Mapping):
        return {name: _plain(item, called=name == TARGET) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if callable(value):
        known = "<" not in getattr(value, "__qualname__", "<")  # a function without a name has none
        name = _convert_target_to_string(value) if known else "a function"
        return name if called else {NAME: name}
    return value


def _named(value: Any, where: str) -> Any:
    """Put what is named where plain data has its name."""
    if isinstance(value, Mapping):
        if NAME in value:
            return _located(value[NAME], f"{where}.{NAME}")
        return {
            name: _located(item, f"{where}.{name}") if name == TARGET else _named(item, f"{where}.{name}")
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_named(item, f"{where}[{position}]") for position, item in enumerate(value)]
    return value


def _located(name: str, where: str) -> Any:
    """Find what a module of detectron2's has under a name."""
    try:
        found = locate(name)
    except Exception as error:  # whatever importing what is not there raises
        raise RecipeError(f"{where}: the installed detectron2 has no {name}") from error
    if not callable(found):
        raise RecipeError(f"{where}: the installed detectron2 has no {name}")
    return found


def _build_lazy(data: Mapping[str, Any], where: str) -> tuple[nn.Module, dict[str, Any], Pictures]:
    config = check_config(lazy_config(data, where), where)
    model = instantiate(_named(config["model"], f"{where}: model"))
    if not isinstance(model, nn.Module):
        raise RecipeError(f"{where}: model: expected a model; got {type(model).__name__}")
    return model, config, Pictures(**config["input"])


def _build_sections(data: Mapping[str, Any], where: str) -> tuple[nn.Module, dict[str, Any], Pictures]:
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(dict(data)))
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    config = {"VERSION": cfg.VERSION, "MODEL": _sections(cfg.MODEL)}
    config |= {name: {key: cfg[name][key] for key in keys} for name, keys in _KEPT.items()}
    check_config(config, where)
    seen = cfg.INPUT
    return build_model(cfg), config, Pictures(seen.MIN_SIZE_TEST, seen.MAX_SIZE_TEST, seen.FORMAT)


def _sections(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _sections(item) for name, item in value.items()}
    return [_sections(item) for item in value] if isinstance(value, list | tuple) else value


def _fit(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint as detectron2's own checkpointer does, but for what it would only warn of."""
    weights = checkpoint.weights
    if checkpoint.by_suffix:
        try:
            weights = align_and_update_state_dicts(
                model.state_dict(), dict(weights), c2_conversion=checkpoint.caffe2
            )
        except (AssertionError, IndexError, ValueError) as error:
            raise RecipeError(f"{checkpoint.path}: its names cannot be matched: {error}") from error
    frozen = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, FrozenBatchNorm2d)
        for part in ("running_mean", "running_var")
    }
    # Caffe2's models have them in the norm's weight and bias.
    fit_weights(model, weights, checkpoint.path, optional=lambda name: checkpoint.caffe2 and name in frozen)
