"""What a model says of itself: labels, limits, methods and their parameters, layers, NMS, measures, shift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from whybox.detectors.base import Detector, WhiteBoxDetector
from whybox.diagnosis import read_shifts
from whybox.images import FORMATS
from whybox.inversion.settings import (
    MAX_OBJECTS,
    MAX_PIXELS,
    MIN_SIDE,
    PARAMS,
    PRESETS,
    preset,
    struct_of,
)
from whybox.methods import METHODS
from whybox.methods.base import Method, Param, ParamValue
from whybox.metrics.measures import MEASURES
from whybox.nms import KINDS
from whybox.recipe import Recipe, RecipeError
from whybox_proto.checks import check_nms_number
from whybox_proto.errors import ContractError
from whybox_proto.v1 import types_pb2

_TYPES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def describe(recipe: Recipe, detector: Detector) -> types_pb2.Model:
    """Describe a model.

    Raises:
        RecipeError: if the recipe names methods, layers or parameters that there are not, records a shift
            that cannot be, or takes pictures of which nothing is left when they are scaled.
    """
    for name, chosen in recipe.methods.items():
        if name not in METHODS:
            raise RecipeError(f"methods: expected one of {', '.join(METHODS)}; got {name!r}")
        if not isinstance(chosen, Mapping):
            raise RecipeError(f"methods.{name}: expected a mapping; got {chosen!r}")
    most = detector.max_aspect
    if most is not None and min(recipe.input.max_aspect, recipe.input.max_side) > most:
        raise RecipeError(
            f"input.max_aspect: expected at most {most}, as thinner pictures vanish when they are scaled to "
            f"this network's input; got {recipe.input.max_aspect}"
        )
    defaults = detector.defaults
    model = types_pb2.Model(
        name=recipe.name,
        version=recipe.version,
        description=recipe.description,
        family=recipe.family,
        architecture=recipe.architecture,
        labels=detector.labels,
        input=types_pb2.InputLimits(
            max_bytes=recipe.input.max_bytes,
            max_pixels=recipe.input.max_pixels,
            max_side=recipe.input.max_side,
            max_aspect=recipe.input.max_aspect,
            formats=FORMATS,
        ),
        score_threshold=defaults.score_threshold
        if recipe.score_threshold is None
        else recipe.score_threshold,
        nms=_describe_nms(recipe, detector),
        default_nms=recipe.nms.get("default", defaults.nms),
        weights_sha256=recipe.packed_sha256,
    )
    for method in METHODS.values():
        layers = method.layers(detector)
        if layers is not None:
            model.methods.append(_describe_method(method, layers, dict(recipe.methods.get(method.name, {}))))
    for measure in MEASURES.values():
        model.measures.add(
            name=measure.name, protocol=measure.protocol, better=measure.better, needs=measure.needs
        )
    if isinstance(detector, WhiteBoxDetector):
        for layer in detector.layers.values():
            model.layers.append(
                types_pb2.Layer(
                    name=layer.name, kind=layer.kind, channels=layer.channels, stride=layer.stride
                )
            )
        if detector.stages:
            model.inversion.CopyFrom(describe_inversion(detector))
    model.spatial_shifts.extend(read_shifts(recipe.diagnosis, [layer.name for layer in model.layers]))
    return model


def _describe_nms(recipe: Recipe, detector: Detector) -> list[types_pb2.Nms]:
    """Describe each kind of NMS with the detector's numbers, or the recipe's where it has some."""
    default = recipe.nms.get("default", detector.defaults.nms)
    if default not in KINDS:
        raise RecipeError(f"nms.default: expected one of {', '.join(KINDS)}; got {default!r}")
    described = []
    for kind, names in KINDS.items():
        chosen = recipe.nms.get(kind, {})
        if not isinstance(chosen, Mapping):
            raise RecipeError(f"nms.{kind}: expected a mapping; got {chosen!r}")
        for name, value in chosen.items():
            if name not in names:
                raise RecipeError(f"nms.{kind}: expected {' and '.join(names) or 'no numbers'}; got {name!r}")
            if isinstance(value, bool) or not isinstance(value, float | int):
                raise RecipeError(f"nms.{kind}.{name}: expected a number; got {value!r}")
            try:
                check_nms_number(name, value, field=f"nms.{kind}.{name}")
            except ContractError as error:
                raise RecipeError(f"{error.field}: expected {error.expected}; got {error.got}") from error
        numbers = {name: chosen.get(name, getattr(detector.defaults, name)) for name in names}
        described.append(types_pb2.Nms(kind=kind, **numbers))
    for kind in recipe.nms:
        if kind not in (*KINDS, "default"):
            raise RecipeError(f"nms: expected default, {', '.join(KINDS)}; got {kind!r}")
    return described


def _describe_method(method: Method, layers: list[str], chosen: dict[str, Any]) -> types_pb2.Method:
    layer = chosen.pop("layer", layers[0] if layers else "")
    chosen_layers = layer.split("+") if method.combines_layers else [layer]
    if layers and (len(set(chosen_layers)) < len(chosen_layers) or not set(chosen_layers) <= set(layers)):
        raise RecipeError(f"methods.{method.name}.layer: expected one of {', '.join(layers)}; got {layer!r}")
    names = [param.name for param in method.params]
    for name in chosen:
        if name not in names:
            raise RecipeError(f"methods.{method.name}: expected layer, {', '.join(names)}; got {name!r}")
    return types_pb2.Method(
        name=method.name,
        description=method.description,
        params=[
            describe_param(f"methods.{method.name}", param, chosen.get(param.name, param.default))
            for param in method.params
        ],
        targets=method.targets,
        layers=layers,
        default_layer=layer,
        sampling=method.sampling,
        combines_layers=method.combines_layers,
    )


def describe_param(where: str, param: Param, value: ParamValue) -> types_pb2.Parameter:
    """Describe a parameter whose value is `value` where none is asked for.

    Raises:
        RecipeError: if it cannot have this value; `where` says whose it is.
    """
    kind = type(param.default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise RecipeError(f"{where}.{param.name}: expected {_TYPES[kind]}; got {value!r}")
    if isinstance(value, float | int) and not isinstance(value, bool):
        low = -math.inf if param.minimum is None else param.minimum
        high = math.inf if param.maximum is None else param.maximum
        if not low <= value <= high:
            wanted = f"expected a number from {low:g} to {high:g}; got {value:g}"
            raise RecipeError(f"{where}.{param.name}: {wanted}")
    if param.choices and value not in param.choices:
        wanted = f"expected one of {', '.join(param.choices)}; got {value!r}"
        raise RecipeError(f"{where}.{param.name}: {wanted}")
    described = types_pb2.Parameter(
        name=param.name,
        type=_TYPES[kind],
        minimum=param.minimum,
        maximum=param.maximum,
        choices=param.choices,
        description=param.description,
    )
    if isinstance(value, bool):
        described.default_value.bool_value = value
    elif isinstance(value, str):
        described.default_value.string_value = value
    else:
        described.default_value.number_value = value
    return described


def describe_inversion(detector: WhiteBoxDetector) -> types_pb2.Invertible:
    """Describe what layout inversion takes, with the detector's own presets."""
    described = types_pb2.Invertible(
        params=[describe_param("inversion", param, param.default) for param in PARAMS],
        max_pixels=MAX_PIXELS,
        min_side=MIN_SIDE,
        max_objects=MAX_OBJECTS,
        masks=detector.masks,
    )
    for name, description in PRESETS.items():
        params = struct_of(preset(name, detector))
        described.presets.add(name=name, description=description, params=params)
    return described
