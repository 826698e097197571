"""Several gateways on one Postgres, a real one: jobs are shared, watched everywhere, and handed over."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs_parts import (
    LAYOUT,
    MODEL,
    Gateway,
    PlayedTorchServe,
    check_whole,
    eventually,
    gateway,
    problem,
    refused,
)
from postgres import Postgres, postgres
from test_jobs import LONG, SHORT, events, iteration, listed_names
from whybox_service.jobs.database import engine_for


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def torchserve() -> Iterator[PlayedTorchServe]:
    with PlayedTorchServe() as torchserve:
        yield torchserve


@pytest.fixture
def replicas(database: Postgres, torchserve: PlayedTorchServe, tmp_path: Path) -> Iterator[list[Gateway]]:
    """Two gateways that share a database and a folder of artifacts."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                gateway(
                    tmp_path / name,
                    torchserve.url,
                    WHYBOX_JOBS_DATABASE=database.url,
                    WHYBOX_JOBS_ARTIFACTS=str(tmp_path / "artifacts"),
                    WHYBOX_JOBS_EXECUTOR=f"{name}-{tmp_path.name}"[:60],
                    WHYBOX_JOBS_RUNNING="2",
                )
            )
            for name in ("one", "two")
        ]


def whybox_jobs(database: Postgres, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "whybox_client.cli", "jobs", *arguments, "--database", database.url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def executor(running: Gateway) -> str:
    return running.environment["WHYBOX_JOBS_EXECUTOR"]


def test_ten_jobs_while_replicas_die(replicas: list[Gateway], torchserve: PlayedTorchServe) -> None:
    one, two = replicas
    asked = {"iterations": 60, "pause": 0.01}
    names = [(one, two)[i % 2].create(asked, idempotency_key=f"ten-{i}")["name"] for i in range(10)]
    assert two.create(asked, idempotency_key="ten-0")["name"] == names[0]
    eventually(lambda: sum(iteration(two, name) > 0 for name in names) >= 3)
    one.kill()
    time.sleep(0.5)
    one.start()
    two.kill()
    two.start()
    for name in names:
        job = one.wait(name)
        check_whole(job)
        assert two.get(name) == job
        assert two.picture(name).content == one.picture(name).content
    assert listed_names(one) == listed_names(two) == names[::-1]
    for name in names:
        steps = torchserve.steps_of(name)
        assert sorted(set(steps)) == list(range(1, 13))
        assert len(steps) <= 12 + 2


def test_a_job_is_watched_and_cancelled_from_another_replica(replicas: list[Gateway]) -> None:
    one, two = replicas
    one.create(LONG)  # so that both have something to do, whoever takes it
    jobs = [one.create(LONG)["name"] for _ in range(3)]
    for name in jobs:
        one.wait(name, "running")
        watching = events(two, name)
        while "progress" not in next(watching)[2]["inversion"]:
            pass
        assert two.ask("POST", name + ":cancel").json()["state"] == "cancelled"
        *_, last = watching
        assert last[2]["inversion"]["state"] == "cancelled"
        assert problem(one.ask("POST", name + ":cancel")) == (409, "inversion_ended", "name")
        assert one.picture(name).content == two.picture(name).content
    for name in listed_names(one):
        one.ask("DELETE", name)


def test_a_dead_replicas_jobs_are_handed_over(
    replicas: list[Gateway], database: Postgres, torchserve: PlayedTorchServe
) -> None:
    one, two = replicas
    names = [one.create({"iterations": 200, "pause": 0.01})["name"] for _ in range(4)]
    for name in names:
        eventually(lambda name=name: iteration(one, name) > 0)
    torchserve.mode = "hold"
    listed = dict(line.split("\t") for line in whybox_jobs(database, "executors").stdout.splitlines())
    assert listed == {executor(one): "2", executor(two): "2"}
    one.kill()
    adopted = whybox_jobs(database, "adopt", executor(one))
    assert adopted.returncode == 0, adopted.stderr
    assert len(adopted.stdout.splitlines()) == 2
    assert set(adopted.stdout.splitlines()) < set(names)
    torchserve.mode = "well"
    for name in names:
        check_whole(two.wait(name))
        assert len(torchserve.steps_of(name)) <= 40 + 1
    assert whybox_jobs(database, "executors").stdout == ""
    again = whybox_jobs(database, "adopt", executor(one))
    assert (again.returncode, again.stdout) == (0, "")
    assert "has no running jobs" in again.stderr


def test_the_database_goes_and_comes_back(replicas: list[Gateway], database: Postgres) -> None:
    one, two = replicas
    assert two.ask("GET", "inversions").status_code == 200
    job = one.create({"iterations": 150, "pause": 0.01})
    eventually(lambda: iteration(one, job["name"]) > 0)
    database.stop()
    response = two.ask("GET", job["name"])
    assert problem(response) == (503, "backend_unavailable", "")
    assert two.ask("GET", "models").status_code == 200
    time.sleep(1.0)
    database.start()
    check_whole(two.wait(job["name"]))
    check_whole(one.wait(one.create(SHORT)["name"]))


def test_a_replica_ends_while_the_database_is_gone(
    replicas: list[Gateway], database: Postgres, torchserve: PlayedTorchServe
) -> None:
    one, _ = replicas
    torchserve.mode = "hold"
    job = one.create(SHORT)
    eventually(lambda: torchserve.at_once == 1)
    database.stop()
    torchserve.mode = "well"
    assert one.stop() == 0
    database.start()
    one.start()
    check_whole(one.wait(job["name"]))


def test_a_replica_starts_before_its_database(replicas: list[Gateway], database: Postgres) -> None:
    one, _ = replicas
    one.kill()
    database.stop()
    one.start()
    eventually(lambda: one.ask("GET", "inversions").status_code == 503)
    database.start()
    eventually(lambda: one.ask("GET", "inversions").status_code == 200)


class TestNames:
    """A replica's name, which this process may have to wait for, and may lose."""

    SOMEBODY = "elsewhere 0000 pid:[1] 1 2 token"

    @pytest.fixture
    def shared(self, database: Postgres, tmp_path: Path) -> Iterator[dict[str, str]]:
        yield {
            "WHYBOX_JOBS_DATABASE": database.url,
            "WHYBOX_JOBS_ARTIFACTS": str(tmp_path / "artifacts"),
            "WHYBOX_JOBS_EXECUTOR": tmp_path.name[:60],
        }
        self.free(database, tmp_path.name[:60])

    def hold(self, database: Postgres, name: str) -> None:
        """Have a name held by somebody who has just been heard."""
        self.free(database, name)
        values = f"'{name}', '{self.SOMEBODY}', 'there', 7, now()"
        self.do(database, f"INSERT INTO whybox_replicas (name, holder, place, beat, heard) VALUES ({values})")

    def free(self, database: Postgres, name: str) -> None:
        self.do(database, f"DELETE FROM whybox_replicas WHERE name = '{name}'")

    def do(self, database: Postgres, statement: str) -> None:
        engine = engine_for(database.url)
        with engine.begin() as connection:
            connection.execute(sa.text(statement))
        engine.dispose()

    def test_what_is_known_is_told_while_it_is_waited_for(
        self, database: Postgres, torchserve: PlayedTorchServe, tmp_path: Path, shared: dict[str, str]
    ) -> None:
        with gateway(tmp_path / "one", torchserve.url, **shared) as running:
            job = running.wait(running.create(SHORT)["name"])
            picture = running.picture(job["name"]).content
        name = shared["WHYBOX_JOBS_EXECUTOR"]
        self.hold(database, name)
        with gateway(tmp_path / "two", torchserve.url, **shared) as running:
            eventually(lambda: "waiting for a sign of life" in running.log.read_text())
            assert running.get(job["name"]) == job
            assert running.picture(job["name"]).content == picture
            assert job["name"] in listed_names(running)
            assert [kind for _, kind, _ in events(running, job["name"])] == ["result"]
            unavailable = (503, "backend_unavailable", "")
            for verb, path in (("POST", "inversions"), ("DELETE", job["name"])):
                request = {"json": {"model": MODEL, "layout": LAYOUT}} if verb == "POST" else {}
                assert problem(running.ask(verb, path, **request)) == unavailable
            self.free(database, name)
            eventually(lambda: "jobs are run" in running.log.read_text())
            check_whole(running.wait(running.create(SHORT)["name"]))

    def test_one_that_is_lost_is_taken_again_when_it_is_free(
        self, database: Postgres, torchserve: PlayedTorchServe, tmp_path: Path, shared: dict[str, str]
    ) -> None:
        prelude = "import whybox_service.jobs.replicas as r; r.BEAT_SECONDS = r._LOOK_SECONDS = 0.2"
        with gateway(tmp_path / "one", torchserve.url, prelude=prelude, **shared) as running:
            first = running.create({"iterations": 300, "pause": 0.01})["name"]
            eventually(lambda: iteration(running, first) > 0)
            self.hold(database, shared["WHYBOX_JOBS_EXECUTOR"])
            eventually(lambda: "it runs none any more" in running.log.read_text())
            eventually(lambda: torchserve.at_once == 0)
            time.sleep(0.5)
            asked = len(torchserve.steps)
            second = running.create(SHORT)["name"]
            time.sleep(1.0)
            assert len(torchserve.steps) == asked
            assert [running.get(name)["state"] for name in (first, second)] == ["running", "queued"]
            self.free(database, shared["WHYBOX_JOBS_EXECUTOR"])
            for name in (first, second):
                check_whole(running.wait(name))
            assert len(torchserve.steps_of(first)) <= 60 + 1
            assert running.log.read_text().count("jobs are run, as") == 2

    def test_one_that_is_lost_before_jobs_are_run_runs_none(
        self, database: Postgres, torchserve: PlayedTorchServe, tmp_path: Path, shared: dict[str, str]
    ) -> None:
        prelude = (
            "import time\n"
            "import sqlalchemy as sa\n"
            "import whybox_service.jobs.replicas as r\n"
            "r.BEAT_SECONDS = r._LOOK_SECONDS = 0.1\n"
            "take = r.Name.take\n"
            "def taking(self, *args, **more):\n"
            "    taken = take(self, *args, **more)\n"
            "    if taken and not more.get('patient'):\n"
            f"        change = sa.update(r._REPLICAS).values(holder={self.SOMEBODY!r}, heard=sa.func.now())\n"
            "        with self._engine.begin() as connection:\n"
            "            connection.execute(change.where(r._C.name == self._name))\n"
            "        time.sleep(1)\n"
            "    return taken\n"
            "r.Name.take = taking\n"
        )
        with gateway(tmp_path / "one", torchserve.url, prelude=prelude, **shared) as running:
            eventually(lambda: "it runs none any more" in running.log.read_text())
            assert running.ask("GET", "inversions").status_code == 200
            time.sleep(3.0)
            assert "jobs are run" not in running.log.read_text()
            self.free(database, shared["WHYBOX_JOBS_EXECUTOR"])
            eventually(lambda: "jobs are run" in running.log.read_text())
            check_whole(running.wait(running.create(SHORT)["name"]))


def test_jobs_of_a_replica_that_stays_away_go_on(
    database: Postgres, torchserve: PlayedTorchServe, tmp_path: Path
) -> None:
    prelude = "import whybox_service.jobs.inversions as i; i._MEND_SECONDS = 0.3"
    with ExitStack() as stack:
        one, two, three = (
            stack.enter_context(
                gateway(
                    tmp_path / name,
                    torchserve.url,
                    prelude=prelude,
                    WHYBOX_JOBS_DATABASE=database.url,
                    WHYBOX_JOBS_ARTIFACTS=str(tmp_path / "artifacts"),
                    WHYBOX_JOBS_EXECUTOR=f"{name}-{tmp_path.name}"[:60],
                    WHYBOX_JOBS_RUNNING="2",
                    WHYBOX_JOBS_ADOPT_SECONDS="2",
                )
            )
            for name in ("one", "two", "three")
        )
        torchserve.mode = "hold"
        names = [one.create({"iterations": 50, "pause": 0.01})["name"] for _ in range(6)]
        for name in names:
            two.wait(name, "running")
        listed = dict(line.split("\t") for line in whybox_jobs(database, "executors").stdout.splitlines())
        assert listed[executor(one)] == "2"
        one.kill()
        torchserve.mode = "well"
        for name in names:
            check_whole(two.wait(name))
            assert len(torchserve.steps_of(name)) <= 10 + 1
        told = [running.log.read_text().count("has been gone for 2 s") for running in (two, three)]
        assert sum(told) == 1


class TestStart:
    """What would be silently wrong is refused."""

    def test_two_of_one_name(self, database: Postgres, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        shared = {
            "WHYBOX_JOBS_DATABASE": database.url,
            "WHYBOX_JOBS_ARTIFACTS": str(tmp_path / "artifacts"),
        }
        with gateway(tmp_path / "one", torchserve.url, **shared) as running:
            job = running.create(LONG)
            eventually(lambda: iteration(running, job["name"]) > 0)
            said = refused(**shared)
            assert "runs jobs as 'gateway' on this database" in said
            assert "WHYBOX_JOBS_EXECUTOR" in said
            at = iteration(running, job["name"])
            eventually(lambda: iteration(running, job["name"]) > at)  # and nothing came of it
            running.ask("DELETE", job["name"])
        with gateway(tmp_path / "two", torchserve.url, **shared) as running:  # its name was given back
            check_whole(running.wait(running.create(SHORT)["name"]))

    def test_two_places_for_one_database(
        self, database: Postgres, torchserve: PlayedTorchServe, tmp_path: Path
    ) -> None:
        def settings(name: str, folder: str) -> dict[str, str]:
            return {
                "WHYBOX_JOBS_DATABASE": database.url,
                "WHYBOX_JOBS_EXECUTOR": name,
                "WHYBOX_JOBS_ARTIFACTS": str(tmp_path / folder),
            }

        with gateway(tmp_path / "one", torchserve.url, **settings("one", "mine")) as running:
            check_whole(running.wait(running.create(SHORT)["name"]))
            said = refused(**settings("two", "yours"))
            assert "the replica 'one' keeps states and pictures elsewhere" in said
            with gateway(tmp_path / "two", torchserve.url, **settings("two", "mine")):
                pass
        with gateway(tmp_path / "three", torchserve.url, **settings("two", "yours")) as running:
            check_whole(running.wait(running.create(SHORT)["name"]))

    def test_two_databases_on_one_folder(
        self, database: Postgres, torchserve: PlayedTorchServe, tmp_path: Path
    ) -> None:
        folder = {"WHYBOX_JOBS_ARTIFACTS": str(tmp_path / "artifacts")}
        postgres = {"WHYBOX_JOBS_DATABASE": database.url}
        with gateway(tmp_path / "one", torchserve.url, **postgres, **folder) as running:
            job = running.create(SHORT)
            check_whole(running.wait(job["name"]))
            (tmp_path / "data").mkdir()
            (tmp_path / "data" / "jobs.sqlite").touch()  # there are jobs, so they are begun at the start
            said = refused(WHYBOX_DATA=str(tmp_path / "data"), **folder)
            assert "belongs to another database of jobs" in said
            assert running.picture(job["name"]).status_code == 200

    def test_without_a_place_that_all_share(self, database: Postgres, tmp_path: Path) -> None:
        for more in ({}, {"WHYBOX_DATA": str(tmp_path)}):
            said = refused(WHYBOX_JOBS_DATABASE=database.url, **more)
            assert "WHYBOX_JOBS_DATABASE needs WHYBOX_JOBS_ARTIFACTS" in said


class TestCommand:
    def test_a_database_that_is_not_there(self) -> None:
        command = [sys.executable, "-m", "whybox_client.cli", "jobs", "executors"]
        done = subprocess.run(
            [*command, "--database", "postgresql://nobody@127.0.0.1:1/none"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert "the database of jobs cannot be used" in done.stderr
        assert "Traceback" not in done.stderr
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "set WHYBOX_DATA, or WHYBOX_JOBS_DATABASE" in done.stderr
