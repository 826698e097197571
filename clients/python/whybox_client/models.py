"""What a model says of itself: `Client.models` and `Client.model` return these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message

from whybox_client.floats import shortest
from whybox_proto.v1 import types_pb2

ParameterValue: TypeAlias = "float | int | bool | str"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        type: ``number``, ``integer``, ``boolean`` or ``string``.
        minimum, maximum: bounds of a number, both included; None: unbounded.
        choices: the strings it may be; empty: any.
    """

    name: str
    type: str
    default: ParameterValue | None
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Method:
    """A way to explain that a model offers.

    Attributes:
        targets: what it explains: ``class``, ``x1``, … ``combined``; with ``class`` also ``class:LABEL``.
        layers: layers that it takes; empty for methods that use none.
        sampling: it draws random samples, and obeys `seconds` and `samples`.
        combines_layers: it takes several layers at once, as ``a+b``.
    """

    name: str
    description: str
    params: tuple[Parameter, ...]
    targets: tuple[str, ...]
    layers: tuple[str, ...]
    default_layer: str
    sampling: bool = False
    combines_layers: bool = False


@dataclass(frozen=True)
class Measure:
    """A measure of how good a map is.

    Attributes:
        protocol: what is done, with fill, steps and normalisation, and its source.
        better: ``higher`` or ``lower``.
        needs: what must be known of the objects that are really there: nothing (empty), ``box``, ``mask`` or
            ``evidence``.
    """

    name: str
    protocol: str
    better: str
    needs: str


@dataclass(frozen=True)
class SpatialShift:
    """How far a detector moves what decides on its way from the picture to a layer.

    The distance of the centres of energy of a map made by hiding pixels and one made by hiding features, in
    units of the detection's box.

    Attributes:
        median: distance over the detections that were measured.
        low, high: ends of the median's 95 % interval over pictures.
        noise: the same median between two maps made by hiding pixels, with different random masks.
        limit: above it a map no longer tells which half of the box it points at.
        above: share of the detections above the limit.
        x, y: mean shift, to the right and down.
        inward: mean shift towards the middle of the box.
        room: median distance of the evidence's centre from the middle of the box: no inward shift is longer.
        measured_on: what was measured.
        misleads: the median is above the limit and its interval above the noise, and `explain` warns of maps
            of this layer.
    """

    layer: str
    median: float
    low: float
    high: float
    noise: float
    limit: float
    above: float
    x: float
    y: float
    inward: float
    room: float
    measured_on: str
    misleads: bool


@dataclass(frozen=True)
class Layer:
    """A layer whose feature maps can be explained.

    Attributes:
        kind: ``level`` (the pyramid level that produced the box), ``roi``, ``stage`` or ``memory``.
        stride: pixels of the network's input per cell; None where it depends on the object.
    """

    name: str
    kind: str
    channels: int
    stride: float | None


@dataclass(frozen=True)
class Nms:
    """Suppression of duplicates: what a model describes, and what a request may ask for.

    Whatever is None is the model's default (in a request), or not a number of this kind (in a
    description).
    """

    kind: str
    iou_threshold: float | None = None
    corr_high: float | None = None
    corr_low: float | None = None
    sigma: float | None = None
    final_threshold: float | None = None


@dataclass(frozen=True)
class InputLimits:
    """The largest picture that a model takes; 0: no limit said.

    Attributes:
        max_bytes: of the file.
        max_pixels: of the picture.
        max_side: pixels on a side.
        formats: of files.
        max_aspect: the longer side over the shorter one.
    """

    max_bytes: int
    max_pixels: int
    max_side: int
    formats: tuple[str, ...]
    max_aspect: int = 0


@dataclass(frozen=True)
class Preset:
    """Values of a layout inversion's parameters under a name.

    Attributes:
        params: by name.
    """

    name: str
    description: str
    params: Mapping[str, ParameterValue] = field(hash=False)


@dataclass(frozen=True)
class Invertible:
    """What a layout inversion of a model takes.

    Attributes:
        params: with the defaults of the first preset.
        max_pixels: most pixels of a layout; `min_side`: its shortest side; `max_objects`: most objects in it.
        masks: objects may have masks.
    """

    params: tuple[Parameter, ...]
    presets: tuple[Preset, ...]
    max_pixels: int
    min_side: int
    max_objects: int
    masks: bool


