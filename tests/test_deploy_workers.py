"""TorchServe alone (`whybox_service.workers`), and two gateways in front of it that answer the same."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from google.protobuf import json_format

from conftest import PATIENCE_SECONDS
from gateway_calls import b64, over_grpc
from test_gateway_backend import pack
from whybox_proto.departures import VARIABLE as DEPARTURES
from whybox_proto.v1 import explainer_pb2
from whybox_service import addresses
from whybox_service.supervisor import SECRETS

# An address of loopback that is not where TorchServe listens by itself.
HOST = "127.0.0.2"
REQUESTS = {"detect": explainer_pb2.DetectRequest, "explain": explainer_pb2.ExplainRequest}
ANSWERS = {"detect": explainer_pb2.DetectResponse, "explain": explainer_pb2.ExplainResponse}
GRPC_OPTIONS = [("grpc.max_receive_message_length", -1)]
PORTS = ("inference", "management", "metrics", "grpc-inference", "grpc-management", "first-worker")


@dataclass(frozen=True)
class Workers:
    """A running `whybox_service.workers serve`."""

    process: subprocess.Popen[bytes]
    options: list[str]
    ports: dict[str, int]
    output: Path

    def url(self, name: str) -> str:
        return f"http://{HOST}:{self.ports[name]}"

    def probe(self) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "whybox_service.workers", "probe", *self.options]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def workers(store: Path, scratch: Path, **env: str) -> Iterator[Workers]:
    """Run it while the block lasts; it is then stopped, and nothing of it is left."""
    with addresses.reserved_ports(len(PORTS), HOST) as free:
        ports = dict(zip(PORTS, free, strict=True))
    options = ["--model-store", str(store), "--host", HOST]
    options += [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    temporary = scratch / "t"
    temporary.mkdir()
    output = scratch / "workers.log"
    with output.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "whybox_service.workers", "serve", *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), **env},
            stdout=log,
            stderr=log,
        )
    running = Workers(process, options, ports, output)
    tree: list[psutil.Process] = []
    try:
        patience = time.monotonic() + PATIENCE_SECONDS
        while (said := running.probe()).returncode:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < patience, said.stderr + output.read_text()
            time.sleep(0.5)
        yield running
        if process.poll() is None:
            tree = running.tree()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)
    gone, left = psutil.wait_procs(tree, timeout=0)
    assert len(gone) == len(tree), f"orphans: {left}"
    assert list(temporary.iterdir()) == [], "the private folder is left"


@contextmanager
def gateway(behind: Workers, scratch: Path, name: str) -> Iterator[dict[str, str]]:
    """Run a gateway in front of it, ready to answer; its addresses."""
    address_file = scratch / f"{name}.json"
    output = scratch / f"{name}.log"
    with output.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "whybox_service.app"],
            env={
                **os.environ,
                "WHYBOX_PORT": "0",
                "WHYBOX_GRPC_PORT": "0",
                "WHYBOX_INFERENCE_URL": behind.url("inference"),
                "WHYBOX_MANAGEMENT_URL": behind.url("management"),
                "WHYBOX_ADDRESS_FILE": str(address_file),
            },
            stdout=log,
            stderr=log,
        )
    try:
        patience = time.monotonic() + PATIENCE_SECONDS
        while not address_file.exists():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < patience
            time.sleep(0.1)
        told: dict[str, str] = json.loads(address_file.read_text())
        while httpx.get(told["rest"] + "/readyz", timeout=PATIENCE_SECONDS).status_code != 200:
            assert time.monotonic() < patience
            time.sleep(0.2)
        yield told
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0, output.read_text()


@pytest.fixture(scope="module")
def split(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with workers(archives, tmp_path_factory.mktemp("split")) as running:
        yield running


@pytest.fixture(scope="module")
def replicas(split: Workers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, str]]]:
    scratch = tmp_path_factory.mktemp("replicas")
    with ExitStack() as stack:
        yield [stack.enter_context(gateway(split, scratch, name)) for name in ("one", "two")]


class TestTwoGateways:
    """Two replicas on one TorchServe."""

    def asked(self, picture: bytes, verb: str) -> dict[str, Any]:
        asked: dict[str, Any] = {"image": b64(picture), "select": {"score_threshold": 0, "max_detections": 3}}
        if verb == "explain":
            asked |= {"targets": ["class", "x1", "combined"], "output": {"size": "image", "encoding": "f32"}}
        return asked

    @pytest.mark.parametrize("verb", ["detect", "explain"])
    @pytest.mark.parametrize("kind", ["application/json", "application/x-protobuf"])
    def test_rest_answers_are_the_same_bytes(
        self, replicas: list[dict[str, str]], picture: bytes, verb: str, kind: str
    ) -> None:
        bodies = []
        for replica in replicas:
            answer = httpx.post(
                f"{replica['rest']}/v1/models/retinanet-random:{verb}",
                json=self.asked(picture, verb),
                headers={"Accept": kind},
                timeout=PATIENCE_SECONDS,
            )
            assert answer.status_code == 200, answer.text
            bodies.append(without_stages(answer.content, verb, kind))
        assert len(bodies[0]) > 100
        assert bodies[0] == bodies[1]

    @pytest.mark.parametrize("verb", ["detect", "explain"])
    def test_grpc_answers_are_the_same_bytes(
        self, replicas: list[dict[str, str]], picture: bytes, verb: str
    ) -> None:
        request = {"model": "retinanet-random", **self.asked(picture, verb)}
        answers = []
        for replica in replicas:
            path = f"/whybox.v1.Explainer/{verb.capitalize()}"
            with grpc.insecure_channel(replica["grpc"], options=GRPC_OPTIONS) as channel:
                message = json_format.ParseDict(request, REQUESTS[verb]())
                answer = channel.unary_unary(path)(message.SerializeToString(), timeout=PATIENCE_SECONDS)
            answers.append(without_stages(answer, verb, "application/x-protobuf"))
        assert len(answers[0]) > 100
        assert answers[0] == answers[1]

    def test_they_refuse_the_same(self, replicas: list[dict[str, str]]) -> None:
        for request in ({"model": "retinanet-random"}, {"model": "nobody", "image": "AAAA"}):
            one, two = (over_grpc(replica["grpc"], "Detect", request) for replica in replicas)
            assert one == two
            assert one.error

    def test_one_goes_and_the_other_goes_on(
        self, split: Workers, replicas: list[dict[str, str]], picture: bytes, tmp_path: Path
    ) -> None:
        with gateway(split, tmp_path, "three") as third:
            assert {third["rest"]}.isdisjoint({replica["rest"] for replica in replicas})
        answer = httpx.post(
            f"{replicas[0]['rest']}/v1/models/retinanet-random:detect",
            json=self.asked(picture, "detect"),
            timeout=PATIENCE_SECONDS,
        )
        assert answer.status_code == 200


def without_stages(body: bytes, verb: str, kind: str) -> bytes:
    """An answer's bytes but for those of its stages, which say how long they took."""
    if kind == "application/json":
        left, count = re.subn(rb',?"stages":\[[^]]*\]', b"", body)
        assert count == 1
        return left
    answer = ANSWERS[verb].FromString(body)
    assert answer.stages
    del answer.stages[:]
    return answer.SerializeToString(deterministic=True)


