"""A replica's name: one process holds it, and who died leaves it."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs_parts import eventually
from whybox_service import processes
from whybox_service.jobs import replicas
from whybox_service.jobs.database import ConflictError, engine_for
from whybox_service.jobs.replicas import Name, identity

LONG = 1e6
ELSEWHERE = "elsewhere 0000 pid:[1] 1 2 token"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    monkeypatch.setattr(replicas, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(replicas, "LEASE_SECONDS", LONG)
    monkeypatch.setattr(replicas, "_LOOK_SECONDS", 0.05)
    made = engine_for(f"sqlite:///{tmp_path}/jobs.sqlite")
    yield made
    made.dispose()


@pytest.fixture
def end() -> threading.Event:
    return threading.Event()


def no_loss() -> None:
    raise AssertionError("the name was lost")


def hold(engine: sa.Engine, holder: str) -> None:
    """Have a name held by somebody who says nothing any more."""
    identity(engine)
    with engine.begin() as connection:
        connection.execute(
            sa.insert(replicas._REPLICAS).values(
                name="one", holder=holder, place="here", beat=7, heard=sa.func.now()
            )
        )


def test_two_of_one_name_cannot_be(engine: sa.Engine, end: threading.Event) -> None:
    first, second = Name(engine, "one", "here", no_loss), Name(engine, "one", "here", no_loss)
    assert first.take(end)
    with pytest.raises(ConflictError, match="runs jobs as 'one' on this database"):
        second.take(end)
    other = Name(engine, "two", "here", no_loss)
    assert other.take(end)
    first.release()
    assert second.take(end)
    second.release()
    other.release()
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM whybox_replicas")).scalar_one() == 0


def test_two_places_cannot_be(engine: sa.Engine, end: threading.Event) -> None:
    hold(engine, ELSEWHERE)
    with pytest.raises(ConflictError, match="the replica 'one' keeps states and pictures elsewhere"):
        Name(engine, "two", "there", no_loss).take(end)
    with engine.begin() as connection:
        assert connection.execute(sa.text("SELECT name FROM whybox_replicas")).scalars().all() == ["one"]
        connection.execute(sa.delete(replicas._REPLICAS))
    name = Name(engine, "two", "there", no_loss)
    assert name.take(end)
    name.release()


def test_a_process_of_this_machine_that_died_is_not_waited_for(
    engine: sa.Engine, end: threading.Event
) -> None:
    code = (
        "import os, sys, threading\n"
        "from whybox_service.jobs.database import engine_for\n"
        "from whybox_service.jobs.replicas import Name\n"
        "assert Name(engine_for(sys.argv[1]), 'one', 'here', print).take(threading.Event())\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(engine.url)], check=True)
    name = Name(engine, "one", "here", no_loss)
    assert name.take(end)
    name.release()


def test_a_process_that_cannot_be_seen_is_waited_for(
    engine: sa.Engine, end: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(engine, ELSEWHERE)
    name = Name(engine, "one", "here", no_loss)
    threading.Timer(0.3, end.set).start()
    waited: list[bool] = []
    assert not name.take(end, lambda: waited.append(True))
    assert waited == [True]
    monkeypatch.setattr(replicas, "LEASE_SECONDS", 1.0)
    assert name.take(threading.Event())
    name.release()


def test_one_that_lives_elsewhere_keeps_its_name(engine: sa.Engine, end: threading.Event) -> None:
    hold(engine, ELSEWHERE)

    def beat() -> None:
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE whybox_replicas SET beat = beat + 1"))

    threading.Timer(0.3, beat).start()
    with pytest.raises(ConflictError, match="another whybox, on elsewhere"):
        Name(engine, "one", "here", no_loss).take(end)


def test_who_was_silent_for_too_long_is_told(engine: sa.Engine, end: threading.Event) -> None:
    lost = threading.Event()
    name = Name(engine, "one", "here", lost.set)
    assert name.take(end)
    time.sleep(0.2)
    assert not lost.is_set()
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE whybox_replicas SET holder = 'another'"))
    eventually(lost.is_set)
    name.release()
    with engine.connect() as connection:  # what is another's stays
        assert connection.execute(sa.text("SELECT holder FROM whybox_replicas")).scalar_one() == "another"


def test_who_had_it_before_waits_for_one_that_lives(engine: sa.Engine) -> None:
    first, second = Name(engine, "one", "here", no_loss), Name(engine, "one", "here", no_loss)
    assert first.take(threading.Event())
    taken = threading.Event()

    def take() -> None:
        if second.take(threading.Event(), patient=True):
            taken.set()

    waiting = threading.Thread(target=take)
    waiting.start()
    assert not taken.wait(0.3)
    assert first.held
    first.release()
    waiting.join()
    assert taken.is_set()
    assert second.held
    assert not first.held
    second.release()


def test_a_process_of_which_nothing_can_be_told_is_not_gone(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Name(engine, "one", "here", no_loss)
    assert name.take(threading.Event())
    assert replicas.living(engine) == {"one"}

    def too_many(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", too_many)
        with pytest.raises(OSError, match="Too many open files"):
            processes.begin_of(1)
    begin = processes.begin_of
    monkeypatch.setattr(processes, "begin_of", lambda pid: too_many(begin(pid)))
    assert replicas.living(engine) == {"one"}
    monkeypatch.setattr(processes, "begin_of", lambda _: 0)
    assert replicas.living(engine) == set()
    name.release()


def test_a_database_that_is_away_for_a_while_costs_no_name(
    engine: sa.Engine, end: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Name(engine, "one", "here", no_loss)
    assert name.take(end)
    begin = engine.begin
    failed = threading.Event()

    def away() -> None:
        failed.set()
        raise sa.exc.OperationalError("gone", {}, Exception("gone"))

    monkeypatch.setattr(engine, "begin", away)
    eventually(failed.is_set)
    monkeypatch.setattr(engine, "begin", begin)
    with engine.connect() as connection:
        query = sa.text("SELECT beat FROM whybox_replicas")
        before = connection.execute(query).scalar_one()

    def beats() -> bool:
        with engine.connect() as connection:
            return int(connection.execute(query).scalar_one()) > before

    eventually(beats)
    name.release()


def test_a_database_has_one_id(engine: sa.Engine, tmp_path: Path) -> None:
    first = identity(engine)
    assert identity(engine) == first
    other = engine_for(f"sqlite:///{tmp_path}/other.sqlite")
    assert identity(other) != first
    other.dispose()


def test_processes_are_told_apart() -> None:
    child = subprocess.Popen(["sleep", "60"])
    begun = processes.begin_of(child.pid)
    assert begun > 0
    assert processes.begin_of(child.pid) == begun
    child.kill()
    eventually(lambda: processes.begin_of(child.pid) == 0)  # also before it is collected
    child.wait()
    assert processes.begin_of(child.pid) == 0
    assert processes.space() == processes.space() != ""
