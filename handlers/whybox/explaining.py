"""From an explain request to a method's question, and from its maps to the answer's."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from whybox.detectors.base import Detections, Forward, WhiteBoxDetector
from whybox.diagnosis import shift_warning
from whybox.methods import METHODS
from whybox.methods.base import Map, Method, ParamValue, Question
from whybox.methods.sampling import SamplingMethod, Task, plan_message, sums_message
from whybox.patience import Patience
from whybox.recipe import MIB, Recipe
from whybox.selection import settings_of
from whybox_proto import maps as wire_maps
from whybox_proto.checks import DEFAULT_ENCODING, DEFAULT_MAX_SIDE, DEFAULT_TARGETS, find_method
from whybox_proto.errors import ContractError
from whybox_proto.sums import Chunk, seconds_of
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

MAX_RESPONSE_BYTES = 60 * 2**20
"""Larger answers are refused; TorchServe is set to take 64 MiB, and kills a worker that passes its limit."""

FIELD_BYTES = 6
"""What a message in a list takes beside its own bytes: its number, and its length."""

_OWN = "detections."
"""Begins the names under which a plan's state keeps the detections, beside the method's own tensors."""


class Explaining:
    """Answers the parts of requests that are about heat maps, with one detector's methods."""

    def __init__(self, recipe: Recipe, detector: WhiteBoxDetector, model: types_pb2.Model) -> None:
        self._memory = recipe.workers.memory_mb * MIB
        self._detector = detector
        self._model = model

    def question(
        self,
        request: explainer_pb2.ExplainRequest,
        picture: Tensor,
        forward: Forward,
        image: int,
        detections: Detections,
        patience: Patience,
    ) -> Question:
        """Return what an explain request asks of its method."""
        budget = request.budget
        remaining = patience.deadline - time.time() if patience.deadline else math.inf
        seconds = seconds_of(budget, remaining)
        asked = self._asked(request, picture, patience)
        warning = shift_warning(self._model, self._method(request).name, asked["layer"])
        return Question(
            forward,
            image,
            detections,
            **asked,
            samples=budget.samples if budget.HasField("samples") else None,
            seconds=seconds if seconds < math.inf else None,
            warnings=[warning] if warning and len(detections) else [],
        )

    def explain(self, request: explainer_pb2.ExplainRequest, question: Question) -> list[list[Map]]:
        """Make the maps of every detection and target."""
        return self._method(request).explain(self._detector, question)

    def encode(
        self, request: explainer_pb2.ExplainRequest, question: Question, rows: list[list[Map]], size: int
    ) -> list[types_pb2.HeatMap]:
        """Write maps.

        Args:
            request: says the method and the encoding.
            question: says targets and layer.
            rows: for each detection, a map for each target; none for one that the time did not reach.
            size: bytes of the rest of the answer.

        Raises:
            ContractError: `response_too_large`.
        """
        encoding = request.output.encoding or DEFAULT_ENCODING
        name = self._method(request).name
        heat_maps = []
        for index, row in enumerate(rows):
            for target, made in zip(question.targets, row, strict=bool(row)):
                heat_map = _encode(made, encoding)
                heat_map.detection_index = index
                heat_map.target, heat_map.method, heat_map.layer = target, name, question.layer
                heat_maps.append(heat_map)
                size += heat_map.ByteSize() + FIELD_BYTES
                if size > MAX_RESPONSE_BYTES:
                    raise ContractError(
                        "response_too_large",
                        "the heat maps are too large for one answer",
                        field="targets",
                        expected=f"at most {MAX_RESPONSE_BYTES} bytes: ask for fewer targets or detections, "
                        "or for output.encoding u8",
                        got=f"more than {size} bytes",
                    )
        return heat_maps

    def plan(self, request: explainer_pb2.ExplainRequest, question: Question) -> worker_pb2.Plan:
        """Plan a sampling method's work; a plan without samples where there is no detection.

        Raises:
            ContractError: `invalid_argument` for a method that draws no samples, `response_too_large`.
        """
        method = self._method(request)
        if not isinstance(method, SamplingMethod):
            raise ContractError("invalid_argument", f"{method.name} draws no samples", field="method")
        method.check(self._detector, question)
        if not len(question.detections):
            return worker_pb2.Plan(round_samples=1, groups=1)
        plan = method.checked_plan(self._detector, question)
        message = plan_message(plan, question)
        found = question.detections
        own = {_OWN + name: getattr(found, name) for name in Detections.__dataclass_fields__}
        state = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in {**plan.state, **own}.items()
        }
        message.state = safetensors.torch.save(state)
        if message.ByteSize() > MAX_RESPONSE_BYTES:
            raise ContractError(
                "response_too_large",
                "the plan is too large for one answer",
                field="select.max_detections",
                expected=f"at most {MAX_RESPONSE_BYTES} bytes: ask for fewer detections",
                got=f"{message.ByteSize()} bytes",
            )
        return message

    def sample(
        self, request: worker_pb2.SampleRequest, picture: Tensor, patience: Patience
    ) -> worker_pb2.Sums:
        """Work on one chunk of a plan."""
        asked = request.explain
        method = self._method(asked)
        if not isinstance(method, SamplingMethod):
            raise ContractError("invalid_argument", f"{method.name} draws no samples", field="method")
        try:
            state = safetensors.torch.load(request.state)
            found = _detections(state, len(self._detector.labels))
            groups = int(request.groups)
            chunk = Chunk(0, request.first, request.count, request.group)
            if not 0 <= chunk.group < groups <= max(1, len(found)) or not chunk.count:
                raise ValueError("the chunk is not one of a plan")
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ContractError("invalid_request", f"the plan's state cannot be read: {error}") from error
        found = found.to(self._detector.device)
        own = _State({name: value.to(self._detector.device) for name, value in state.items()})
        task = Task.of(found, own, groups, chunk, **self._asked(asked, picture, patience))
        return sums_message(method.sample(self._detector, task), task, method.name, len(found))

    def _asked(
        self, request: explainer_pb2.ExplainRequest, picture: Tensor, patience: Patience
    ) -> dict[str, Any]:
        """What questions and tasks have in common, by the names of their attributes."""
        described, output = find_method(request, self._model), request.output
        return {
            "targets": list(request.targets or DEFAULT_TARGETS),
            "layer": request.layer or described.default_layer,
            "params": _params(described, request),
            "seed": request.seed,
            "patience": patience,
            "picture": picture,
            "max_side": output.max_side if output.HasField("max_side") else DEFAULT_MAX_SIDE,
            "memory": self._memory,
            "settings": settings_of(request, self._model),
        }

    def _method(self, request: explainer_pb2.ExplainRequest) -> Method:
        return METHODS[find_method(request, self._model).name]