@dataclass(frozen=True)
class Model:
    """What a model is and what can be asked of it.

    Attributes:
        labels: names of the classes; `Detection.label_id` is an index into them.
        score_threshold: used where a request gives none.
        nms: the kinds of NMS with their defaults; `default_nms` names the one used where none is asked for.
        ready: whether a worker can answer now.
        measures: what `Client.evaluate` can measure.
        spatial_shifts: what `whybox diagnose` found, a layer each; empty: it was not asked.
        inversion: what `Client.invert` takes; None: the model cannot be inverted.
        weights_sha256: of the safetensors file in the model's archive, in hexadecimal; empty: not known.
    """

    name: str
    version: str
    description: str
    family: str
    architecture: str
    labels: tuple[str, ...]
    input: InputLimits
    score_threshold: float
    methods: tuple[Method, ...]
    layers: tuple[Layer, ...]
    nms: tuple[Nms, ...]
    default_nms: str
    ready: bool
    measures: tuple[Measure, ...] = ()
    spatial_shifts: tuple[SpatialShift, ...] = ()
    inversion: Invertible | None = None
    weights_sha256: str = ""

    @classmethod
    def from_message(cls, model: types_pb2.Model) -> Model:
        """Read a model's description from the wire."""
        return cls(
            name=model.name,
            version=model.version,
            description=model.description,
            family=model.family,
            architecture=model.architecture,
            labels=tuple(model.labels),
            input=InputLimits(
                model.input.max_bytes,
                model.input.max_pixels,
                model.input.max_side,
                tuple(model.input.formats),
                model.input.max_aspect,
            ),
            score_threshold=shortest(model.score_threshold),
            methods=tuple(_method(method) for method in model.methods),
            layers=tuple(
                Layer(layer.name, layer.kind, layer.channels, _float32(layer, "stride"))
                for layer in model.layers
            ),
            nms=tuple(
                Nms(
                    nms.kind,
                    *(
                        _float32(nms, name)
                        for name in ("iou_threshold", "corr_high", "corr_low", "sigma", "final_threshold")
                    ),
                )
                for nms in model.nms
            ),
            default_nms=model.default_nms,
            ready=model.ready,
            measures=tuple(
                Measure(measure.name, measure.protocol, measure.better, measure.needs)
                for measure in model.measures
            ),
            spatial_shifts=tuple(map(_shift, model.spatial_shifts)),
            inversion=_invertible(model.inversion) if model.HasField("inversion") else None,
            weights_sha256=model.weights_sha256,
        )


def params_of(struct: struct_pb2.Struct) -> dict[str, ParameterValue]:
    """Read parameters by name; whole numbers are integers again."""
    values: dict[str, Any] = json_format.MessageToDict(struct)
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in sorted(values.items())
    }


def _invertible(inversion: types_pb2.Invertible) -> Invertible:
    return Invertible(
        params=tuple(map(_parameter, inversion.params)),
        presets=tuple(
            Preset(preset.name, preset.description, params_of(preset.params)) for preset in inversion.presets
        ),
        max_pixels=inversion.max_pixels,
        min_side=inversion.min_side,
        max_objects=inversion.max_objects,
        masks=inversion.masks,
    )


def _shift(shift: types_pb2.SpatialShift) -> SpatialShift:
    return SpatialShift(
        layer=shift.layer,
        median=shortest(shift.median),
        low=shortest(shift.low),
        high=shortest(shift.high),
        noise=shortest(shift.noise),
        limit=shortest(shift.limit),
        above=shortest(shift.above),
        x=shortest(shift.x),
        y=shortest(shift.y),
        inward=shortest(shift.inward),
        room=shortest(shift.room),
        measured_on=shift.measured_on,
        misleads=shift.misleads,
    )


def _method(method: types_pb2.Method) -> Method:
    return Method(
        name=method.name,
        description=method.description,
        params=tuple(map(_parameter, method.params)),
        targets=tuple(method.targets),
        layers=tuple(method.layers),
        default_layer=method.default_layer,
        sampling=method.sampling,
        combines_layers=method.combines_layers,
    )


def _parameter(parameter: types_pb2.Parameter) -> Parameter:
    return Parameter(
        name=parameter.name,
        type=parameter.type,
        default=_default(parameter),
        minimum=_optional(parameter, "minimum"),
        maximum=_optional(parameter, "maximum"),
        choices=tuple(parameter.choices),
        description=parameter.description,
    )


def _default(parameter: types_pb2.Parameter) -> ParameterValue | None:
    if not parameter.HasField("default_value"):
        return None
    value: Any = json_format.MessageToDict(parameter.default_value)  # a scalar
    default: ParameterValue = int(value) if parameter.type == "integer" else value
    return default


def _optional(message: Message, name: str) -> float | None:
    return getattr(message, name) if message.HasField(name) else None


def _float32(message: Message, name: str) -> float | None:
    value = _optional(message, name)
    return None if value is None else shortest(value)
