"""Steps of jobs in this process: whom they ask, how often, and what they hold meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import inversion_worker
from conftest import PATIENCE_SECONDS
from jobs_parts import eventually
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service.asking import Asked
from whybox_service.backend import WorkerLostError
from whybox_service.calls import Call
from whybox_service.jobs import steps as steps_module
from whybox_service.jobs.artifacts import Artifacts, Folder, Remote
from whybox_service.jobs.database import engine_for
from whybox_service.jobs.losses import LOST_LIMIT, Losses
from whybox_service.jobs.steps import ALLOWANCE_SECONDS, Steps, StoppingError
from whybox_service.jobs.store import New, Store
from whybox_service.metrics import Metrics
from whybox_service.settings import Settings

MODEL = "played"
STEP_SECONDS = 2.0


@dataclass
class PlayedAsking:
    """Answers as the worker without torch does.

    Attributes:
        workers: how many are ready.
        versions: that the model has; the first is its default one.
        errors: raised in turn by the next questions.
        away: so often a lost TorchServe is looked for in vain.
        late: told of the next question, when that has been given up.
        hold: while it is set, answers wait.
        calls: of the questions that were asked, with their version and whether another worker may be asked.
        at_once, most_at_once: questions in hand, and the most there have been.
    """

    workers: int = 1
    versions: list[str] = field(default_factory=lambda: ["1.0"])
    errors: list[ContractError] = field(default_factory=list)
    away: int = 0
    late: WorkerLostError | None = None
    hold: bool = False
    calls: list[tuple[Call, str, bool]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    def ready_workers(self, _model: types_pb2.Model) -> int:
        return self.workers

    async def description(self, model: str, version: str, _call: Call) -> types_pb2.Model:
        if version and version not in self.versions:
            raise ContractError("unknown_model", "no such version", field="model_version", got=version)
        return types_pb2.Model(name=model, version=version or self.versions[0])

    async def is_back(self, _model: types_pb2.Model, _call: Call, _seconds: float) -> bool:
        self.away -= 1
        return self.away < 0

    async def ask(
        self,
        model: types_pb2.Model,
        question: worker_pb2.WorkerRequest,
        call: Call,
        *,
        admitted: bool,
        again: bool,
        lost: Callable[[WorkerLostError], None],
    ) -> Asked:
        assert admitted
        self.calls.append((call, model.version, again))
        self.seconds.append(call.deadline.remaining())
        if self.late is not None:
            lost(self.late)
        if self.errors:
            raise self.errors.pop(0)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            while self.hold:
                await asyncio.sleep(0.01)
            reply = worker_pb2.WorkerReply()
            reply.advance.CopyFrom(inversion_worker.advance(question.advance))
            return Asked(reply, 0.0, 0.0)
        finally:
            self.at_once -= 1


class Bench:
    """Steps on a table and a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.asking = PlayedAsking()
        self.engine = engine_for(f"sqlite:///{folder}/jobs.sqlite")
        Store.prepare(self.engine)
        self.store = Store(self.engine, lambda *_: None)
        self.artifacts = Artifacts(Folder(folder / "artifacts"))
        self.metrics = Metrics(lambda _: True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        settings = Settings(jobs_step_seconds=STEP_SECONDS)
        asking: Any = self.asking
        self.steps = Steps(self.store, self.artifacts, asking, self.metrics, settings, self._loop)
        self.pool = ThreadPoolExecutor(8)

    def close(self) -> None:
        self.asking.hold = False
        self.steps.stop()
        self.pool.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.engine.dispose()

    def make(self, **params: float) -> str:
        """Make a job; return its id."""
        request = explainer_pb2.CreateInversionRequest(model=MODEL)
        request.layout.width = request.layout.height = 32
        request.layout.objects.add(label="thing", box=[4, 4, 20, 20])
        request.params.update({"iterations": 20, "per_step": 5, "pause": 0, **params})
        job = os.urandom(16).hex()
        self.store.create(New(job, request, b"digest", "1.0"), 100)
        return job

    def begin(self, job: str, step: int) -> Future[dict[str, Any]]:
        """Do a step in a thread, as DBOS does."""
        return self.pool.submit(self.steps.advance, job, step)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"model": MODEL, **labels})


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(steps_module, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(steps_module, "LONGEST_PAUSE_SECONDS", 0.02)
    made = Bench(tmp_path)
    try:
        yield made
    finally:
        made.close()


def lost(*, died: bool = False, broken: bool = False) -> WorkerLostError:
    return WorkerLostError("the worker failed: Worker died.", died=died, broken=broken)


class TestCalls:
    def test_a_call_has_the_step_s_time_and_the_usual_allowance(self, bench: Bench) -> None:
        assert bench.steps.advance(bench.make(), 1)["state"] == "running"
        ((_, _, again),) = bench.asking.calls
        assert not again
        (seconds,) = bench.asking.seconds
        assert ALLOWANCE_SECONDS < seconds <= STEP_SECONDS + ALLOWANCE_SECONDS

    def test_it_is_told_apart_from_other_steps(self, bench: Bench) -> None:
        job = bench.make()
        for step in (1, 2):
            bench.steps.advance(job, step)
        assert [call.request_id for call, _, _ in bench.asking.calls] == [f"{job}-1", f"{job}-2"]


class TestVersions:
    def test_a_job_ends_with_the_version_that_it_began_with(self, bench: Bench) -> None:
        job = bench.make()
        bench.steps.advance(job, 1)
        bench.asking.versions = ["2.0", "1.0"]
        bench.steps.advance(job, 2)
        assert [version for _, version, _ in bench.asking.calls] == ["1.0", "1.0"]

    def test_a_version_that_is_gone_fails_the_job(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(steps_module, "UNKNOWN_MODEL_SECONDS", 0.05)
        job = bench.make()
        bench.steps.advance(job, 1)
        bench.asking.versions = ["2.0"]
        outcome = bench.steps.advance(job, 2)
        assert outcome["state"] == "failed"
        assert outcome["error"]["type"] == "unknown_model"
        assert outcome["error"]["field"] == "model_version"
        assert "version 1.0 of played, with which the inversion began, is gone" in outcome["error"]["message"]
        assert len(bench.asking.calls) == 1

    def test_one_that_was_made_before_versions_were_noted_takes_the_default_one(self, bench: Bench) -> None:
        job = bench.make()
        with bench.engine.begin() as connection:
            connection.execute(sa.text("UPDATE whybox_inversions SET model_version = NULL"))
        bench.asking.versions = ["2.0"]
        assert bench.steps.advance(job, 1)["state"] == "running"
        assert [version for _, version, _ in bench.asking.calls] == ["2.0"]


class TestStates:
    def kept(self, bench: Bench, job: str) -> list[str]:
        return [name for name in bench.artifacts._files.names(job) if name.endswith(".step")]

    def test_the_last_two_are_kept(self, bench: Bench) -> None:
        job = bench.make(iterations=30)
        for step, kept in ((1, [1]), (2, [1, 2]), (3, [2, 3]), (4, [3, 4])):
            bench.steps.advance(job, step)
            assert self.kept(bench, job) == [f"{i:06d}.step" for i in kept]

    def test_one_that_cannot_be_deleted_fails_nothing(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = bench.make(iterations=30)
        bench.steps.advance(job, 1)
        bench.steps.advance(job, 2)

        def refuse(*_: Any) -> None:
            raise PermissionError(errno.EPERM, "not yours")

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "delete", refuse)
            assert bench.steps.advance(job, 3)["state"] == "running"
        assert len(bench.asking.calls) == 3


class TestLostWorkers:
    def test_a_step_that_kills_its_workers_kills_so_many_and_no_more(self, bench: Bench) -> None:
        bench.asking.errors = [lost(died=True) for _ in range(3 * LOST_LIMIT)]
        outcome = bench.steps.advance(bench.make(), 1)
        assert (outcome["state"], outcome["error"]["type"]) == ("failed", "backend_unavailable")
        assert f"{LOST_LIMIT} workers ended" in outcome["error"]["message"]
        assert len(bench.asking.calls) == LOST_LIMIT

    def test_one_less_does_not_fail_it(self, bench: Bench) -> None:
        bench.asking.errors = [lost(died=True) for _ in range(LOST_LIMIT - 1)]
        assert bench.steps.advance(bench.make(), 1)["state"] == "running"
        assert len(bench.asking.calls) == LOST_LIMIT

    def test_a_torchserve_that_is_not_there_is_no_death(self, bench: Bench) -> None:
        bench.asking.errors = [lost(died=False) for _ in range(3 * LOST_LIMIT)]
        assert bench.steps.advance(bench.make(), 1)["state"] == "running"
        assert len(bench.asking.calls) == 3 * LOST_LIMIT + 1

    def test_a_step_that_ends_torchserve_does_so_only_a_few_times(self, bench: Bench) -> None:
        bench.asking.errors = [lost(broken=True) for _ in range(3 * LOST_LIMIT)]
        outcome = bench.steps.advance(bench.make(), 1)
        assert (outcome["state"], outcome["error"]["type"]) == ("failed", "backend_unavailable")
        assert f"TorchServe ended {LOST_LIMIT} times while they had step 1" in outcome["error"]["message"]
        assert len(bench.asking.calls) == LOST_LIMIT

    def test_restarts_of_torchserve_cost_no_job(self, bench: Bench) -> None:
        """Each breaks one call off; those before it is back meet nobody."""
        bench.asking.errors = [lost(broken=True) for _ in range(LOST_LIMIT - 1)]
        bench.asking.away = 3 * LOST_LIMIT
        assert bench.steps.advance(bench.make(), 1)["state"] == "running"
        assert len(bench.asking.calls) == LOST_LIMIT

    def test_a_step_that_hangs_ends_its_worker_when_nobody_waits_any_more(self, bench: Bench) -> None:
        bench.asking.late = lost(died=True)
        bench.asking.errors = [ContractError("deadline_exceeded", "late") for _ in range(3 * LOST_LIMIT)]
        outcome = bench.steps.advance(bench.make(), 1)
        assert outcome["state"] == "failed"
        assert f"{LOST_LIMIT} workers ended" in outcome["error"]["message"]
        assert len(bench.asking.calls) == LOST_LIMIT

    def test_tries_that_come_late_are_no_death(self, bench: Bench) -> None:
        """They may have waited behind others."""
        bench.asking.errors = [ContractError("deadline_exceeded", "late") for _ in range(3 * LOST_LIMIT)]
        assert bench.steps.advance(bench.make(), 1)["state"] == "running"

    def test_one_end_that_breaks_several_tries_off_counts_once(self) -> None:
        losses = Losses()
        losses.count(lost(broken=True))
        for _ in range(2 * LOST_LIMIT):
            losses.late(lost(broken=True))
            losses.count(lost())
        assert losses.away
        assert not losses.too_many
        for _ in range(LOST_LIMIT - 1):
            losses.is_back()
            losses.count(lost(broken=True))
        assert losses.too_many


class TestTurns:
    @pytest.mark.parametrize(("workers", "most"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4)])
    def test_half_of_the_workers_are_left_to_others(self, bench: Bench, workers: int, most: int) -> None:
        bench.asking.workers = workers
        bench.asking.hold = True
        running = [bench.begin(bench.make(), 1) for _ in range(6)]
        eventually(lambda: bench.asking.at_once == most)
        bench.asking.hold = False
        assert all(step.result(PATIENCE_SECONDS)["state"] == "running" for step in running)
        assert bench.asking.most_at_once == most

    def test_what_waits_holds_no_state(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        jobs = [bench.make() for _ in range(4)]
        for job in jobs:
            bench.steps.advance(job, 1)
        read: list[str] = []
        state = bench.artifacts.state

        def reading(job: str, step: int) -> bytes:
            read.append(job)
            return state(job, step)

        monkeypatch.setattr(bench.artifacts, "state", reading)
        bench.asking.hold = True
        running = [bench.begin(job, 2) for job in jobs]
        eventually(lambda: waiting(bench) == 3)
        assert len(read) == 1
        bench.asking.hold = False
        for step in running:
            step.result(PATIENCE_SECONDS)
        assert sorted(read) == sorted(jobs)

    def test_what_was_cancelled_while_it_waited_is_not_asked(self, bench: Bench) -> None:
        first, second = bench.make(), bench.make()
        bench.asking.hold = True
        running = bench.begin(first, 1)
        eventually(lambda: bench.asking.at_once == 1)
        queued = bench.begin(second, 1)
        eventually(lambda: waiting(bench) == 1)
        assert bench.store.end(second, "cancelled")
        bench.asking.hold = False
        assert running.result(PATIENCE_SECONDS)["state"] == "running"
        assert queued.result(PATIENCE_SECONDS)["state"] == "gone"
        assert [call.request_id for call, _, _ in bench.asking.calls] == [f"{first}-1"]

    def test_a_step_that_breaks_beside_its_call_gives_it_up(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = bench.make()
        bench.asking.hold = True

        def fail(*_: Any) -> None:
            eventually(lambda: bench.asking.at_once == 1)
            raise RuntimeError("broken")

        monkeypatch.setattr(bench.artifacts, "drop_step", fail)
        assert bench.steps.advance(job, 1)["error"]["type"] == "internal"
        eventually(lambda: bench.asking.at_once == 0)

    def test_what_waits_when_the_process_ends_is_left_to_the_next(self, bench: Bench) -> None:
        first, second = bench.make(), bench.make()
        bench.asking.hold = True
        running = bench.begin(first, 1)
        eventually(lambda: bench.asking.at_once == 1)
        queued = bench.begin(second, 1)
        eventually(lambda: waiting(bench) == 1)
        bench.steps.stop()
        bench.asking.hold = False
        assert running.result(PATIENCE_SECONDS)["state"] == "running"
        with pytest.raises(StoppingError):
            queued.result(PATIENCE_SECONDS)
        assert len(bench.asking.calls) == 1


def waiting(bench: Bench) -> int:
    """How many steps wait for their turn."""
    return sum(len(lane._waiting) for lane in bench.steps._turns._lanes.values())


class TestMetrics:
    def test_a_step_s_time_begins_with_its_first_try(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(steps_module, "FIRST_PAUSE_SECONDS", 0.3)
        monkeypatch.setattr(steps_module, "LONGEST_PAUSE_SECONDS", 0.3)
        bench.asking.errors = [ContractError("overloaded", "full")]
        bench.steps.advance(bench.make(), 1)
        assert bench.sample("whybox_inversion_step_seconds_count") == 1
        assert (bench.sample("whybox_inversion_step_seconds_sum") or 0) >= 0.8 * 0.3

    def test_the_wait_in_the_queue_is_counted_once(self, bench: Bench) -> None:
        job = bench.make()
        bench.asking.hold = True
        running = bench.begin(job, 1)
        eventually(lambda: bench.asking.at_once == 1)
        bench.steps.abandon()  # as a process that ends in the middle of the first step
        with pytest.raises(StoppingError):
            running.result(PATIENCE_SECONDS)
        bench.asking.hold = False
        assert bench.steps.advance(job, 1)["state"] == "running"
        assert bench.sample("whybox_inversion_queue_seconds_count") == 1

    def test_there_are_series_before_anything_is_counted(self, bench: Bench) -> None:
        """Prometheus sees no rise in a counter that comes with its first count."""
        bench.asking.hold = True
        running = bench.begin(bench.make(), 1)
        eventually(lambda: bench.asking.at_once == 1)
        assert bench.sample("whybox_inversion_iterations_total") == 0
        for state in ("succeeded", "failed", "cancelled"):
            assert bench.sample("whybox_inversions_ended_total", state=state) == 0
        bench.asking.hold = False
        running.result(PATIENCE_SECONDS)
        assert bench.sample("whybox_inversion_iterations_total") == 5


class TestFullDisk:
    @pytest.fixture
    def fill(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
        """Fill the disk, and empty it."""
        write = Folder.write

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return lambda on: monkeypatch.setattr(Folder, "write", full if on else write)

    def test_errors_of_a_storage_s_own_are_told_as_such(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = Remote(f"memory://{os.urandom(8).hex()}")
        bench.steps._artifacts = Artifacts(files)

        def fail(*_: Any, **__: Any) -> None:
            raise LookupError("no credentials")

        monkeypatch.setattr(files._fs, "pipe_file", fail)
        outcome = bench.steps.advance(bench.make(), 1)
        assert outcome["error"]["type"] == "storage_failed"
        assert "no credentials" in outcome["error"]["message"]

    def test_the_job_fails_and_keeps_its_last_picture(
        self, bench: Bench, fill: Callable[[bool], None]
    ) -> None:
        job, other = bench.make(), bench.make()
        assert bench.steps.advance(job, 1)["state"] == "running"
        fill(True)
        outcome = bench.steps.advance(job, 2)
        assert outcome["state"] == "failed"
        assert outcome["error"]["type"] == "storage_failed"
        assert "No space left on device" in outcome["error"]["message"]
        bench.steps.finish(job, 2, outcome)
        record = bench.store.get(job)
        assert record is not None
        assert (record.state, record.step) == ("failed", 1)
        assert explainer_pb2.Error.FromString(record.error or b"").type == "storage_failed"
        assert bench.artifacts.picture(job, 1) == inversion_worker.picture_of(5)
        fill(False)
        for step, state in ((1, "running"), (2, "running"), (3, "running"), (4, "succeeded")):
            assert bench.steps.advance(other, step)["state"] == state
        bench.steps.finish(other, 4, {"state": "succeeded", "error": None})
        ended = bench.store.get(other)
        assert ended is not None
        assert ended.state == "succeeded"
