"""What a layout inversion must satisfy, given the model's own description; see `whybox_proto.checks`."""

from __future__ import annotations

import math

from google.protobuf import struct_pb2

from whybox_proto.checks import (
    check_given_box_inside,
    check_image_bytes,
    check_known,
    check_mask,
    check_params,
    check_range,
)
from whybox_proto.errors import ContractError, shorten, unknown_name
from whybox_proto.v1 import explainer_pb2, types_pb2

LONGEST_KEY = 200
MOST_PRIORITY = 9
LEAST_OBJECT = 2.0
"""Shortest side of an object, in pixels."""


def check_inversion(request: explainer_pb2.CreateInversionRequest, model: types_pb2.Model) -> None:
    """Check an inversion against the model that shall be inverted.

    Whether a picture to start from can be decoded shows where that is done; `check_start` is for its size.

    Raises:
        ContractError: with the path of the first field at fault.
    """
    check_known(request)
    if not model.HasField("inversion"):
        raise ContractError(
            "invalid_argument",
            f"{model.name} cannot be inverted",
            field="model",
            expected="a model whose description has `inversion`",
            got=shorten(model.name),
        )
    _check_layout(request.layout, model)
    check_params(request.params, model.inversion.params)
    _check_losses(request)
    _check_level_weights(request.params)
    check_range(request.priority, field="priority", low=0, high=MOST_PRIORITY)
    if len(request.idempotency_key) > LONGEST_KEY:
        raise ContractError(
            "invalid_argument",
            "the idempotency key is too long",
            field="idempotency_key",
            expected=f"at most {LONGEST_KEY} characters",
            got=f"{len(request.idempotency_key)} characters",
        )
    if request.image:
        check_image_bytes(request.image, model)
        _check_start_fits(request.layout, model)


def check_start(layout: types_pb2.Layout, width: int, height: int) -> None:
    """Check the size of a picture to start from, upright and in pixels.

    Raises:
        ContractError: where it is not the layout's.
    """
    if (width, height) != (layout.width, layout.height):
        raise ContractError(
            "invalid_argument",
            "the picture to start from is not of the layout's size",
            field="image",
            expected=f"{layout.width} x {layout.height} pixels",
            got=f"{width} x {height} pixels",
        )


def numbers_of(level_weights: str) -> list[float]:
    """Read the parameter `level_weights`: numbers joined by commas.

    Raises:
        ValueError: for anything else.
    """
    return [float(part) for part in level_weights.split(",")] if level_weights.strip() else []


def _check_layout(layout: types_pb2.Layout, model: types_pb2.Model) -> None:
    limits = model.inversion
    longest = min(model.input.max_side or math.inf, limits.max_pixels // limits.min_side)
    check_range(layout.width, field="layout.width", low=limits.min_side, high=longest)
    check_range(layout.height, field="layout.height", low=limits.min_side, high=longest)
    if layout.width * layout.height > limits.max_pixels:
        raise ContractError(
            "invalid_argument",
            "the layout is too large",
            field="layout",
            expected=f"width times height of at most {limits.max_pixels}",
            got=f"{layout.width} x {layout.height}",
        )
    if not 1 <= len(layout.objects) <= limits.max_objects:
        raise ContractError(
            "invalid_argument",
            "the layout has no objects" if not layout.objects else "the layout has too many objects",
            field="layout.objects",
            expected=f"1 to {limits.max_objects} objects",
            got=f"{len(layout.objects)} objects",
        )
    for i, thing in enumerate(layout.objects):
        _check_object(thing, layout, model, field=f"layout.objects[{i}]")


def _check_start_fits(layout: types_pb2.Layout, model: types_pb2.Model) -> None:
    """Check that a picture to start from, which is of the layout's size, is one that the model takes."""
    pixels, most = layout.width * layout.height, model.input.max_aspect
    if model.input.max_pixels and pixels > model.input.max_pixels:
        raise ContractError(
            "request_too_large",
            "the picture to start from has too many pixels",
            field="image",
            expected=f"at most {model.input.max_pixels} pixels; or no picture",
            got=f"{layout.width} x {layout.height} pixels",
        )
    if most and max(layout.width, layout.height) > most * min(layout.width, layout.height):
        raise ContractError(
            "invalid_argument",
            "the picture to start from is too long and thin",
            field="image",
            expected=f"a longer side of at most {most} times the shorter one; or no picture",
            got=f"{layout.width} x {layout.height} pixels",
        )


def _check_object(
    thing: types_pb2.LayoutObject, layout: types_pb2.Layout, model: types_pb2.Model, *, field: str
) -> None:
    if thing.label not in model.labels:
        raise unknown_name("unknown_label", "label", thing.label, model.labels, field=f"{field}.label")
    check_given_box_inside(thing.box, field=f"{field}.box", size=(layout.width, layout.height))
    sides = thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]
    if min(sides) < LEAST_OBJECT:
        raise ContractError(
            "invalid_argument",
            "an object is too thin to be seen",
            field=f"{field}.box",
            expected=f"sides of at least {LEAST_OBJECT:g} pixels",
            got=f"{sides[0]:g} x {sides[1]:g}",
        )
    if thing.evidence:
        raise ContractError(
            "invalid_argument",
            "an inversion takes no evidence",
            field=f"{field}.evidence",
            expected="nothing",
            got=shorten(thing.evidence),
        )
    if thing.mask:
        if not model.inversion.masks:
            raise ContractError(
                "invalid_argument",
                f"{model.name} has no masks",
                field=f"{field}.mask",
                expected="nothing: the model finds boxes only",
                got=shorten(thing.mask),
            )
        check_mask(thing.mask, layout, field=f"{field}.mask")


def _check_losses(request: explainer_pb2.CreateInversionRequest) -> None:
    """Check that masks are asked for only where the layout has some."""
    asked = request.params.fields["losses"].string_value if "losses" in request.params.fields else ""
    if "mask" in asked.split("+") and not any(thing.mask for thing in request.layout.objects):
        raise ContractError(
            "invalid_argument",
            "no object of the layout has a mask",
            field="params.losses",
            expected="cls, reg or cls+reg; or a layout with masks, and a model that finds them",
            got=shorten(asked),
        )


def _check_level_weights(params: struct_pb2.Struct) -> None:
    if "level_weights" not in params.fields:
        return
    told = params.fields["level_weights"].string_value
    try:
        weights = numbers_of(told)
    except ValueError:
        weights = [math.nan]
    if len(weights) > 5 or not all(math.isfinite(w) and 0 <= w <= 1e4 for w in weights):
        raise ContractError(
            "invalid_argument",
            "level_weights are not weights",
            field="params.level_weights",
            expected="up to five numbers from 0 to 10000, joined by commas, finest level first",
            got=shorten(told),
        )
