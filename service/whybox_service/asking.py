"""One question to a model's workers: its turn, the call, the second try where it is lost, the counting."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service.admission import BATCHES_IN_HAND, Admission, Lane
from whybox_service.backend import Backend, WorkerLostError
from whybox_service.calls import Call
from whybox_service.catalogue import Catalogue, StalledError
from whybox_service.metrics import Metrics
from whybox_service.settings import Settings
from whybox_service.traces import Tracing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A question that was answered.

    Attributes:
        reply: the worker's.
        started, ended: when it was asked and answered, on the clock of `time.perf_counter`.
    """

    reply: worker_pb2.WorkerReply
    started: float
    ended: float

    @property
    def seconds(self) -> float:
        """From the question to the answer."""
        return self.ended - self.started

    def add_stages(self, answer: explainer_pb2.DetectResponse | explainer_pb2.ExplainResponse) -> None:
        """Say in the answer that came of it how long it took, and for how long no worker had it."""
        answer.stages.add(name="queue", seconds=max(0.0, self.seconds - self.reply.seconds))
        answer.stages.add(name="backend", seconds=self.seconds)


class Asking:
    """Asks workers, with all that holds for every question."""

    def __init__(
        self, backend: Backend, catalogue: Catalogue, metrics: Metrics, tracing: Tracing, settings: Settings
    ) -> None:
        self._backend = backend
        self._catalogue = catalogue
        self._metrics = metrics
        self._tracing = tracing
        self._recovery_seconds = settings.recovery_seconds
        self._admission = Admission(settings.max_waiting, metrics.load)

    async def description(self, model: str, version: str, call: Call) -> types_pb2.Model:
        """Return the description of the model that a request names.

        Raises:
            ContractError: where there is none, or it cannot answer.
        """
        check_named(model)
        try:
            return await self._catalogue.description(model, version, call.deadline)
        except StalledError:
            self._metrics.rejected(model, "stalled")
            raise

    def ready_workers(self, model: types_pb2.Model) -> int:
        """Return how many workers of a model could work at one time at the last look; at least 1."""
        return self._catalogue.ready_workers(model.name, model.version)

    async def is_back(self, model: types_pb2.Model, call: Call, seconds: float) -> bool:
        """Look for a model that was lost, for so long at most; return whether it can answer again."""
        return await self._catalogue.recovered(model, call.deadline, seconds)

    def check_room(self, model: str) -> None:
        """Refuse early, before the costly reading of a body, what a model's default version would refuse.

        Raises:
            ContractError: `overloaded`.
        """
        if (version := self._catalogue.default_version(model)) is not None:
            try:
                self._admission.lane(model, version).check()
            except ContractError:
                self._metrics.rejected(model, "queue_full")
                raise

    async def ask(
        self,
        model: types_pb2.Model,
        question: worker_pb2.WorkerRequest,
        call: Call,
        *,
        admitted: bool = False,
        again: bool = True,
        lost: Callable[[WorkerLostError], None] = lambda _: None,
    ) -> Asked:
        """Have a worker answer; where it is lost on the way, ask another one once, as soon as there is one.

        Args:
            model: whose workers.
            question: what is asked; the rest that a worker must know of the request is added.
            call: the request that it is for.
            admitted: it is a further part of a request that was let in, and is not refused for want of room.
            again: whether it is asked a second time; else that is for the caller to do.
            lost: called where the worker was lost when nobody waited for its answer any more.

        Raises:
            WorkerLostError: where the worker was lost, and no other is asked.
            ContractError: from the worker, or for what else happened on the way to it.
        """
        question.request_id = call.request_id
        question.deadline = call.deadline.epoch()
        lane = self._admission.lane(model.name, model.version)
        lane.resize(BATCHES_IN_HAND * self._catalogue.slots(model.name, model.version))
        started = time.perf_counter()
        try:
            reply = await self._once(model, question, call, lane, admitted, again, lost)
        except WorkerLostError as error:
            if not again or not await self._catalogue.recovered(model, call.deadline, self._recovery_seconds):
                raise self._catalogue.judge(error, model) from None
            log.info("asking again, since a worker of %s was lost", model.name)
            reply = await self._once(model, question, call, lane, admitted, again, lost)
        return Asked(reply, started, time.perf_counter())

    async def _once(
        self,
        model: types_pb2.Model,
        question: worker_pb2.WorkerRequest,
        call: Call,
        lane: Lane,
        admitted: bool,
        again: bool,
        lost: Callable[[WorkerLostError], None],
    ) -> worker_pb2.WorkerReply:
        try:
            await lane.enter(call.deadline, admitted=admitted)
        except ContractError as error:
            if error.type == "overloaded":
                self._metrics.rejected(model.name, "queue_full")
            raise
        try:
            with self._tracing.call(question.WhichOneof("operation") or "", model.name) as parent:
                question.traceparent = parent
                return await self._backend.ask(
                    *(model.name, model.version, question, call.deadline, lane.leave, lost), again=again
                )
        except WorkerLostError as error:
            self._metrics.backend_error(model.name, error.type)
            raise
        except ContractError as error:
            judged = self._catalogue.judge(error, model)
            if judged.type == "overloaded":
                self._metrics.rejected(model.name, "queue_full")
            elif judged.row.http_status >= 500:
                self._metrics.backend_error(model.name, judged.type)
            raise judged from None


def check_named(model: str) -> None:
    """Refuse a request that names no model."""
    if not model:
        raise ContractError(
            "invalid_argument", "no model is named", field="model", expected="the name of a model"
        )


def worked(asked: Sequence[Asked]) -> float:
    """Return for how many seconds some worker had one of several questions."""
    total, until = 0.0, float("-inf")
    for begun, ended in sorted((one.ended - one.reply.seconds, one.ended) for one in asked):
        total += max(0.0, ended - max(begun, until))
        until = max(until, ended)
    return total
