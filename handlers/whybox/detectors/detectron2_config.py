"""Reads detectron2's configuration files without running what is in them, and checks what they name.

detectron2 itself reads its YAML with a loader that calls any function, looks modules up in registries that
any import can extend, and instantiates whatever a lazy config names. Here a file is data. Of Python it may
hold tuples, arithmetic on numbers (the zoo's anchor sizes are written so) and objects of `TARGETS`; it may
name detectron2's own modules alone. Nothing here needs detectron2.

A configuration is one of two mappings: *sections*, as `CfgNode` has them (``MODEL``, ``INPUT``, …), and
*lazy*, with ``model`` (nested ``_target_`` and arguments) and ``input`` (`check_input`). A class that is
itself an argument is a mapping with its `NAME` alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from whybox.detectors.detectron2_arithmetic import compute
from whybox.detectors.detectron2_pictures import FORMATS, check_input, input_of
from whybox.detectors.detectron2_references import MAX_VALUES, resolve
from whybox.recipe import RecipeError

BASE = "_BASE_"
MAX_BASES = 10

CHOICES: dict[str, tuple[Any, ...]] = {
    "VERSION": (2,),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "RetinaNet"),
    "MODEL.LOAD_PROPOSALS": (False,),
    "MODEL.BACKBONE.NAME": (
        "build_resnet_backbone",
        "build_resnet_fpn_backbone",
        "build_retinanet_resnet_fpn_backbone",
    ),
    # detectron2 cannot differentiate its deformable convolutions on CPUs, nor several gradients at once.
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ([False] * 4,),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "Res5ROIHeads", "CascadeROIHeads"),
    "MODEL.ROI_BOX_HEAD.NAME": ("", "FastRCNNConvFCHead"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlign"),
    "MODEL.ROI_MASK_HEAD.NAME": ("", "MaskRCNNConvUpsampleHead"),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlign"),
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ("", "KRCNNConvDeconvUpsampleHead"),
    "INPUT.FORMAT": FORMATS,
}
"""What the fields that name code, or change what a model is, may be."""

TARGETS: dict[str, tuple[str, ...]] = {
    "detectron2.layers": ("ShapeSpec", "FrozenBatchNorm2d", "NaiveSyncBatchNorm"),
    "detectron2.modeling": (
        *("RetinaNet", "RetinaNetHead", "FCOS", "FCOSHead", "GeneralizedRCNN"),
        *("FPN", "LastLevelMaxPool", "LastLevelP6P7"),
        *("ResNet", "ResNet.make_stage", "ResNet.make_default_stages", "BasicStem"),
        *("BasicBlock", "BottleneckBlock"),
        *("DefaultAnchorGenerator", "Matcher", "Box2BoxTransform", "Box2BoxTransformLinear"),
        *("RPN", "StandardRPNHead", "ROIPooler", "StandardROIHeads", "Res5ROIHeads", "CascadeROIHeads"),
        *("FastRCNNConvFCHead", "FastRCNNOutputLayers", "MaskRCNNConvUpsampleHead"),
        "KRCNNConvDeconvUpsampleHead",
    ),
    "torch.nn": ("BatchNorm2d", "GroupNorm", "Linear"),
}
"""What a lazy config may instantiate: within a package, at any depth, these names."""

TARGET, NAME = "_target_", "_name_"
"""In a lazy config: what is called with the mapping's other entries, and what is not called."""

NOT_LOADED = "modules of your own are not loaded"

_PYTHON = "tag:yaml.org,2002:python/"


def read_config(path: Path, root: Path) -> dict[str, Any]:
    """Read a YAML file of sections or of a lazy config.

    Args:
        path: the file.
        root: the folder in which the files are that it is based on.

    Returns:
        The configuration: the files that it is based on merged in, checked by `check_config`.

    Raises:
        RecipeError: if a file is missing, no regular file or not in the folder, holds code, or names what is
            not detectron2's own.
    """
    return check_config(_whole(_read(path, root, 0), str(path)), str(path))


