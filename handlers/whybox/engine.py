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
from whybox.detectors.base import Detections, Forward, WhiteBoxDetector
from whybox.detectors.registry import load_detector
from whybox.explaining import Explaining
from whybox.images import decode_image
from whybox.patience import NobodyWaitsError, Patience
from whybox.recipe import Recipe
from whybox.selection import Request, messages_of, select, settings_of
from whybox_proto.checks import check_detect, check_explain
from whybox_proto.departures import Departures
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

logger = logging.getLogger(__name__)

OPERATIONS = ("detect", "explain", "plan", "sample")
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
        """What is asked of the detector, in the client's own words."""
        asked: Request = (
            self.request.sample.explain
            if self.operation == "sample"
            else getattr(self.request, self.operation)
        )
        return asked

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
        asked = job.asked
        if isinstance(asked, explainer_pb2.ExplainRequest):
            check_explain(asked, self.model)
        else:
            check_detect(asked, self.model)
        job.image = decode_image(asked.image, self.recipe.input)
        job.timed("decode", time.perf_counter() - started)

    def _sample(self, job: _Job) -> None:
        """Work on one chunk of a sampling method's plan, which shares nothing with its neighbours."""
        if job.reply is None and job.image is not None:
            sums = self._explaining.sample(job.request.sample, job.image, job.patience)
            job.reply = worker_pb2.WorkerReply(sample=sums)

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
            forward = self.detector.forward(batch, keep=any(job.operation != "detect" for job in members))
            shared = time.perf_counter() - started
            for job in members:
                job.timed("forward", shared)
            for image, job in enumerate(members):
                _guard(job, partial(self._finish, forward=forward, image=image))

    def _finish(self, job: _Job, forward: Forward, image: int) -> None:
        job.patience.check()
        started = time.perf_counter()
        request = job.asked
        frame = forward.batch.frames[image]
        warnings: list[str] = []
        candidates = self.detector.candidates(forward, image)
        settings = settings_of(request, self.model)
        detections = self.detector.postprocess(candidates, frame, settings)
        detections = select(detections, request.select, self.detector.labels, warnings)
        job.timed("postprocess", time.perf_counter() - started)
        job.reply = worker_pb2.WorkerReply()
        answer = _answer(job)
        answer.model, answer.model_version = self.model.name, self.model.version
        answer.image.width, answer.image.height = frame.width, frame.height
        answer.detections.extend(messages_of(detections, self.detector.labels))
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
            job.timed("explain", time.perf_counter() - started)
            return
        rows = self._explaining.explain(request, question)
        explained = time.perf_counter()
        job.timed("explain", explained - started)
        heat_maps = self._explaining.encode(request, question, rows, job.reply.ByteSize())
        job.reply.explain.heat_maps.extend(heat_maps)
        job.timed("encode", time.perf_counter() - explained)


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
