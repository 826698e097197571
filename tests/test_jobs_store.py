"""The table of jobs, what tends it, and rules about the sources of both."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from whybox_proto.v1 import explainer_pb2, worker_pb2
from whybox_service.jobs.artifacts import Artifacts, Folder
from whybox_service.jobs.database import engine_for, unsynced
from whybox_service.jobs.store import New, Store, microseconds
from whybox_service.jobs.tending import Tending
from whybox_service.metrics import Metrics
from whybox_service.settings import Settings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = engine_for(f"sqlite:///{tmp_path}/jobs.sqlite")
    yield made
    made.dispose()


@pytest.fixture
def store(engine: sa.Engine) -> Store:
    Store.prepare(engine)
    return Store(engine, lambda *_: None)


def make(store: Store) -> str:
    """Make a job; return its id, of now."""
    request = explainer_pb2.CreateInversionRequest(model="m")
    job = f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
    store.create(New(job, request, b"digest", "1.0"), 100)
    return job


class TestStore:
    def test_an_older_table_gets_what_it_lacks(self, engine: sa.Engine, store: Store) -> None:
        old = make(store)
        with engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE whybox_inversions DROP COLUMN model_version"))
        for _ in range(2):
            Store.prepare(engine)
        found = store.get(old)
        assert found is not None
        assert found.model_version is None
        new = store.get(make(store))
        assert new is not None
        assert new.model_version == "1.0"

    def test_a_job_begins_once(self, store: Store) -> None:
        job = make(store)
        assert [begun for _, begun in (store.begin(job), store.begin(job))] == [True, False]
        store.end(job, "cancelled")
        assert store.begin(job) == (None, False)

    def test_what_has_ended_since(self, store: Store) -> None:
        first, second, queued = make(store), make(store), make(store)
        store.end(first, "cancelled")
        time.sleep(0.01)
        moment = microseconds()
        store.end(second, "cancelled")
        assert store.ended_since(moment) == {second: 0}
        assert store.ended_since(0) == {first: 0, second: 0}
        assert store.get(queued) is not None

    def test_keys_belong_to_their_callers(self, store: Store) -> None:
        request = explainer_pb2.CreateInversionRequest(model="m", idempotency_key="b:c")
        for job, caller in (("1", ""), ("2", "a"), ("3", "a:b")):
            store.create(New(job * 32, request, b"digest", "1.0", caller), 100)
        found = store.by_key("a", "b:c")
        assert found is not None
        assert found.id == "2" * 32
        assert store.by_key("c", "b:c") is None

    def test_keys_of_before_they_had_callers_are_found(self, engine: sa.Engine, store: Store) -> None:
        def made(job: str, caller: str, key: str) -> str:
            request = explainer_pb2.CreateInversionRequest(model="m", idempotency_key=key)
            return store.create(New(job * 32, request, b"digest", "1.0", caller), 100).id

        def found(caller: str, key: str) -> str | None:
            record = store.by_key(caller, key)
            return None if record is None else record.id

        old = made("1", "", "nightly")
        with engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE whybox_inversions SET idempotency_key = 'nightly', model_version = NULL")
            )
        assert found("", "nightly") == found("ann", "nightly") == old
        assert found("", "another") is None
        new = made("2", "ann", "nightly")  # had it been looked for before, it would not have been made
        assert found("ann", "nightly") == new
        assert found("ben", "nightly") == old
        # What is kept of a caller's key is no older key.
        assert found("", "ann:nightly") is None


class TestUnsynced:
    def test_it_is_a_transaction(self, engine: sa.Engine, store: Store) -> None:
        job = make(store)
        store.begin(job)
        with engine.connect() as connection:
            assert connection.execute(sa.text("PRAGMA synchronous")).scalar_one() == 2  # FULL
        assert store.advanced(job, 1, b"p")
        with pytest.raises(RuntimeError), unsynced(engine) as connection:  # noqa: PT012
            connection.execute(sa.text("DELETE FROM whybox_inversions"))
            assert connection.execute(sa.text("PRAGMA synchronous")).scalar_one() == 1  # NORMAL
            raise RuntimeError
        found = store.get(job)
        assert found is not None
        assert (found.step, found.progress) == (1, b"p")
        for _ in range(10):  # whichever connection comes, it waits for the disk again
            with engine.connect() as connection:
                assert connection.execute(sa.text("PRAGMA synchronous")).scalar_one() == 2


class PlayedRunner:
    """DBOS, with what it is said to know."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self.cancelled: list[str] = []
        self.strayed: list[str] = []
        self.requeued: list[str] = []

    def unended(self, _limit: int) -> list[str]:
        return self.known

    def statuses(self, jobs: Sequence[str]) -> dict[str, str]:
        return dict.fromkeys(jobs, "PENDING")

    def strays(self) -> list[str]:
        return self.strayed

    def requeue(self, jobs: Sequence[str]) -> None:
        self.requeued += jobs

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)

    def ended(self, _limit: int) -> list[str]:
        return []

    def forget(self, jobs: Sequence[str]) -> None:
        raise AssertionError(jobs)


