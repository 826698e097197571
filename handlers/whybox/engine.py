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

from whybox.describe import describe
from whybox.detectors.base import Detections, Forward, PostProcessing, WhiteBoxDetector
from whybox.detectors.registry import load_detector
from whybox.explaining import Explaining
from whybox.finding import find
from whybox.images import decode_image
from whybox.inverting import Inverting, check_advance
from whybox.measuring import Measuring
from whybox.methods.base import Map, Question
from whybox.nms import needs_maps
from whybox.patience import NobodyWaitsError, Patience
from whybox.recipe import MIB, Recipe
from whybox.selection import Request, messages_of, select, settings_of
from whybox.suppressed import suppressed_messages
from whybox.why_not import why_not
from whybox_proto.checks import check_detect, check_explain, check_measure
from whybox_proto.departures import Departures
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

logger = logging.getLogger(__name__)

OPERATIONS = ("detect", "explain", "plan", "sample", "measure", "advance")
"""Of a worker's request, besides ``describe``."""

Watch = Callable[[int, str, float], None]
"""Told at the end of a stage: the position of the request it was for, the stage's name, its seconds."""


@dataclass
class _Job:
    """One request on its way through the engine."""

    request: worker_pb2.WorkerRequest
    patience: Patience
    image: Tensor | None = None
    reply: worker_pb2.WorkerReply | None = None
    stages: dict[str, float] = field(default_factory=dict)
    watch: Callable[[str, float], None] | None = None

    @property
    def operation(self) -> str:
        return self.request.WhichOneof("operation") or ""

    @property
    def asked(self) -> Request:
        """What is asked of the detector, in the client's own words; not of a measure or advance request."""
        asked: Request = (
            self.request.sample.explain
            if self.operation == "sample"
            else getattr(self.request, self.operation)
        )
        return asked

    @property
    def encoded(self) -> bytes:
        """The picture, as it came."""
        if self.operation == "measure":
            measured: bytes = self.request.measure.image
            return measured
        asked = self.request.advance.inversion if self.operation == "advance" else self.asked
        encoded: bytes = asked.image
        return encoded

    def fail(self, error: Exception) -> None:
        """Answer with an error; what is not the caller's fault is logged and told without its details."""
        if isinstance(error, NobodyWaitsError):
            error = ContractError("deadline_exceeded", f"nobody waits for the answer: {error}")
        if not isinstance(error, ContractError):
            logger.error("request %s failed", self.request.request_id, exc_info=error)
            error = ContractError("internal", f"the worker failed with {type(error).__name__}")
        self.reply = worker_pb2.WorkerReply(error=error.to_message(self.request.request_id))

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
        self._explaining = Explaining(recipe, detector, self.model)
        self._measuring = Measuring(detector, recipe.workers.memory_mb * MIB)
        self._inverting = Inverting(detector, self.model)
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
            elif operation in OPERATIONS:
                job = _Job(request, Patience(request.deadline, request.call_id, self._departures))
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
            if job.operation == "sample":
                _guard(job, self._sample)
            elif job.operation == "measure":
                _guard(job, self._measure)
            elif job.operation == "advance":
                _guard(job, self._advance)
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
        if job.operation == "measure":
            check_measure(job.request.measure, self.model)
        elif job.operation == "advance":
            check_advance(job.request.advance, self.model)
        elif isinstance(job.asked, explainer_pb2.ExplainRequest):
            check_explain(job.asked, self.model)
        else:
            check_detect(job.asked, self.model)
        if job.encoded or job.operation != "advance":  # an inversion may start from nothing
            job.image = decode_image(job.encoded, self.recipe.input)
        job.timed("decode", time.perf_counter() - started)

    def _sample(self, job: _Job) -> None:
        """Work on one chunk of a sampling method's plan, which shares nothing with its neighbours."""
        if job.reply is None and job.image is not None:
            sums = self._explaining.sample(job.request.sample, job.image, job.patience)
            job.reply = worker_pb2.WorkerReply(sample=sums)

    def _measure(self, job: _Job) -> None:
        """Measure one map."""
        if job.reply is None and job.image is not None:
            taken = self._measuring.answer(job.request.measure, job.image, job.patience)
            job.reply = worker_pb2.WorkerReply(measure=taken)

    def _advance(self, job: _Job) -> None:
        """Do one step of an inversion."""
        if job.reply is None:
            answer = self._inverting.answer(job.request.advance, job.image, job.patience, job.timed)
            job.reply = worker_pb2.WorkerReply(advance=answer)

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
            keep = any(job.operation != "detect" or needs_maps(self._settings(job)) for job in members)
            forward = self.detector.forward(batch, keep=keep)
            shared = time.perf_counter() - started
            for job in members:
                job.timed("forward", shared)
            for image, job in enumerate(members):
                _guard(job, partial(self._finish, forward=forward, image=image))

    def _settings(self, job: _Job) -> PostProcessing:
        return settings_of(job.asked, self.model)

    def _finish(self, job: _Job, forward: Forward, image: int) -> None:
        job.patience.check()
        started = time.perf_counter()
        request = job.asked
        expected, labels = request.select.HasField("expected"), self.detector.labels
        warnings: list[str] = []
        found = find(
            self.detector,
            forward,
            image,
            self._settings(job),
            explain=expected or request.nms.explain_suppressed,
            between=job.patience.check,
        )
        detections = select(found.detections, request.select, labels, warnings)
        job.timed("postprocess", time.perf_counter() - started)
        job.reply = worker_pb2.WorkerReply()
        answer = _answer(job)
        answer.model, answer.model_version = self.model.name, self.model.version
        answer.image.width, answer.image.height = found.frame.width, found.frame.height
        answer.detections.extend(messages_of(detections, labels))
        if request.nms.explain_suppressed:
            dropped = suppressed_messages(found, detections, request.select, labels, warnings)
            answer.suppressed.extend(dropped)
        if expected:
            told, detections = why_not(found, detections, request.select, labels)
            answer.why_not.CopyFrom(told)
        answer.warnings.extend(warnings)
        if isinstance(request, explainer_pb2.ExplainRequest):
            self._explain(job, request, forward, image, detections)

    def _explain(
        self,
        job: _Job,
        request: explainer_pb2.ExplainRequest,
        forward: Forward,
        image: int,
        detections: Detections,
    ) -> None:
        assert job.reply is not None
        assert job.image is not None
        started = time.perf_counter()
        question = self._explaining.question(request, job.image, forward, image, detections, job.patience)
        if job.operation == "plan":
            job.reply.plan.MergeFrom(self._explaining.plan(request, question))
            job.reply.plan.answer.warnings.extend(question.warnings)
            job.timed("explain", time.perf_counter() - started)
            return
        rows = self._explaining.explain(request, question)
        job.reply.explain.warnings.extend(question.warnings)
        explained = time.perf_counter()
        job.timed("explain", explained - started)
        heat_maps = self._explaining.encode(request, question, rows, job.reply.ByteSize())
        job.timed("encode", time.perf_counter() - explained)
        if request.evaluate:
            self._evaluate(job, question, rows, heat_maps)
        answer = job.reply.explain
        (answer.why_not if answer.HasField("why_not") else answer).heat_maps.extend(heat_maps)

    def _evaluate(
        self, job: _Job, question: Question, rows: list[list[Map]], heat_maps: list[types_pb2.HeatMap]
    ) -> None:
        """Measure the maps of an explanation, as far as that takes no truth."""
        assert job.image is not None
        started = time.perf_counter()
        found = question.detections
        for heat_map in heat_maps:
            index = heat_map.detection_index
            taken = self._measuring.take(
                rows[index][list(question.targets).index(heat_map.target)],
                heat_map.target,
                found.boxes[index].tolist(),
                int(found.labels[index]),
                job.image,
                seed=question.seed,
                patience=job.patience,
            )
            heat_map.faithfulness.update(taken)
        job.timed("measure", time.perf_counter() - started)


def _answer(job: _Job) -> explainer_pb2.DetectResponse | explainer_pb2.ExplainResponse:
    """Return the part of a job's reply that tells of the detections."""
    assert job.reply is not None
    answers: dict[str, explainer_pb2.DetectResponse | explainer_pb2.ExplainResponse] = {
        "detect": job.reply.detect,
        "explain": job.reply.explain,
        "plan": job.reply.plan.answer,
    }
    return answers[job.operation]


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
    stages = [types_pb2.Stage(name=name, seconds=seconds) for name, seconds in job.stages.items()]
    if result in ("detect", "explain"):
        getattr(job.reply, result).stages.extend(stages)
    elif result == "plan":
        job.reply.plan.answer.stages.extend(stages)
    return job.reply
