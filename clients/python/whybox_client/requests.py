"""From Python arguments to request messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias, TypedDict, TypeVar

from google.protobuf.message import Message

from whybox_client.images import Picture
from whybox_client.layouts import GroundTruth, Layout, message_of
from whybox_client.models import Nms, ParameterValue
from whybox_proto.errors import shorten
from whybox_proto.v1 import explainer_pb2, types_pb2

Strings: TypeAlias = str | Sequence[str]
Integers: TypeAlias = int | Sequence[int]
#: An object that a caller expected: its box [x1, y1, x2, y2] and its label.
Expected: TypeAlias = tuple[Sequence[float], str]

_INVERSIONS = "inversions/"

R = TypeVar("R", explainer_pb2.DetectRequest, explainer_pb2.ExplainRequest)


class Selection(TypedDict):
    """The arguments that say which detections an answer is about."""

    score_threshold: float | None
    max_detections: int | None
    labels: Strings
    indices: Integers
    box: Sequence[float] | None
    expected: Expected | None


class Suppression(TypedDict):
    """The arguments on the suppression of duplicates."""

    nms: str | Nms | None
    explain_suppressed: bool


def detect(
    model: str, image: bytes, selection: Selection, suppression: Suppression, *, model_version: str
) -> explainer_pb2.DetectRequest:
    """Build the request of a `detect` call.

    Raises:
        TypeError: for an argument of a type that its field cannot hold.
        ValueError: for a number that its field cannot hold.
    """
    request = explainer_pb2.DetectRequest()
    return _filled(request, model, image, selection, suppression, model_version)


def explain(
    model: str,
    image: bytes,
    selection: Selection,
    suppression: Suppression,
    *,
    model_version: str,
    method: str | None,
    targets: Strings,
    layer: Strings | None,
    params: Mapping[str, ParameterValue],
    seed: int,
    seconds: float | None,
    samples: int | None,
    evaluate: bool,
    output_size: str | None,
    encoding: str | None,
    max_side: int | None,
) -> explainer_pb2.ExplainRequest:
    """Build the request of an `explain` call.

    Raises:
        TypeError: for an argument of a type that its field cannot hold.
        ValueError: for a number that its field cannot hold.
    """
    request = explainer_pb2.ExplainRequest()
    _filled(request, model, image, selection, suppression, model_version)
    joined = None if layer is None else "+".join(_several(layer))
    _fill(request, {"method": method, "targets": _several(targets), "layer": joined, "seed": seed})
    _fill(request.budget, {"seconds": seconds, "samples": samples})
    _fill(request, {"evaluate": evaluate or None})
    _fill_params(request, params)
    _fill(request.output, {"size": output_size, "encoding": encoding, "max_side": max_side})
    return request


def evaluate(
    explain: explainer_pb2.ExplainRequest,
    truth: Sequence[GroundTruth],
    picture: Picture,
    measures: Strings,
) -> explainer_pb2.EvaluateRequest:
    """Build the request of an `evaluate` call.

    Raises:
        TypeError, ValueError: for objects that cannot be sent.
    """
    request = explainer_pb2.EvaluateRequest(explain=explain)
    _fill(request, {"measures": _several(measures)})
    if truth:
        width, height = picture.pixels.size
        request.truth.CopyFrom(message_of(truth, width, height, name="truth"))
    return request


def invert(
    layout: Layout,
    *,
    model: str,
    preset: str | None,
    params: Mapping[str, ParameterValue],
    seed: int,
    image: bytes | None,
    priority: int,
    idempotency_key: str,
) -> explainer_pb2.CreateInversionRequest:
    """Build the request of an `invert` call.

    Raises:
        TypeError: for an argument of a type that its field cannot hold.
        ValueError: for a number that its field cannot hold, or two presets.
    """
    request = explainer_pb2.CreateInversionRequest(layout=layout.to_message())
    _fill(request, {"model": model, "seed": seed, "image": image, "priority": priority})
    _fill(request, {"idempotency_key": idempotency_key})
    if preset is not None:
        if params.get("preset", preset) != preset:
            raise ValueError(
                f"preset and params['preset'] contradict each other: {preset!r}, {params['preset']!r}"
            )
        params = {"preset": preset, **params}
    _fill_params(request, params)
    return request


def inversion_name(name: str) -> str:
    """Return the full name, ``inversions/ID``, of an inversion that is named so, or by its id.

    Raises:
        ValueError: for what names none.
    """
    inversion_id = name.removeprefix(_INVERSIONS)
    if not inversion_id or "/" in inversion_id or inversion_id in (".", ".."):
        raise ValueError(f"an inversion is named inversions/ID, or by its ID; got {shorten(name)!r}")
    return _INVERSIONS + inversion_id


def expected_of(
    request: explainer_pb2.DetectRequest | explainer_pb2.ExplainRequest,
) -> types_pb2.Expected | None:
    """Return the object that a request expects; None where it expects none."""
    return request.select.expected if request.select.HasField("expected") else None


def _filled(
    request: R,
    model: str,
    image: bytes,
    selection: Selection,
    suppression: Suppression,
    model_version: str,
) -> R:
    _fill(request, {"model": model, "model_version": model_version, "image": image})
    _fill(
        request.select,
        {
            "score_threshold": selection["score_threshold"],
            "max_detections": selection["max_detections"],
            "labels": _several(selection["labels"]),
            "indices": _several(selection["indices"]),
            "box": None if selection["box"] is None else [float(side) for side in selection["box"]],
        },
    )
    if (expected := selection["expected"]) is not None:
        try:
            box, label = expected
            _fill(request.select.expected, {"box": [float(side) for side in box], "label": label})
        except (TypeError, ValueError) as error:
            raise type(error)(f"expected is a pair, ([x1, y1, x2, y2], label): {error}") from error
    nms = suppression["nms"]
    _fill(request.nms, asdict(nms) if isinstance(nms, Nms) else {"kind": nms})
    _fill(request.nms, {"explain_suppressed": suppression["explain_suppressed"] or None})
    return request


def _fill_params(
    request: explainer_pb2.ExplainRequest | explainer_pb2.CreateInversionRequest,
    params: Mapping[str, ParameterValue],
) -> None:
    for name, value in params.items():
        try:
            request.params[name] = value
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"params[{name!r}] is a number, a boolean or a string; got {value!r}"
            ) from error


def _several(values: Any) -> list[Any]:
    """One name or number is a list of one."""
    return [values] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)


def _fill(message: Message, fields: Mapping[str, Any]) -> None:
    """Set the fields that are given, and name the one that a value does not fit."""
    for name, value in fields.items():
        if value is None:
            continue
        try:
            if isinstance(value, list):
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