class TestTending:
    @pytest.fixture
    def runner(self) -> PlayedRunner:
        return PlayedRunner()

    @pytest.fixture
    def files(self, tmp_path: Path) -> Folder:
        return Folder(tmp_path / "artifacts")

    @pytest.fixture
    def tending(self, store: Store, files: Folder, runner: PlayedRunner) -> Tending:
        played: Any = runner
        return Tending(store, Artifacts(files), played, Metrics(lambda _: True), Settings())

    def test_what_has_ended_is_cancelled_with_one_question_for_all(
        self, store: Store, tending: Tending, runner: PlayedRunner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jobs = [make(store) for _ in range(5)]
        runner.known = [*jobs, "0" * 32]
        store.end(jobs[1], "cancelled")
        asked: Counter[str] = Counter()
        states = store.states

        def counting(jobs: Sequence[str]) -> Any:
            asked["states"] += 1
            return states(jobs)

        monkeypatch.setattr(store, "states", counting)
        tending.mend()
        assert runner.cancelled == [jobs[1], "0" * 32]
        assert asked["states"] == 1

    def test_what_runs_nowhere_is_taken_up_at_the_second_look(
        self, tending: Tending, runner: PlayedRunner
    ) -> None:
        runner.strayed = ["1" * 32, "2" * 32]
        tending.mend()
        assert runner.requeued == []
        runner.strayed = ["2" * 32, "3" * 32]  # the first was just on its way
        tending.mend()
        assert runner.requeued == ["2" * 32]

    def test_what_ended_long_ago_is_looked_through_once(
        self, store: Store, files: Folder, tending: Tending, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        artifacts = Artifacts(files)
        old, late = make(store), make(store)
        for job in (old, late):
            store.begin(job)
            artifacts.keep_step(job, 1, worker_pb2.Advance(state=b"s", picture=b"p"))
            store.advanced(job, 1, b"")
        store.end(old, "cancelled")
        looked: list[str] = []
        names = files.names

        def noting(job: str) -> list[str]:
            looked.append(job)
            return names(job)

        monkeypatch.setattr(files, "names", noting)
        monkeypatch.setattr("whybox_service.jobs.tending.LATE_SECONDS", 0.0)
        tending.forget()
        assert set(looked) == {old}
        assert files.names(old) == ["picture.png"]
        store.end(late, "cancelled")
        looked.clear()
        tending.forget()
        assert set(looked) == {late}
        assert files.names(late) == ["picture.png"]
        looked.clear()
        tending.forget()
        assert looked == []

    def test_a_step_that_came_late_is_cleared_away(
        self, store: Store, files: Folder, tending: Tending
    ) -> None:
        job = make(store)
        store.end(job, "cancelled")
        tending.forget()
        Artifacts(files).keep_step(job, 1, worker_pb2.Advance(state=b"s"))
        tending.forget()
        assert files.names(job) == []


class TestSources:
    def test_the_states_are_written_down_once(self) -> None:
        """Only what tests say may repeat them."""
        places = [
            path.relative_to(ROOT).as_posix()
            for folder in ("clients", "handlers", "proto", "service")
            for path in (ROOT / folder).rglob("*.py")
            if '"succeeded", "failed", "cancelled"' in path.read_text()
        ]
        assert places == ["proto/whybox_proto/states.py"]

    def test_dbos_is_used_by_its_public_names(self) -> None:
        """Its private ones change with any version of the range in pyproject.toml."""
        for path in (ROOT / "service").rglob("*.py"):
            assert "dbos._" not in path.read_text(), path