class TestTorchServe:
    """TorchServe alone, with the real detectors."""

    def test_it_listens_where_it_is_told(self, split: Workers) -> None:
        for name, path in (("inference", "/ping"), ("management", "/models"), ("metrics", "/metrics")):
            assert httpx.get(split.url(name) + path, timeout=PATIENCE_SECONDS).status_code == 200
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"http://127.0.0.1:{split.ports[name]}{path}", timeout=PATIENCE_SECONDS)

    def test_models_are_not_registered(self, split: Workers, archives: Path) -> None:
        url = split.url("management") + "/models"
        archive = next(archives.glob("*.mar"))
        answer = httpx.post(url, params={"url": archive.as_uri()}, timeout=PATIENCE_SECONDS)
        assert answer.status_code in (403, 404, 405), answer.text
        assert httpx.delete(f"{url}/retinanet-random", timeout=PATIENCE_SECONDS).status_code in (
            403,
            404,
            405,
        )

    def test_its_own_metrics_have_the_workers(self, split: Workers, replicas: Any) -> None:
        assert replicas
        text = httpx.get(split.url("metrics") + "/metrics", timeout=PATIENCE_SECONDS).text
        assert "whybox_worker_request_seconds" in text


@pytest.fixture(scope="module")
def faulty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("faulty_store")
    pack("faulty", Path(__file__).with_name("faulty_worker.py"), store)
    return store


class TestTheProcess:
    """How it starts, tells and ends, with a worker that loads in a moment."""

    def test_it_logs_to_stdout_and_keeps_secrets_from_its_workers(
        self, faulty_store: Path, tmp_path: Path
    ) -> None:
        shared = tmp_path / "departures"
        secrets = dict.fromkeys(SECRETS, "secret")
        env = {"WHYBOX_LOG_FORMAT": "json", DEPARTURES: str(shared), **secrets}
        with workers(faulty_store, tmp_path, **env) as running:
            known = [process.environ() for process in running.tree()[1:]]
            lines = [line for line in running.output.read_text().splitlines() if line.startswith("{")]
        assert known
        for environment in known:
            assert environment[DEPARTURES] == str(shared)
            assert not SECRETS & set(environment)
        told = [json.loads(line) for line in lines]
        assert {"time", "level", "logger", "thread", "message", "exception"} == set(told[0])
        assert any("faulty" in line["message"] for line in told)

    def test_the_probe_tells_a_model_without_a_worker(self, faulty_store: Path, tmp_path: Path) -> None:
        with workers(faulty_store, tmp_path) as running:
            probing = running.probe()
            assert (probing.returncode, probing.stderr) == (0, "")
            running.tree()[0].terminate()
            running.process.wait(PATIENCE_SECONDS)
            assert running.process.returncode == 1
            assert "TorchServe ended by itself" in running.output.read_text()
            probing = running.probe()
            assert (probing.returncode, probing.stderr) == (1, "faulty: it has no worker that is ready\n")

    def test_nothing_outlives_it(self, faulty_store: Path, tmp_path: Path) -> None:
        with workers(faulty_store, tmp_path) as running:
            tree = running.tree()
            assert len(tree) >= 3  # the guard, Java, the worker
            running.process.kill()
            running.process.wait(PATIENCE_SECONDS)
            _, left = psutil.wait_procs(tree, timeout=PATIENCE_SECONDS)
        assert left == []
        assert list((tmp_path / "t").iterdir()) == []

    def test_it_says_why_it_cannot_start(self, faulty_store: Path, tmp_path: Path) -> None:
        serve = [sys.executable, "-m", "whybox_service.workers", "serve", "--model-store"]
        done = subprocess.run([*serve, tmp_path], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert "there is no archive" in done.stderr
        with socket.create_server((HOST, 0)) as holder:
            port = holder.getsockname()[1]
            options = ["--host", HOST, "--management-port", str(port)]
            done = subprocess.run(
                [*serve, faulty_store, *options], capture_output=True, text=True, check=False
            )
        assert done.returncode == 1
        assert f"cannot listen on {HOST}:{port}" in done.stderr
