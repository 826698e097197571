"""Answers requests with one detector: the whole of a worker, but for TorchServe.

Requests that come together share forward passes, and nothing else: whatever one of them does wrong is its own
answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import box_iou

from whybox.describe import describe
from whybox.detectors.base import Detections, Forward, PostProcessing, WhiteBoxDetector
from whybox.detectors.registry import load_detector
from whybox.images import decode_image
from whybox.methods import METHODS
from whybox.methods.base import Map, ParamValue, Question
from whybox.patience import NobodyWaitsError, Patience
from whybox.recipe import Recipe
from whybox_proto import maps as wire_maps
from whybox_proto.checks import (
    DEFAULT_ENCODING,
    DEFAULT_MAX_DETECTIONS,
    DEFAULT_TARGETS,
    MAX_DETECTIONS,
    check_detect,
    check_explain,
    find_method,
)
from whybox_proto.departures import Departures
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

logger = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 60 * 2**20
"""Larger answers are refused; TorchServe is set to take 64 MiB, and kills a worker that passes its limit."""

FIELD_BYTES = 6
"""What a message in a list takes beside its own bytes: its number, and its length."""

Watch = Callable[[int, str, float], None]
"""Told at the end of a stage: the position of the request it was for, the stage's name, its seconds."""


@dataclass
class _Job:
    """One request on its way through the engine."""

    request: explainer_pb2.DetectRequest | explainer_pb2.ExplainRequest
    request_id: str
    patience: Patience
    image: Tensor | None = None
    reply: worker_pb2.WorkerReply | None = None
    stages: dict[str, float] = field(default_factory=dict)
    watch: Callable[[str, float], None] | None = None

    @property
    def explains(self) -> bool:
        return isinstance(self.request, explainer_pb2.ExplainRequest)

    def fail(self, error: Exception) -> None:
        """Answer with an error; what is not the caller's fault is logged and told without its details."""
        if isinstance(error, NobodyWaitsError):
            error = ContractError("deadline_exceeded", f"nobody waits for the answer: {error}")
        if not isinstance(error, ContractError):
            logger.error("request %s failed", self.request_id, exc_info=error)
            error = ContractError("internal", f"the worker failed with {type(error).__name__}")
        self.reply = worker_pb2.WorkerReply(error=error.to_message(self.request_id))

    def timed(self, stage: str, seconds: float) -> None:
        """Add to the time of a stage that has ended this moment."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        if self.watch is not None:
            self.watch(stage, seconds)


class Engine:
    """One detector and all that can be asked of it.

    Attributes:
        detector: the detector.
        model: its description.
    """

    def __init__(self, recipe: Recipe, detector: WhiteBoxDetector) -> None:
        """Take a detector and its recipe.

        Raises:
            RecipeError: if the recipe's methods do not fit.
        """
        self.recipe = recipe
        self.detector = detector
        self.model = describe(recipe, detector)
        self._departures = Departures.from_environment()

    @classmethod
    def load(cls, recipe: Recipe, weights: Path, device: torch.device | str = "cpu") -> Engine:
        """Load the recipe's detector from a weights file onto a device.

        Raises:
            RecipeError: if recipe and weights do not fit.
        """
        detector = load_detector(recipe, weights)
        if not isinstance(detector, WhiteBoxDetector):
            raise TypeError(f"expected a white-box detector; got {type(detector).__name__}")
        return cls(recipe, detector.to(device))

    def answer(
        self, requests: Sequence[worker_pb2.WorkerRequest], watch: Watch | None = None
    ) -> list[worker_pb2.WorkerReply]:
        """Answer requests that came together; never raises for what one of them holds."""
        replies: list[worker_pb2.WorkerReply | None] = []
        jobs = []
        for position, request in enumerate(requests):
            operation = request.WhichOneof("operation")
            if operation == "describe":
                replies.append(worker_pb2.WorkerReply(model=self.model))
            elif operation in ("detect", "explain"):
                patience = Patience(request.deadline, request.call_id, self._departures)
                job = _Job(getattr(request, operation), request.request_id, patience)
                if watch is not None:
                    job.watch = partial(watch, position)
                jobs.append(job)
                replies.append(None)
            else:
                error = ContractError("invalid_request", "the request names no operation")
                replies.append(worker_pb2.WorkerReply(error=error.to_message(request.request_id)))
        self._run(jobs)
        answered = iter(jobs)
        return [_finished(next(answered)) if reply is None else reply for reply in replies]

    def _run(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            _guard(job, self._open)
        ready = [job for job in jobs if job.reply is None]
        try:
            self._run_together(ready)
        except Exception as error:
            # Something in the shared work broke: find out whose picture it was.
            if len(ready) == 1:
                ready[0].fail(error)
                return
            for job in ready:
                if job.reply is None:
                    _guard(job, lambda job: self._run_together([job]))

    def _open(self, job: _Job) -> None:
        """Check a request and decode its picture."""
        started = time.perf_counter()
        job.patience.check()
        if isinstance(job.request, explainer_pb2.ExplainRequest):
            check_explain(job.request, self.model)
        else:
            check_detect(job.request, self.model)
        job.image = decode_image(job.request.image, self.recipe.input)
        job.timed("decode", time.perf_counter() - started)

    def _run_together(self, jobs: Sequence[_Job]) -> None:
        """Share forward passes between requests, then finish each alone."""
        started = time.perf_counter()
        images = [job.image for job in jobs if job.image is not None]
        batches = self.detector.prepare(images)
        shared = time.perf_counter() - started
        for job in jobs:
            job.timed("preprocess", shared)
        for positions, batch in batches:
            started = time.perf_counter()
            members = [jobs[position] for position in positions]
            forward = self.detector.forward(batch, keep=any(job.explains for job in members))
            shared = time.perf_counter() - started
            for job in members:
                job.timed("forward", shared)
            for image, job in enumerate(members):
                _guard(job, partial(self._finish, forward=forward, image=image))

    def _finish(self, job: _Job, forward: Forward, image: int) -> None:
        job.patience.check()
        started = time.perf_counter()
        frame = forward.batch.frames[image]
        warnings: list[str] = []
        candidates = self.detector.candidates(forward, image)
        settings = self._settings(job.request)
        detections = self.detector.postprocess(candidates, frame, settings)
        detections = self._select(detections, job.request.select, warnings)
        job.timed("postprocess", time.perf_counter() - started)
        job.reply = worker_pb2.WorkerReply()
        answer = job.reply.explain if job.explains else job.reply.detect
        answer.model, answer.model_version = self.model.name, self.model.version
        answer.image.width, answer.image.height = frame.width, frame.height
        answer.detections.extend(self._detections(detections))
        answer.warnings.extend(warnings)
        if isinstance(answer, explainer_pb2.ExplainResponse):
            answer.heat_maps.extend(self._explain(job, forward, image, detections))

    def _settings(
        self, request: explainer_pb2.DetectRequest | explainer_pb2.ExplainRequest
    ) -> PostProcessing:
        select, nms = request.select, request.nms
        kind = nms.kind or self.model.default_nms
        described = next(d for d in self.model.nms if d.kind == kind)
        chosen = nms.iou_threshold if nms.HasField("iou_threshold") else described.iou_threshold
        # With a filter on labels the limit applies after it.
        limit = MAX_DETECTIONS if select.labels else _limit(select)
        threshold = (
            select.score_threshold if select.HasField("score_threshold") else self.model.score_threshold
        )
        return PostProcessing(threshold, limit, kind, chosen)

    def _select(self, found: Detections, select: types_pb2.Select, warnings: list[str]) -> Detections:
        if select.labels:
            wanted = torch.tensor([self.detector.labels.index(label) for label in select.labels])
            found = found[torch.isin(found.labels, wanted.to(found.labels.device))][: _limit(select)]
        if select.box and len(found):
            overlap = box_iou(found.boxes, found.boxes.new_tensor([list(select.box)]))[:, 0]
            best = int(overlap.argmax())
            if float(overlap[best]) > 0:
                found = found[best : best + 1]
            else:
                warnings.append("no detection overlaps select.box")
                found = found[:0]
        for i, index in enumerate(select.indices):
            if index >= len(found):
                raise ContractError(
                    "invalid_argument",
                    "there is no such detection",
                    field=f"select.indices[{i}]",
                    expected=f"0 to {len(found) - 1}"
                    if len(found)
                    else "no indices: there are no detections",
                    got=str(index),
                )
        if select.indices:
            found = found[torch.tensor(list(select.indices), device=found.labels.device)]
        return found

    def _detections(self, found: Detections) -> list[types_pb2.Detection]:
        rows = zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
        return [
            types_pb2.Detection(
                index=i, box=box, label=self.detector.labels[label], label_id=label, score=score
            )
            for i, (box, label, score) in enumerate(rows)
        ]

    def _explain(
        self, job: _Job, forward: Forward, image: int, detections: Detections
    ) -> list[types_pb2.HeatMap]:
        request = job.request
        assert isinstance(request, explainer_pb2.ExplainRequest)
        started = time.perf_counter()
        described = find_method(request, self.model)
        targets = list(request.targets or DEFAULT_TARGETS)
        layer = request.layer or described.default_layer
        question = Question(
            forward,
            image,
            detections,
            targets,
            layer,
            _params(described, request),
            request.seed,
            job.patience,
        )
        rows = METHODS[described.name].explain(self.detector, question)
        explained = time.perf_counter()
        job.timed("explain", explained - started)
        encoding = request.output.encoding or DEFAULT_ENCODING
        heat_maps = []
        size = job.reply.ByteSize() if job.reply is not None else 0
        for index, row in enumerate(rows):
            for target, made in zip(targets, row, strict=True):
                heat_map = _encode(made, encoding)
                heat_map.detection_index = index
                heat_map.target, heat_map.method, heat_map.layer = target, described.name, layer
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
        job.timed("encode", time.perf_counter() - explained)
        return heat_maps


def _encode(made: Map, encoding: str) -> types_pb2.HeatMap:
    heat_map = types_pb2.HeatMap(region=made.region, signed=made.signed)
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


def _limit(select: types_pb2.Select) -> int:
    return select.max_detections if select.HasField("max_detections") else DEFAULT_MAX_DETECTIONS


def _guard(job: _Job, work: Callable[[_Job], None]) -> None:
    """Run a part of one request's work; what it raises becomes the request's answer."""
    try:
        work(job)
    except Exception as error:
        job.fail(error)


def _finished(job: _Job) -> worker_pb2.WorkerReply:
    """Take a job's reply, its stage times filled in."""
    if job.reply is None:
        job.fail(RuntimeError("the request was left without an answer"))
    assert job.reply is not None
    result = job.reply.WhichOneof("result")
    if result in ("detect", "explain"):
        stages = [types_pb2.Stage(name=name, seconds=seconds) for name, seconds in job.stages.items()]
        getattr(job.reply, result).stages.extend(stages)
    return job.reply