def check_config(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check what a configuration names.

    Args:
        data: sections, or a lazy config.
        where: the file, for messages.

    Returns:
        The configuration.

    Raises:
        RecipeError: naming the field, what was expected and what came.
    """
    _check_size(data, where)
    if is_lazy(data):
        _check_targets(data["model"], f"{where}: model")
        check_input(data.get("input"), f"{where}: input")
        return dict(data)
    if not isinstance(data.get("MODEL"), Mapping):
        raise RecipeError(
            f"{where}: expected the section MODEL, or a lazy config's model; got {_names(data)}"
        )
    for field, choices in CHOICES.items():
        value: Any = data
        for name in field.split("."):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{where}: {field}: expected sections above it; got {value!r}")
            if name not in value:
                break
            value = value[name]
        else:
            if value not in choices or type(value) not in {type(c) for c in choices}:
                expected = " or ".join(repr(choice) for choice in choices)
                why = f"; {NOT_LOADED}" if isinstance(choices[0], str) else ""
                raise RecipeError(f"{where}: {field}: expected {expected}; got {value!r}{why}")
    return dict(data)


def is_lazy(data: Mapping[str, Any]) -> bool:
    """Say whether a configuration is a lazy one."""
    return isinstance(data.get("model"), Mapping) and TARGET in data["model"]


def lazy_config(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keep what detection needs of a whole lazy config, without references: its model, how it takes pictures.

    Args:
        data: with ``model``, and ``dataloader`` where the file has one.
        where: the file, for messages.

    Raises:
        RecipeError: see `whybox.detectors.detectron2_pictures.input_of`, and for references to what is not
            there.
    """
    return {"model": resolve(data, ("model",), where), "input": input_of(data, where)}


def _whole(data: dict[str, Any], where: str) -> dict[str, Any]:
    return lazy_config(data, where) if is_lazy(data) else data


def _read(path: Path, root: Path, depth: int) -> dict[str, Any]:
    """Read a file and those that it is based on."""
    if depth > MAX_BASES:
        raise RecipeError(f"{path}: {BASE}: expected at most {MAX_BASES} files, each based on the next")
    try:
        data = yaml.load(_text(path), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # the last of dates that are none
        raise RecipeError(f"{path}: cannot be read as plain YAML: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RecipeError(f"{path}: expected a mapping of names; got {type(data).__name__}")
    _check_size(data, str(path))
    base = data.pop(BASE, None)
    if base is None:
        return data
    below = _inside(path.parent / base, root) if isinstance(base, str) and "://" not in base else None
    if below is None:
        raise RecipeError(
            f"{path}: {BASE}: expected a file in the folder of the weights or below; got {base!r}"
        )
    return _merged(_read(below, root, depth + 1), data)


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise OSError("expected a regular file")  # a pipe's end may never come
    return path.read_text(encoding="utf-8")


def _inside(path: Path, root: Path) -> Path | None:
    """Find a path without links and dots, if it is inside a folder."""
    try:
        found = path.resolve()
        return found if found.is_relative_to(root.resolve()) else None
    except (OSError, ValueError, RuntimeError):  # a name too long or with zeros; links in a circle
        return None


def _check_size(data: Any, where: str) -> None:
    """Check that a configuration ends, and soon: what YAML's aliases say may be within itself."""
    left, count = [data], 0
    while left:
        value = left.pop()
        count += 1
        if count > MAX_VALUES:
            raise RecipeError(f"{where}: expected at most {MAX_VALUES} values; got more")
        if isinstance(value, Mapping):
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        known = merged.get(name)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        merged[name] = _merged(known, value) if both else value  # type: ignore[arg-type]
    return merged


def _check_targets(value: Any, where: str) -> None:
    """Check that nothing but `TARGETS` is instantiated."""
    if isinstance(value, Mapping):
        for key in (TARGET, NAME):
            if key in value and not is_target(value[key]):
                raise RecipeError(
                    f"{where}.{key}: expected a module of detectron2's detectors; got {value[key]!r}; "
                    f"{NOT_LOADED}"
                )
        for name, item in value.items():
            if not isinstance(name, str):
                raise RecipeError(f"{where}: expected names; got {name!r}")
            _check_targets(item, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check_targets(item, f"{where}[{position}]")
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise RecipeError(f"{where}: expected plain data; got {type(value).__name__}")


def is_target(name: Any) -> bool:
    """Say whether a lazy config may instantiate what has this name."""
    if not isinstance(name, str):
        return False
    for package, targets in TARGETS.items():
        for target in targets:
            before = name.removesuffix(f".{target}")
            inside = before != name and (before == package or before.startswith(f"{package}."))
            if inside and re.fullmatch(r"[a-z0-9_.]+", before) and "._" not in before:
                return True
    return False


def _names(data: Mapping[str, Any]) -> str:
    return ", ".join(map(str, data)) or "nothing"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which knows also what detectron2's files hold of Python and is data."""


def _tuple(loader: _Loader, node: yaml.Node) -> list[Any]:
    return loader.construct_sequence(node, deep=True)  # type: ignore[arg-type]


def _arithmetic(loader: _Loader, node: yaml.Node) -> Any:
    said = loader.construct_sequence(node)  # type: ignore[arg-type]
    try:
        if len(said) != 1:
            raise ValueError("expected one line of arithmetic")
        return compute(said[0])
    except ValueError as error:
        raise yaml.constructor.ConstructorError(
            None, None, f"an expression is not arithmetic on numbers: {error}", node.start_mark
        ) from error


def _object(loader: _Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    if not is_target(name) or not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(
            None, None, f"found an object of Python, {name}", node.start_mark
        )
    fields = {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}
    return {TARGET: name, **fields}


def _class(loader: _Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    del loader
    if not is_target(name):
        raise yaml.constructor.ConstructorError(
            None, None, f"found a name of Python, {name}", node.start_mark
        )
    return {NAME: name}


_Loader.add_constructor(f"{_PYTHON}tuple", _tuple)
_Loader.add_constructor(f"{_PYTHON}object/apply:eval", _arithmetic)
_Loader.add_multi_constructor(f"{_PYTHON}object:", _object)
_Loader.add_multi_constructor(f"{_PYTHON}name:", _class)
