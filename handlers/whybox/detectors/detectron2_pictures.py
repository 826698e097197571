"""How a lazy config takes pictures: what its test set's mapper says, or detectron2's COCO models' own values.

Nothing here needs detectron2.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from PIL import Image

from whybox.detectors.detectron2_references import ABSENT, look_up
from whybox.recipe import RecipeError

FORMATS = ("BGR", "RGB")

LAZY_INPUT: dict[str, Any] = {"min_size": 800, "max_size": 1333, "format": "BGR"}
"""Where a lazy config says nothing of its pictures: detectron2's own values for its COCO models."""

MAPPER = ("dataloader", "test", "mapper")
"""Where a lazy config says how the pictures of its test set are prepared."""

_STEP = "ResizeShortestEdge"
_STEP_FIELDS = ("_target_", "short_edge_length", "max_size", "sample_style", "interp")
_BILINEAR = int(Image.Resampling.BILINEAR)


def input_of(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read how a whole lazy config takes pictures: ``input`` if it has that, else its test set's mapper.

    Args:
        data: the config.
        where: the file, for messages.

    Returns:
        The fields of `LAZY_INPUT`, checked by `check_input`.

    Raises:
        RecipeError: if pictures are not resized by their shorter edge alone, to one size, bilinearly; or a
            field is of another type, or refers to what is not there.
    """
    if "input" in data:
        given = data["input"]
        return check_input(
            {**LAZY_INPUT, **given} if isinstance(given, Mapping) else given, f"{where}: input"
        )
    for depth in range(1, len(MAPPER) + 1):
        part = look_up(data, MAPPER[:depth], where)
        if part is ABSENT:
            return dict(LAZY_INPUT)
        if not isinstance(part, Mapping):
            raise RecipeError(f"{where}: {'.'.join(MAPPER[:depth])}: expected a mapping; got {part!r}")
    field = f"{where}: {'.'.join(MAPPER)}"
    min_size, max_size = _resizing(data, where)
    channels = look_up(data, (*MAPPER, "image_format"), where)
    if channels not in FORMATS:
        raise RecipeError(f"{field}.image_format: expected BGR or RGB; got {channels!r}")
    return {"min_size": min_size, "max_size": max_size, "format": channels}


def check_input(given: Any, where: str) -> dict[str, Any]:
    """Check the fields of `LAZY_INPUT`.

    Raises:
        RecipeError: naming the field.
    """
    if not isinstance(given, Mapping) or set(given) != set(LAZY_INPUT):
        raise RecipeError(f"{where}: expected {', '.join(LAZY_INPUT)}; got {given!r}")
    for name in ("min_size", "max_size"):
        least = 1 if name == "max_size" and given["min_size"] else 0
        if type(given[name]) is not int or given[name] < least:
            raise RecipeError(f"{where}.{name}: expected a number of pixels; got {given[name]!r}")
    if given["format"] not in FORMATS:
        raise RecipeError(f"{where}.format: expected BGR or RGB; got {given['format']!r}")
    return dict(given)


def _resizing(data: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Read the shorter side's pixels, and the longer side's most, as detectron2's own class would."""
    place = (*MAPPER, "augmentations")
    steps = look_up(data, place, where)
    step = look_up(data, (*place, 0), where) if isinstance(steps, list) and len(steps) == 1 else None
    if not isinstance(step, Mapping) or str(step.get("_target_")).rpartition(".")[2] != _STEP:
        raise RecipeError(f"{where}: {'.'.join(place)}: expected {_STEP} alone; got {steps!r}")
    field = f"{where}: {'.'.join(place)}[0]"
    unknown = [name for name in step if name not in _STEP_FIELDS]
    if unknown:
        raise RecipeError(
            f"{field}: expected {', '.join(_STEP_FIELDS[1:])}; got {', '.join(map(str, unknown))}"
        )
    values = {name: look_up(data, (*place, 0, name), where) for name in step}
    edge = values.get("short_edge_length", ABSENT)
    edges = (
        [look_up(data, (*place, 0, "short_edge_length", i), where) for i in range(len(edge))]
        if isinstance(edge, list)
        else [edge]
    )
    style = values.get("sample_style", "range")
    if style not in ("range", "choice"):
        raise RecipeError(f"{field}.sample_style: expected range or choice; got {style!r}")
    two = style == "choice" or not isinstance(edge, list) or len(edge) == 2
    if not edges or not two or any(not _is_size(e, 0) or e != edges[0] for e in edges):
        raise RecipeError(
            f"{field}.short_edge_length: expected a number of pixels, or the same one twice; got {edge!r}"
        )
    longest = values.get("max_size", sys.maxsize)
    if not _is_size(longest, 1):
        raise RecipeError(f"{field}.max_size: expected a number of pixels; got {longest!r}")
    interp = values.get("interp", _BILINEAR)
    if type(interp) is not int or interp != _BILINEAR:
        raise RecipeError(f"{field}.interp: expected {_BILINEAR}, bilinear; got {interp!r}")
    return edges[0], longest


def _is_size(value: Any, least: int) -> bool:
    return type(value) is int and value >= least
