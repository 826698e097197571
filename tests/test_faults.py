"""What breaks while the service runs: every request ends in time, readiness tells, and all comes back.

The workers are trivial (`faulty_worker.py`) in a real TorchServe under a real `whybox serve`. What TorchServe
cannot be made to do, a broken stand-in does, behind a gateway of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from conftest import PATIENCE_SECONDS, Live, serving
from fault_parts import (
    FAILURES,
    SLACK_SECONDS,
    BrokenTorchServe,
    Ended,
    ask,
    reasons,
    steady,
    timed,
    wait_until_green,
    wait_until_red,
)
from test_gateway_backend import pack
from test_serve import all_gone, descendants, named, wait_until
from whybox_service import addresses

GOOD, BAD = "calm", "shaky"
DEADLINE = 3.0
# Seconds after which TorchServe itself ends a worker of `BAD` that does not answer.
RESPONSE_TIMEOUT = 12
TRANSPORTS = ["rest", "grpc"]
QUICK = {"WHYBOX_POLL_SECONDS": "0.5", "WHYBOX_STALL_SECONDS": "1", "WHYBOX_DEADLINE_SECONDS": "20"}


@dataclass(frozen=True)
class Running:
    """The service under test.

    Attributes:
        live: the service.
        output: what `whybox serve` printed.
        broken: a file; while it is there no worker can load.
    """

    live: Live
    output: Path
    broken: Path

    def say(self, what: str) -> int:
        """How often `whybox serve` said something."""
        return len(re.findall(what, self.output.read_text()))

    def worker(self, model: str) -> psutil.Process:
        """The worker of a model."""
        (described,) = httpx.get(f"{self.live.torchserve['management']}/models/{model}", timeout=60).json()
        return psutil.Process(described["workers"][0]["pid"])

    def java(self) -> psutil.Process:
        """TorchServe."""
        (java,) = [p for p in descendants(self.live.process) if _name(p) == "java"]
        return java

    def gateway(self) -> psutil.Process:
        """The gateway; its guard names it too, and is its parent."""
        (gateway,) = [
            p
            for p in named(descendants(self.live.process), "whybox_service.app")
            if p.ppid() != self.live.process.pid
        ]
        return gateway

    def ask(self, transport: str, model: str, what: str = "well", deadline: float = DEADLINE) -> Ended:
        """Ask a worker for something."""
        return timed(self.live.rest, self.live.target, transport, model, what, deadline)


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def shape(live: Live) -> Counter[str]:
    """The kinds of processes of the tree, and how many there are of each."""
    kinds = ("whybox_service.guard", "model_service_worker.py", "whybox_service.app", "ModelServer")
    tree = descendants(live.process)
    return Counter({"all": len(tree), **{kind: len(named(tree, kind)) for kind in kinds}})


@contextlib.contextmanager
def _running(folder: Path, *options: str) -> Iterator[Running]:
    store = folder / "store"
    store.mkdir()
    handler = Path(__file__).with_name("faulty_worker.py")
    pack(GOOD, handler, store, queue=100)
    pack(BAD, handler, store, queue=100, response_timeout=RESPONSE_TIMEOUT)
    broken = folder / "broken"
    with serving(store, folder, env={**QUICK, "FAULTY_BROKEN": str(broken)}, options=options) as live:
        yield Running(live, folder / "serve.log", broken)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with _running(
        tmp_path_factory.mktemp("faults"), "--max-restarts", "100", "--hung-seconds", "10"
    ) as running:
        yield running


@pytest.fixture
def running(service: Running) -> Iterator[Running]:
    """The service, well before and well again afterwards, with as many processes as before."""
    wait_until_green(service.live.rest)
    before = shape(service.live)
    yield service
    service.broken.unlink(missing_ok=True)
    wait_until_green(service.live.rest)
    for transport in TRANSPORTS:
        for model in (GOOD, BAD):
            wait_until(lambda t=transport, m=model: not service.ask(t, m).type, f"{model} does not answer")
    wait_until(lambda: shape(service.live) == before, f"{shape(service.live)} processes, {before} before")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_worker_killed_while_it_works(running: Running, transport: str) -> None:
    worker = running.worker(BAD)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(running.ask, transport, BAD, "sleep 2", 15.0)
        time.sleep(0.5)
        worker.kill()
        ended = asked.result(PATIENCE_SECONDS)
    # It is asked again of the worker that takes the dead one's place, or told.
    assert ended.type in {"", "backend_unavailable"}
    assert ended.seconds < 15.0 + SLACK_SECONDS


def test_an_idle_worker_killed(running: Running) -> None:
    with steady(running.live.rest, running.live.target, [GOOD], DEADLINE) as others:
        running.worker(BAD).kill()
        told = wait_until_red(running.live.rest)
        assert told is not None
        assert set(told) == {BAD}
        wait_until_green(running.live.rest)
    others.check()
    assert {one.type for one in others.ended} == {""}


def test_a_worker_that_cannot_load_hurts_no_other_model(running: Running) -> None:
    with steady(running.live.rest, running.live.target, [GOOD, BAD], DEADLINE) as load:
        running.broken.touch()
        running.worker(BAD).kill()
        told = wait_until_red(running.live.rest)
        assert told is not None
        assert set(told) == {BAD}
        time.sleep(3.0)
        refused = [running.ask(transport, BAD) for transport in TRANSPORTS]
        assert set(reasons(running.live.rest) or {}) == {BAD}
        running.broken.unlink()
        wait_until_green(running.live.rest)
    load.check()
    assert {one.type for one in refused} == {"backend_unavailable"}
    assert all("no worker is ready" in one.message for one in refused)
    assert {one.type for one in load.ended if one.model == GOOD} == {""}


def test_torchserve_killed(running: Running) -> None:
    java, before = running.java(), descendants(running.live.process)
    gateway = running.gateway()
    said = running.say("ready again")
    with steady(running.live.rest, running.live.target, [GOOD, BAD], DEADLINE) as load:
        java.kill()
        told = wait_until_red(running.live.rest)
        assert told is not None
        wait_until_green(running.live.rest)
        wait_until(lambda: load.ended[-1].type == "", "no request succeeds")
    load.check()
    assert running.gateway() == gateway
    assert running.say(r"TorchServe ended by itself \(killed by SIGKILL\); it is started again in") >= 1
    wait_until(lambda: running.say("ready again") > said, "it does not say that it is ready again")
    old = [p for p in before if p not in descendants(running.live.process)]
    assert java in old
    assert len(old) == 4  # the guard, java and two workers
    assert all_gone(old)


def test_torchserve_stopped(running: Running) -> None:
    java = running.java()
    time.sleep(3.0)  # until it has been looked at: one that has never answered is given more time
    said = running.say("TorchServe does not answer any more: it is killed")
    with steady(running.live.rest, running.live.target, [GOOD], DEADLINE) as load:
        java.suspend()
        wait_until_red(running.live.rest)
        wait_until(lambda: not java.is_running(), "it is not killed")
        wait_until_green(running.live.rest)
    load.check()
    assert running.say("TorchServe does not answer any more: it is killed") == said + 1


def test_a_worker_that_hangs_and_goes_on(running: Running) -> None:
    worker = running.worker(GOOD)
    with steady(running.live.rest, running.live.target, [GOOD, BAD], DEADLINE) as load:
        worker.suspend()
        told = wait_until_red(running.live.rest)
        assert told is not None
        assert set(told) == {GOOD}
        assert "has answered" in told[GOOD]
        # By now nobody waits for it in vain.
        refused = [running.ask(transport, GOOD) for transport in TRANSPORTS]
        worker.resume()
        wait_until_green(running.live.rest)
    load.check()
    assert {one.type for one in refused} == {"backend_unavailable"}
    assert {one.type for one in load.ended if one.model == BAD} == {""}
    assert running.worker(GOOD) == worker


def test_an_idle_worker_that_hangs_is_noticed_and_replaced(running: Running) -> None:
    worker = running.worker(BAD)
    worker.suspend()
    told = wait_until_red(running.live.rest)
    assert told is not None
    assert set(told) == {BAD}
    response = httpx.post(
        f"{running.live.rest}/v1/models/{BAD}:detect",
        content=b"well",
        headers={"Content-Type": "image/jpeg"},
        timeout=60,
    )
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    # TorchServe gives it up after a while, and starts another one.
    wait_until_green(running.live.rest)
    wait_until(lambda: not worker.is_running(), "the hung worker is left")


def test_the_gateway_killed(running: Running) -> None:
    java, gateway = running.java(), running.gateway()
    with steady(running.live.rest, running.live.target, [GOOD, BAD], DEADLINE) as load:
        gateway.kill()
        wait_until_red(running.live.rest)
        wait_until_green(running.live.rest)  # at the same address
    load.check("UNAVAILABLE")  # nobody is there to say more
    assert running.java() == java
    assert running.say(r"the gateway ended by itself \(killed by SIGKILL\)") >= 1


def test_the_gateway_stopped(running: Running) -> None:
    gateway = running.gateway()
    time.sleep(3.0)  # until it has been looked at: one that has never answered is given more time
    gateway.suspend()
    wait_until(lambda: not gateway.is_running(), "it is not killed")
    wait_until_green(running.live.rest)
    assert running.say("the gateway does not answer any more: it is killed") == 1


def test_the_guard_of_torchserve_killed(running: Running) -> None:
    java, workers = running.java(), [running.worker(model) for model in (GOOD, BAD)]
    workers[0].suspend()  # it would not notice by itself that TorchServe has gone
    psutil.Process(java.ppid()).kill()
    wait_until(lambda: all_gone([java, *workers]), "something is left of the old TorchServe")
    wait_until_red(running.live.rest)
    wait_until_green(running.live.rest)


def test_a_port_taken_meanwhile(running: Running) -> None:
    port = int(running.live.torchserve["inference"].rpartition(":")[2])
    said = running.say("TorchServe cannot be started: cannot listen on 127.0.0.1")
    running.java().kill()
    with contextlib.ExitStack() as stack:

        def taken() -> bool:
            with contextlib.suppress(OSError):
                thief = addresses.listen("127.0.0.1", port)
                stack.callback(thief.close)
                thief.listen()
                return True
            return False

        wait_until(taken, "the port is not free")
        wait_until(
            lambda: running.say("TorchServe cannot be started: cannot listen on 127.0.0.1") > said,
            "it does not say why",
        )
    wait_until_green(running.live.rest)


class TestEnd:
    """A supervisor that has had enough, or is told to stop, leaves nothing."""

    def test_stopped_between_two_starts(self, tmp_path: Path) -> None:
        with _running(tmp_path) as running:
            tree = descendants(running.live.process)
            running.java().kill()
            wait_until(lambda: running.say("TorchServe ended by itself") == 1, "it does not notice")
            running.live.process.send_signal(signal.SIGTERM)
            assert running.live.process.wait(PATIENCE_SECONDS) == 0
            wait_until(lambda: all_gone(tree), "processes are left")
        assert not (tmp_path / "ready.json").exists()

    def test_given_up_in_the_end(self, tmp_path: Path) -> None:
        with _running(tmp_path, "--max-restarts", "1") as running:
            running.gateway().kill()
            wait_until(lambda: running.say("the gateway is started again") == 1, "it is not started again")
            wait_until_green(running.live.rest)
            tree = descendants(running.live.process)
            running.gateway().kill()
            assert running.live.process.wait(PATIENCE_SECONDS) == 1
            wait_until(lambda: all_gone(tree), "processes are left")
            assert running.say("as often as may be within 600 s") == 1
        assert not (tmp_path / "ready.json").exists()


@contextlib.contextmanager
def _gateway(folder: Path, torchserve: str) -> Iterator[tuple[str, str]]:
    """A gateway alone; REST's URL and gRPC's target."""
    ports = [str(port) for port in _free(2)]
    settings = {
        **QUICK,
        "WHYBOX_PORT": ports[0],
        "WHYBOX_GRPC_PORT": ports[1],
        "WHYBOX_INFERENCE_URL": torchserve,
        "WHYBOX_MANAGEMENT_URL": torchserve,
        "WHYBOX_ADDRESS_FILE": str(folder / "addresses.json"),
        "WHYBOX_LOG_LEVEL": "error",
    }
    process = subprocess.Popen([sys.executable, "-m", "whybox_service.app"], env={**os.environ, **settings})
    try:
        wait_until((folder / "addresses.json").exists, "the gateway does not start")
        yield f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
    finally:
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0


def _free(count: int) -> list[int]:
    with addresses.reserved_ports(count) as ports:
        return ports


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BrokenTorchServe, str, str]]:
    with BrokenTorchServe() as broken, _gateway(tmp_path_factory.mktemp("alone"), broken.url) as (rest, grpc):
        yield broken, rest, grpc


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [
        ("close", {"backend_unavailable"}),
        ("truncate", {"backend_unavailable"}),
        ("garbage", {"backend_unavailable"}),
        ("endless", {"backend_unavailable"}),
        # While it hangs it may count as hung, and then nobody waits for it.
        ("hang", FAILURES),
        ("slow", FAILURES),
    ],
)
def test_an_answer_that_breaks_on_the_way(
    played: tuple[BrokenTorchServe, str, str], mode: str, becomes: set[str]
) -> None:
    broken, rest, grpc = played
    wait_until_green(rest)
    broken.mode = mode
    try:
        with ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(timed, rest, grpc, TRANSPORTS[i % 2], broken.MODEL, "well", DEADLINE)
                for i in range(8)
            ]
            ended = [one.result(PATIENCE_SECONDS) for one in asked]
    finally:
        broken.mode = "well"
    assert {one.type for one in ended} <= becomes
    assert max(one.seconds for one in ended) < DEADLINE + SLACK_SECONDS
    wait_until_green(rest)
    for transport in TRANSPORTS:
        wait_until(lambda t=transport: not ask(rest, grpc, t, broken.MODEL).error, "it does not recover")


def test_a_management_api_that_hangs(played: tuple[BrokenTorchServe, str, str]) -> None:
    broken, rest, grpc = played
    wait_until_green(rest)
    broken.mode = "management"
    try:
        wait_until_red(rest)
        ended = [timed(rest, grpc, transport, broken.MODEL, "well", DEADLINE) for transport in TRANSPORTS]
    finally:
        broken.mode = "well"
    assert {one.type for one in ended} <= FAILURES | {""}
    assert max(one.seconds for one in ended) < DEADLINE + SLACK_SECONDS
    wait_until_green(rest)


def test_a_port_that_is_refused(tmp_path: Path) -> None:
    with (
        addresses.reserved_ports(1) as (port,),
        _gateway(tmp_path, f"http://127.0.0.1:{port}") as (rest, grpc),
    ):
        assert set(wait_until_red(rest) or {}) == {"torchserve"}
        for transport in TRANSPORTS:
            ended = timed(rest, grpc, transport, "any", "well", DEADLINE)
            assert ended.type == "backend_unavailable"
            assert ended.seconds < DEADLINE + SLACK_SECONDS
