"""Jobs of replicas that have been gone for long: handed over once, and of none that may come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from whybox_service.jobs import orphans as orphans_module
from whybox_service.jobs.absences import Absences
from whybox_service.jobs.database import engine_for
from whybox_service.jobs.orphans import Orphans
from whybox_service.jobs.replicas import Name, identity, living

PATIENCE = 600.0


class PlayedRunner:
    """DBOS, with the jobs that it has running."""

    def __init__(self, **jobs: str) -> None:
        self.jobs = jobs
        self.requeued: list[str] = []
        self.runs = True

    def pending(self, executor: str | None = None) -> list[tuple[str, str]]:
        return [(job, whose) for job, whose in self.jobs.items() if executor in (None, whose)]

    def requeue(self, jobs: Sequence[str]) -> list[str]:
        for job in jobs:
            del self.jobs[job]
        self.requeued += jobs
        return list(jobs)


class Watched:
    """Orphans of a replica called `own`, with a clock and replicas that are set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float | None = PATIENCE) -> None:
        self.now = 0.0
        self.alive = {"own"}
        self.free = True
        self.runner = PlayedRunner(a="gone", b="gone", c="own", d="other")
        monkeypatch.setattr(orphans_module, "Absences", lambda memory: Absences(memory, lambda: self.now))
        runner: Any = self.runner
        self.orphans = Orphans(runner, "own", seconds, lambda: self.alive, self.held)

    def held(self, _executor: str) -> AbstractContextManager[bool]:
        return nullcontext(self.free)

    def look(self, *seconds: float) -> list[str]:
        """Look at each of these moments; return what was handed over till then."""
        for self.now in seconds:
            self.orphans.adopt()
        return self.runner.requeued


def every_minute(first: float, last: float) -> list[float]:
    return [first + 60 * i for i in range(round((last - first) / 60) + 1)]


def test_those_of_a_replica_that_stays_away_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.alive |= {"other"}
    assert watched.look(*every_minute(0, 540)) == []
    assert watched.look(600) == ["a", "b"]
    assert watched.look(*every_minute(660, 1800)) == ["a", "b"]


def test_one_that_comes_back_is_waited_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.alive |= {"other"}
    watched.look(*every_minute(0, 540))
    watched.alive |= {"gone"}
    watched.look(570)
    watched.alive -= {"gone"}
    assert watched.look(*every_minute(600, 1140)) == []
    assert watched.look(1200) == ["a", "b"]


def test_who_stood_still_has_seen_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    assert watched.look(0, 60, 700, 760) == []


@pytest.mark.parametrize("change", ["never", "resting", "held"])
def test_none_are_taken(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    watched = Watched(monkeypatch, None if change == "never" else PATIENCE)
    watched.runner.runs = change != "resting"
    watched.free = change != "held"
    assert watched.look(*every_minute(0, 1800)) == []


def test_without_other_replicas_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, 0.0)
    assert watched.look(0) == ["a", "b", "d"]
    assert watched.runner.jobs == {"c": "own"}


class TestNames:
    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[sa.Engine]:
        made = engine_for(f"sqlite:///{tmp_path}/jobs.sqlite")
        identity(made)
        yield made
        made.dispose()

    def name(self, engine: sa.Engine, name: str = "gone") -> Name:
        return Name(engine, name, "here", lambda: None)

    def test_a_name_is_borrowed_by_one(self, engine: sa.Engine) -> None:
        with self.name(engine).borrowed() as first, self.name(engine).borrowed() as second:
            assert (first, second) == (True, False)
            assert living(engine) == {"gone"}
        assert living(engine) == set()
        with self.name(engine).borrowed() as again:
            assert again

    def test_one_that_is_held_is_not_lent(self, engine: sa.Engine) -> None:
        holder = self.name(engine)
        assert holder.take(threading.Event())
        with self.name(engine).borrowed() as borrowed:
            assert not borrowed
        assert holder.held
        assert living(engine) == {"gone"}
        holder.release()

    def test_replicas_that_see_it_at_one_time_hand_over_each_job_once(self, engine: sa.Engine) -> None:
        count = 6
        runner: Any = PlayedRunner(**{f"job{i}": "gone" for i in range(20)})
        ready = threading.Barrier(count)
        pending, requeue = runner.pending, runner.requeue
        first = threading.local()

        def at_one_time(executor: str | None = None) -> list[tuple[str, str]]:
            found: list[tuple[str, str]] = pending(executor)
            if not getattr(first, "seen", False):
                first.seen = True
                ready.wait(30)  # all have seen them before any hands them over
            return found

        def slowly(jobs: Sequence[str]) -> list[str]:
            threading.Event().wait(0.05)
            done: list[str] = requeue(jobs)
            return done

        runner.pending, runner.requeue = at_one_time, slowly
        all_orphans = [
            Orphans(
                runner,
                f"own{i}",
                0.0,
                lambda: living(engine),
                lambda executor: self.name(engine, executor).borrowed(),
            )
            for i in range(count)
        ]
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda each: each.adopt(), all_orphans))
        assert sorted(runner.requeued) == sorted(f"job{i}" for i in range(20))
