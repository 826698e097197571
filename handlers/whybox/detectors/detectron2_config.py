"""Reads detectron2's configuration files without running what is in them, and checks what they name.

detectron2 itself reads its YAML with a loader that calls any function, looks modules up in registries that
any import can extend, and instantiates whatever a lazy config names. Here a file is data. Of Python it may
hold tuples, arithmetic on numbers (the zoo's anchor sizes are written so) and objects of `TARGETS`; it may
name detectron2's own modules alone. Nothing here needs detectron2.

A configuration is one of two mappings: *sections*, as `CfgNode` has them (``MODEL``, ``INPUT``, …), and
*lazy*, with ``model`` (nested ``_target_`` and arguments) and ``input`` (`LAZY_INPUT`). A class that is
itself an argument is a mapping with its `NAME` alone.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from whybox.recipe import RecipeError

BASE = "_BASE_"
MAX_BASES = 10

LAZY_INPUT: dict[str, Any] = {"min_size": 800, "max_size": 1333, "format": "BGR"}
"""What a lazy config says of its pictures, with detectron2's own values for its COCO models."""

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
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ("", "KRCNNConvDeconvUpsampleHead"),
    "INPUT.FORMAT": ("BGR", "RGB"),
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
_RESOLVER = re.compile(r"\$\{[^}]*:")


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of sections or of a lazy config.

    Returns:
        The configuration: the files that it is based on merged in, checked by `check_config`.

    Raises:
        RecipeError: if a file is missing, holds code, or names what is not detectron2's own.
    """
    return check_config(_whole(_read(path, 0), str(path)), str(path))


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
    if is_lazy(data):
        _check_targets(data["model"], f"{where}: model")
        _check_input(data["input"], f"{where}: input")
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
    """Keep what detection needs of a whole lazy config: its model, and how it takes pictures.

    Args:
        data: with ``model``, and ``dataloader`` where the file has one.
        where: the file, for messages.

    Raises:
        RecipeError: if the test set's pictures are not resized by their shorter edge alone.
    """
    if "input" in data:
        return {"model": data["model"], "input": {**LAZY_INPUT, **data["input"]}}
    given: Any = data
    for name in ("dataloader", "test", "mapper"):
        given = given.get(name) if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping):
        return {"model": data["model"], "input": dict(LAZY_INPUT)}
    said = dict(LAZY_INPUT)
    steps = given.get("augmentations", [])
    if not (
        isinstance(steps, list)
        and len(steps) == 1
        and isinstance(steps[0], Mapping)
        and str(steps[0].get(TARGET)).rpartition(".")[2] == "ResizeShortestEdge"
    ):
        raise RecipeError(
            f"{where}: dataloader.test.mapper.augmentations: expected ResizeShortestEdge alone; got {steps!r}"
        )
    edge = steps[0].get("short_edge_length", said["min_size"])
    said["min_size"] = edge[0] if isinstance(edge, list) and len(set(edge)) == 1 else edge
    said["max_size"] = steps[0].get("max_size", said["max_size"])
    if given.get("image_format") in CHOICES["INPUT.FORMAT"]:  # else a reference into a part that is left out
        said["format"] = given["image_format"]
    return {"model": data["model"], "input": said}


def _whole(data: dict[str, Any], where: str) -> dict[str, Any]:
    return lazy_config(data, where) if is_lazy(data) else data


def _read(path: Path, depth: int) -> dict[str, Any]:
    """Read a file and those that it is based on."""
    if depth > MAX_BASES:
        raise RecipeError(f"{path}: {BASE}: expected at most {MAX_BASES} files, each based on the next")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot be read as plain YAML: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RecipeError(f"{path}: expected a mapping of names; got {type(data).__name__}")
    base = data.pop(BASE, None)
    if base is None:
        return data
    if not isinstance(base, str) or "://" in base:
        raise RecipeError(f"{path}: {BASE}: expected a file beside this one; got {base!r}")
    return _merged(_read(path.parent / base, depth + 1), data)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        known = merged.get(name)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        merged[name] = _merged(known, value) if both else value  # type: ignore[arg-type]
    return merged


def _check_targets(value: Any, where: str) -> None:
    """Check that nothing but `TARGETS` is instantiated, and that references stay within the config."""
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
    elif isinstance(value, str):
        if _RESOLVER.search(value):
            raise RecipeError(f"{where}: expected references within the config; got {value!r}")
    elif value is not None and not isinstance(value, bool | int | float):
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


def _check_input(given: Any, where: str) -> None:
    if not isinstance(given, Mapping) or set(given) != set(LAZY_INPUT):
        raise RecipeError(f"{where}: expected {', '.join(LAZY_INPUT)}; got {given!r}")
    for name in ("min_size", "max_size"):
        if type(given[name]) is not int or given[name] < 0:
            raise RecipeError(f"{where}.{name}: expected a number of pixels; got {given[name]!r}")
    if given["format"] not in CHOICES["INPUT.FORMAT"]:
        raise RecipeError(f"{where}.format: expected BGR or RGB; got {given['format']!r}")


def _names(data: Mapping[str, Any]) -> str:
    return ", ".join(map(str, data)) or "nothing"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which knows also what detectron2's files hold of Python and is data."""


def _tuple(loader: _Loader, node: yaml.Node) -> list[Any]:
    return loader.construct_sequence(node, deep=True)  # type: ignore[arg-type]


def _arithmetic(loader: _Loader, node: yaml.Node) -> Any:
    said = loader.construct_sequence(node)  # type: ignore[arg-type]
    try:
        if len(said) != 1 or not isinstance(said[0], str) or len(said[0]) > 1000:
            raise ValueError("expected one line of arithmetic")
        return _value(ast.parse(said[0], mode="eval").body, {})
    except (ValueError, SyntaxError, ArithmeticError) as error:
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

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_LARGEST = 1e9
"""Of the numbers that an expression may have to do with."""


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Compute an expression of numbers, lists, and lists made of lists.

    Raises:
        ValueError: for anything else.
    """
    match node:
        case ast.Constant(value=int() | float() as value) if abs(value) <= _LARGEST:
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, names) for item in items]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, names)
        case ast.BinOp(left=left, op=how, right=right) if type(how) in _OPERATORS:
            a, b = _number(left, names), _number(right, names)
            if isinstance(how, ast.Pow) and abs(b) > 64:
                raise ValueError("a power is too large")
            return _OPERATORS[type(how)](a, b)
        case ast.ListComp(
            elt=item, generators=[ast.comprehension(target=ast.Name(id=name), iter=source, ifs=[])]
        ):
            over = _value(source, names)
            if not isinstance(over, list):
                raise ValueError("a list is made of a number")
            return [_value(item, {**names, name: each}) for each in over]
    raise ValueError(f"found {type(node).__name__}")


def _number(node: ast.expr, names: Mapping[str, Any]) -> Any:
    value = _value(node, names)
    if not isinstance(value, int | float) or abs(value) > _LARGEST:
        raise ValueError("expected numbers of moderate size")
    return value