class _State(dict[str, Tensor]):
    """A plan's state; a tensor that it lacks is the request's fault, since whoever sent it made it."""

    def __missing__(self, name: str) -> Tensor:
        raise ContractError("invalid_request", f"the plan's state cannot be read: it lacks {name!r}")


def _detections(state: Mapping[str, Tensor], classes: int) -> Detections:
    """Read the detections of a plan's state.

    Raises:
        KeyError: if a part of them is missing.
        ValueError: if the parts are not those of the same detections, of so many classes.
    """
    parts = {name: state[_OWN + name] for name in Detections.__dataclass_fields__}
    whole = {"labels", "candidates"}
    for name, part in parts.items():
        shape = (parts["scores"].numel(), *{"boxes": (4,), "class_scores": (classes,)}.get(name, ()))
        if part.shape != shape or (
            part.dtype != torch.int64 if name in whole else not part.is_floating_point()
        ):
            raise ValueError(f"{_OWN}{name} is not of the shape and type of {shape[0]} detections")
    found = Detections(**parts)
    if bool(((found.labels < 0) | (found.labels >= classes)).any()):
        raise ValueError(f"{_OWN}labels are not from 0 to {classes - 1}")
    return found


def _encode(made: Map, encoding: str) -> types_pb2.HeatMap:
    heat_map = types_pb2.HeatMap(
        region=made.region, signed=made.signed, samples=made.samples, standard_error=made.standard_error
    )
    wire_maps.encode(made.values.cpu().numpy(), heat_map, encoding)
    return heat_map


def _params(described: types_pb2.Method, request: explainer_pb2.ExplainRequest) -> dict[str, ParamValue]:
    """Every parameter of a method: what was asked for, else the model's default."""
    params: dict[str, ParamValue] = {}
    for param in described.params:
        value = request.params.fields.get(param.name, param.default_value)
        if param.type == "boolean":
            params[param.name] = value.bool_value
        elif param.type == "string":
            params[param.name] = value.string_value
        else:
            params[param.name] = int(value.number_value) if param.type == "integer" else value.number_value
    return params
