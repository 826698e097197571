"""From an explain request to a method's question, and from its maps to the answer's."""

from __future__ import annotations

import math
import time
from typing import Any

from torch import Tensor

from whybox.detectors.base import Detections, Forward, WhiteBoxDetector
from whybox.diagnosis import shift_warning
from whybox.methods import METHODS
from whybox.methods.base import Map, Method, ParamValue, Question
from whybox.methods.sampling import SamplingMethod, Task, plan_message, sums_message
from whybox.parameters import value_of
from whybox.patience import Patience
from whybox.plan_state import seal, unseal
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
        message.state = seal({**plan.state, **own}, self._model, request, plan.groups)
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
        """Work on one chunk of a plan.

        Raises:
            ContractError: `invalid_argument` for a method that draws no samples, `invalid_request` for a
                chunk or a state that no plan of this request has.
        """
        asked = request.explain
        method = self._method(asked)
        if not isinstance(method, SamplingMethod):
            raise ContractError("invalid_argument", f"{method.name} draws no samples", field="method")
        groups = int(request.groups)
        state = {
            name: tensor.to(self._detector.device)
            for name, tensor in unseal(request.state, self._model, asked, groups).items()
        }
        chunk = Chunk(0, request.first, request.count, request.group)
        if chunk.group >= groups or not chunk.count:
            raise ContractError("invalid_request", "the chunk is not one of a plan")
        found = Detections(**{name: state[_OWN + name] for name in Detections.__dataclass_fields__})
        task = Task.of(found, state, groups, chunk, **self._asked(asked, picture, patience))
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


def _encode(made: Map, encoding: str) -> types_pb2.HeatMap:
    heat_map = types_pb2.HeatMap(
        region=made.region, signed=made.signed, samples=made.samples, standard_error=made.standard_error
    )
    wire_maps.encode(made.values.cpu().numpy(), heat_map, encoding)
    return heat_map


def _params(described: types_pb2.Method, request: explainer_pb2.ExplainRequest) -> dict[str, ParamValue]:
    """Every parameter of a method: what was asked for, else the model's default."""
    asked = request.params.fields
    return {p.name: value_of(p, asked.get(p.name, p.default_value)) for p in described.params}
