"""From Python arguments to request messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias, TypedDict

from google.protobuf.message import Message

from whybox_client.models import Nms, ParameterValue
from whybox_proto.v1 import explainer_pb2

Strings: TypeAlias = "str | Sequence[str]"
Integers: TypeAlias = "int | Sequence[int]"


class Selection(TypedDict):
    """The arguments that say which detections an answer is about."""

    score_threshold: float | None
    max_detections: int | None
    labels: Strings
    indices: Integers
    box: Sequence[float] | None


def detect(
    model: str, image: bytes, selection: Selection, *, nms: str | Nms | None, model_version: str
) -> explainer_pb2.DetectRequest:
    """Build the request of a `detect` call.

    Raises:
        TypeError: for an argument of a type that its field cannot hold.
        ValueError: for a number that its field cannot hold.
    """
    request = explainer_pb2.DetectRequest()
    _fill_common(request, model, image, selection, nms, model_version)
    return request


def explain(
    model: str,
    image: bytes,
    selection: Selection,
    *,
    nms: str | Nms | None,
    model_version: str,
    method: str | None,
    targets: Strings,
    layer: str | None,
    params: Mapping[str, ParameterValue],
    seed: int,
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
    _fill_common(request, model, image, selection, nms, model_version)
    _fill(request, {"method": method, "targets": _several(targets), "layer": layer, "seed": seed})
    for name, value in params.items():
        try:
            request.params[name] = value
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"params[{name!r}] is a number, a boolean or a string; got {value!r}"
            ) from error
    _fill(request.output, {"size": output_size, "encoding": encoding, "max_side": max_side})
    return request


def _fill_common(
    request: explainer_pb2.DetectRequest | explainer_pb2.ExplainRequest,
    model: str,
    image: bytes,
    selection: Selection,
    nms: str | Nms | None,
    model_version: str,
) -> None:
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
    _fill(request.nms, asdict(nms) if isinstance(nms, Nms) else {"kind": nms})


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
