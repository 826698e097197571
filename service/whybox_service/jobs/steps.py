"""One step of a job: the state of the step before goes to a worker, and what comes back is kept.

A step is repeated when a crash came before DBOS had recorded it. What it had kept by then is taken as it is,
so no iteration is done twice; what it had not kept, a worker does again from the same state.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import sqlalchemy as sa

from whybox_proto.errors import ContractError
from whybox_proto.states import State
from whybox_proto.v1 import explainer_pb2, worker_pb2
from whybox_service import logs
from whybox_service.asking import Asked, Asking
from whybox_service.backend import WorkerLostError
from whybox_service.calls import Call, Deadline
from whybox_service.jobs.absences import Absences
from whybox_service.jobs.artifacts import Artifacts
from whybox_service.jobs.losses import Losses
from whybox_service.jobs.store import Record, Store, name_of
from whybox_service.jobs.turns import Turns
from whybox_service.metrics import Metrics
from whybox_service.settings import Settings

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
# A TorchServe that was lost with a step is looked for so long at a time before it gets the step again.
BACK_SECONDS = 5.0
# A model, or a version of it, that is not there may be on its way, while TorchServe starts.
UNKNOWN_MODEL_SECONDS = 120.0
# How long it is remembered since when one was not there; longer than any pause between two looks.
ABSENCE_MEMORY_SECONDS = 120.0
# What a call may take beyond the step: the wait for a busy worker, an iteration that outlasts the step, the
# way. A worker that hangs is found out soon after, so it is no longer than other requests have.
ALLOWANCE_SECONDS = 30.0

T = TypeVar("T")


class StoppingError(BaseException):
    """The process ends: nothing may be recorded, so that the step is repeated elsewhere.

    Not an `Exception`, which DBOS would record as the outcome of the step.
    """


@dataclass(frozen=True)
class Outcome:
    """What a step came to, as DBOS keeps it.

    Attributes:
        state: ``running`` while there is more to do, ``gone`` where the job was cancelled or deleted.
        error: of a step that failed, as the fields of the message.
    """

    state: Literal["running", "succeeded", "failed", "gone"]
    error: dict[str, Any] | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"state": self.state, "error": self.error}


class Steps:
    """Does the steps of jobs, each in a thread of DBOS's.

    Args:
        loop: that of the gateway, in which workers are asked.
        settings: how long a step is, and how long a worker is waited for.
    """

    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        asking: Asking,
        metrics: Metrics,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._asking = asking
        self._metrics = metrics
        self._loop = loop
        self._turns = Turns(asking.ready_workers)
        self._absences = Absences(ABSENCE_MEMORY_SECONDS)
        self._step_seconds = settings.jobs_step_seconds
        self._call_seconds = self._step_seconds + ALLOWANCE_SECONDS
        self._patience = settings.jobs_patience_seconds
        self._stopping = threading.Event()
        self._calls: set[concurrent.futures.Future[Asked | None]] = set()

    def stop(self) -> None:
        """Let no further step begin; those that run may end."""
        self._stopping.set()

    def abandon(self) -> None:
        """Give up the calls of the steps that run."""
        for call in list(self._calls):
            call.cancel()

    def advance(self, job: str, step: int) -> dict[str, Any]:
        """Do a step; the first one is 1.

        Raises:
            StoppingError: where the process ends before the step does.
        """
        with logs.context(inversion=name_of(job)):
            try:
                return self._advance(job, step).plain()
            except ContractError as error:
                log.warning("step %d of %s failed: %s", step, name_of(job), error.message)
                return _failed(error)
            except FileNotFoundError:
                return _failed(ContractError("storage_failed", f"the state before step {step} is not there"))
            except OSError as error:
                log.warning("step %d of %s cannot be kept: %s", step, name_of(job), error)
                reason = error.strerror or str(error)
                return _failed(ContractError("storage_failed", f"the state cannot be kept: {reason}"))
            except Exception:
                log.exception("step %d of %s failed", step, name_of(job))
                return _failed(ContractError("internal", "something broke on our side"))

    def finish(self, job: str, step: int, outcome: dict[str, Any]) -> None:
        """End a job after its last step: tell it, then leave its picture alone."""
        name = name_of(job)
        with logs.context(inversion=name):
            state: State = outcome["state"]
            if state == "succeeded":
                last = self._artifacts.told(job, step) if self._runs(job) else worker_pb2.Advance()
                ended = self._persist(lambda: self._store.end(job, state, result=last.result))
            elif state == "failed":
                error = explainer_pb2.Error(**(outcome["error"] or {}))
                ended = self._persist(lambda: self._store.end(job, state, error=error))
            else:
                ended = False
            record = self._persist(lambda: self._store.get(job))
            if record is None:
                self._artifacts.remove(job)
                return
            if ended:
                self._metrics.inversion_ended(record.model, state)
                log.info("%s has %s after %d steps", name, state, record.step)
            self._artifacts.settle(job, record.step)

    def _advance(self, job: str, step: int) -> Outcome:
        self._check_stopping()
        record, begun = self._persist(lambda: self._store.begin(job))
        if record is None:
            return Outcome("gone")
        self._metrics.inversion_goes_on(record.model)
        if begun and record.started is not None:
            self._metrics.inversion_begun(record.model, max(0.0, (record.started - record.created) / 1e6))
            log.info("%s begins", record.name)
        try:
            told = self._artifacts.told(job, step)
        except FileNotFoundError:
            advance = self._answer(record, step)
            if advance is None or not self._runs(job):
                return Outcome("gone")
            self._artifacts.keep_step(job, step, advance)
            # Another replica may have kept this step before, when it was taken for dead; that one counts.
            told = self._artifacts.told(job, step)
        progress = told.progress.SerializeToString()
        if not self._persist(lambda: self._store.advanced(job, step, progress)):
            self._clear(job)
            return Outcome("gone")
        return Outcome("succeeded" if told.HasField("result") else "running")

    def _drop(self, job: str, step: int) -> None:
        """Delete what a step ended with; what cannot be deleted now is when the job has ended."""
        try:
            self._artifacts.drop_step(job, step)
        except OSError as error:
            log.warning("the state of step %d of %s cannot be deleted: %s", step, name_of(job), error)

    def _clear(self, job: str) -> None:
        """Delete what a step kept of a job that was cancelled or deleted meanwhile."""
        record = self._persist(lambda: self._store.get(job))
        if record is None:
            self._artifacts.remove(job)
        else:
            self._artifacts.settle(job, record.step)

    def _answer(self, record: Record, step: int) -> worker_pb2.Advance | None:
        """Have a worker do a step; wait for one as long as it takes, within the patience for it.

        Returns:
            What the worker answered; None where the job has ended meanwhile, or is no more.
        """
        began = time.monotonic()
        pause, losses, told = FIRST_PAUSE_SECONDS, Losses(), ""
        while True:
            try:
                # Of the step before, DBOS has a record, so none begins any more with the state before that.
                drop = partial(self._drop, record.id, step - 2)
                asked = self._wait_for(self._ask(record, step, losses), drop)
            except ContractError as error:
                losses.count(error)
                waited = time.monotonic() - began
                if lost := losses.too_many:
                    raise ContractError(
                        "backend_unavailable", f"{lost} while they had step {step}: {error.message}"
                    ) from error
                if not self._may_pass(error, record):
                    if error.type == "unknown_model" and error.field == "model_version":
                        raise _gone(record, error) from error
                    raise
                if waited > self._patience:
                    raise ContractError(
                        error.type, f"no worker could go on for {waited:.0f} s: {error.message}"
                    ) from error
                if error.message != told:
                    told = error.message
                    log.warning("step %d of %s waits: %s", step, record.name, told)
            else:
                if asked is None:
                    return None
                self._absences.end(record.model, record.pinned)
                self._count(record, step, asked, time.monotonic() - began)
                return asked.reply.advance
            if self._stopping.wait(pause * random.uniform(0.8, 1.2)):
                raise StoppingError
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            if not self._runs(record.id):
                return None

    def _may_pass(self, error: ContractError, record: Record) -> bool:
        if error.type == "unknown_model":
            return self._absences.of(record.model, record.pinned) < UNKNOWN_MODEL_SECONDS
        self._absences.end(record.model, record.pinned)
        return error.row.retryable

    async def _ask(self, record: Record, step: int, losses: Losses) -> Asked | None:
        """Ask a worker once, when it is the step's turn; None where the job has ended meanwhile.

        The state is read when the turn has come: steps that wait hold none in memory.
        """
        name = f"{record.id}-{step}"
        described = await self._asking.description(
            record.model, record.pinned, Call(name, Deadline.after(self._call_seconds))
        )
        if losses.away:
            look = Call(name, Deadline.after(self._call_seconds))
            if not await self._asking.is_back(described, look, BACK_SECONDS):
                raise WorkerLostError("TorchServe has not come back yet")
            losses.is_back()
        async with self._turns.turn(described, Deadline.after(self._patience)):
            self._check_stopping()
            if not await asyncio.to_thread(self._runs, record.id):
                return None
            question = await asyncio.to_thread(self._question, record, step)
            call = Call(name, Deadline.after(self._call_seconds))
            return await self._asking.ask(
                described, question, call, admitted=True, again=False, lost=losses.late
            )

    def _question(self, record: Record, step: int) -> worker_pb2.WorkerRequest:
        """Make what a worker is asked, in place: a state has tens of megabytes, and each copy counts."""
        question = worker_pb2.WorkerRequest()
        request = question.advance
        request.seconds = self._step_seconds
        request.inversion.ParseFromString(record.request or b"")
        if step > 1:
            request.state = self._artifacts.state(record.id, step - 1)
        elif record.has_start:
            request.inversion.image = self._artifacts.start(record.id)
        return question

    def _wait_for(
        self, asking: Coroutine[Any, Any, Asked | None], meanwhile: Callable[[], None]
    ) -> Asked | None:
        self._check_stopping(asking)
        call = asyncio.run_coroutine_threadsafe(asking, self._loop)
        self._calls.add(call)
        try:
            meanwhile()
            return call.result()
        except concurrent.futures.CancelledError:
            raise StoppingError from None
        finally:
            call.cancel()  # does nothing to one that has ended
            self._calls.discard(call)

    def _count(self, record: Record, step: int, asked: Asked, seconds: float) -> None:
        before = explainer_pb2.InversionProgress.FromString(record.progress or b"")
        done = asked.reply.advance.progress.iteration - (before.iteration if step > 1 else 0)
        self._metrics.inversion_step(record.model, seconds, max(0, done))

    def _runs(self, job: str) -> bool:
        return self._persist(lambda: self._store.runs(job))

    def _check_stopping(self, asking: Coroutine[Any, Any, Any] | None = None) -> None:
        if self._stopping.is_set():
            if asking is not None:
                asking.close()
            raise StoppingError

    def _persist(self, work: Callable[[], T]) -> T:
        """Do something with the table; a database that cannot be reached is waited for, as DBOS does."""
        began, pause = time.monotonic(), FIRST_PAUSE_SECONDS
        while True:
            try:
                return work()
            except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
                if time.monotonic() - began > self._patience or _is_full(error):
                    raise
                log.warning("the database of jobs does not answer: %s", error)
            if self._stopping.wait(pause):
                raise StoppingError
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _is_full(error: BaseException) -> bool:
    return "disk is full" in str(error)


def _gone(record: Record, error: ContractError) -> ContractError:
    """Say of a version that is not there any more what it means for the job."""
    return ContractError(
        error.type,
        f"version {record.model_version} of {record.model}, with which the inversion began, is gone",
        field=error.field,
        expected=error.expected,
        got=record.pinned,
    )


def _failed(error: ContractError) -> dict[str, Any]:
    told = {"type": error.type, "message": error.message}
    told |= {name: value for name in ("field", "expected", "got") if (value := getattr(error, name))}
    return Outcome("failed", told).plain()
