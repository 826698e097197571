"""What the tests of inversion jobs share: a TorchServe that is played, gateways before it, and questions."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx

import inversion_worker
from conftest import PATIENCE_SECONDS
from whybox_proto.errors import TYPE_PREFIX
from whybox_proto.states import ENDED as ENDED
from whybox_proto.v1 import worker_pb2

MODEL = "played"
HANG_SECONDS = 1.0
LAYOUT: dict[str, Any] = {
    "width": 64,
    "height": 48,
    "objects": [{"label": "thing", "box": [4, 4, 30, 40]}, {"label": "other", "box": [20, 10, 60, 44]}],
}


@dataclass
class PlayedTorchServe:
    """Plays a TorchServe with one model, a worker for each connection, in threads of this process.

    Attributes:
        mode: `well`; `overloaded`; `gone`: connections are dropped; `lost`: the worker dies with the request;
            `hung`: the worker is ended when nobody waits any more; `broken`: all of TorchServe ends with the
            request, and comes back; `unloaded`: the model is not there; `hold`: advances wait until there is
            another mode.
        versions: of the model; the first is its default one.
        workers: how many it tells of.
        steps: the advances that were asked for, by request id.
        asked: the versions that they were asked of.
        died: advances that killed a worker, or all of TorchServe.
        at_once, most_at_once: advances being worked on, and the most there have been.
        seen: models asked in detect requests.
    """

    mode: str = "well"
    versions: list[str] = field(default_factory=lambda: ["1.0"])
    workers: int = 1
    steps: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    died: int = 0
    at_once: int = 0
    most_at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> PlayedTorchServe:
        played = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_GET(self) -> None:
                played._answer(self, b"")

            def do_POST(self) -> None:
                played._answer(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mode = "well"
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, exchange: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        if self.mode == "gone":
            exchange.close_connection = True
            return
        try:
            status, answer = self._answered(exchange.path.partition("?")[0], body)
        except ConnectionAbortedError:
            exchange.close_connection = True
            return
        with contextlib.suppress(OSError):
            exchange.send_response(status)
            exchange.send_header("Content-Length", str(len(answer)))
            exchange.end_headers()
            exchange.wfile.write(answer)

    def _answered(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/models":
            there = [] if self.mode == "unloaded" else [{"modelName": MODEL, "modelUrl": "played.mar"}]
            return 200, json.dumps({"models": there}).encode()
        if self.mode == "unloaded":
            return 404, b'{"code": 404, "type": "ModelNotFoundException", "message": "no such model"}'
        version = path.removeprefix("/models/").removeprefix("/predictions/").partition("/")[2]
        if version not in ("", "all", *self.versions):
            return (
                404,
                b'{"code": 404, "type": "ModelVersionNotFoundException", "message": "no such version"}',
            )
        if path.startswith("/models/"):
            told = self.versions if version == "all" else [version or self.versions[0]]
            workers = [{"id": str(9000 + i), "pid": 1, "status": "READY"} for i in range(self.workers)]
            state = {**_STATE, "workers": workers}
            return 200, json.dumps([{**state, "modelVersion": each} for each in told]).encode()
        request = worker_pb2.WorkerRequest.FromString(body)
        if request.WhichOneof("operation") != "advance":
            return 200, inversion_worker.answer(request).SerializeToString()
        if self.mode == "overloaded":
            return 503, b'{"code": 503, "type": "ServiceUnavailableException", "message": "queue full"}'
        if self.mode in ("lost", "hung"):
            time.sleep(HANG_SECONDS if self.mode == "hung" else 0)
            self.died += 1
            return 500, b'{"code": 500, "type": "InternalServerException", "message": "Worker died."}'
        if self.mode == "broken":
            self.died += 1
            raise ConnectionAbortedError
        with self._lock:
            self.steps.append(request.request_id)
            self.asked.append(version)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            eventually(lambda: self.mode != "hold")
            return 200, inversion_worker.answer(request).SerializeToString()
        finally:
            with self._lock:
                self.at_once -= 1

    def steps_of(self, job: str) -> list[int]:
        """The steps that were asked for of a job, in order."""
        return [int(each.split("-")[1]) for each in self.steps if each.startswith(job.partition("/")[2])]


_STATE = {
    "modelName": MODEL,
    "batchSize": 1,
    "jobQueueStatus": {"remainingCapacity": 100, "pendingRequests": 0},
}


class Gateway:
    """A gateway in a process of its own.

    Args:
        scratch: folder for its files.
        torchserve: URL of the one behind it.
        prelude: Python that the process runs before anything else, to change how long things take.
        environment: its settings.

    Attributes:
        rest: URL of REST.
        grpc: target of gRPC.
        process: its process.
        log: file with what it logged.
        environment: its variables.
    """

    def __init__(self, scratch: Path, torchserve: str, *, prelude: str = "", **environment: str) -> None:
        main = f"{prelude}\nimport sys\nfrom whybox_service.app import main\nsys.exit(main())"
        self._command = [sys.executable, *(("-c", main) if prelude else ("-m", "whybox_service.app"))]
        scratch.mkdir(parents=True, exist_ok=True)
        self.log = scratch / "gateway.log"
        self._address = scratch / "address.json"
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "WHYBOX_PORT": "0",
            "WHYBOX_GRPC_PORT": "0",
            "WHYBOX_INFERENCE_URL": torchserve,
            "WHYBOX_MANAGEMENT_URL": torchserve,
            "WHYBOX_ADDRESS_FILE": str(self._address),
            "WHYBOX_JOBS_STEP_SECONDS": "0.1",
            "WHYBOX_RECOVERY_SECONDS": "1",
            "WHYBOX_POLL_SECONDS": "0.5",
            **environment,
        }
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        self._address.unlink(missing_ok=True)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self._command, env=self.environment, stdout=log, stderr=log)
        eventually(self._listens)
        addresses = json.loads(self._address.read_text())
        self.rest, self.grpc = addresses["rest"], addresses["grpc"]

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self._address.exists()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)

    def stop(self) -> int:
        """End it as an operator would; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    # Questions over REST.

    def ask(self, verb: str, path: str, **asked: Any) -> httpx.Response:
        """Ask anything."""
        return httpx.request(verb, f"{self.rest}/v1/{path}", timeout=PATIENCE_SECONDS, **asked)

    def create(self, params: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Make a job."""
        request = {"model": MODEL, "layout": LAYOUT, "params": params or {}, **more}
        response = self.ask("POST", "inversions", json=request)
        assert response.status_code == 202, response.text
        job = cast("dict[str, Any]", response.json())
        assert response.headers["Location"] == f"/v1/{job['name']}"
        return job

    def get(self, name: str) -> dict[str, Any]:
        """Look at a job."""
        response = self.ask("GET", name)
        assert response.status_code == 200, response.text
        return cast("dict[str, Any]", response.json())

    def wait(self, name: str, *states: str) -> dict[str, Any]:
        """Wait until a job has ended, or is in one of some states."""
        patience = time.monotonic() + PATIENCE_SECONDS
        while (job := self.get(name))["state"] not in (states or ENDED):
            assert job["state"] not in ENDED, job
            assert time.monotonic() < patience, job
            time.sleep(0.05)
        return job

    def picture(self, name: str) -> httpx.Response:
        """Ask for its picture."""
        return self.ask("GET", f"{name}/image")

    def metric(self, name: str, **labels: str) -> float:
        """A number of `/metrics`; 0 where it is not there."""
        for line in httpx.get(f"{self.rest}/metrics", timeout=PATIENCE_SECONDS).text.splitlines():
            if line.startswith(name + "{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
                return float(line.rpartition(" ")[2])
        return 0.0


@contextlib.contextmanager
def gateway(scratch: Path, torchserve: str, *, prelude: str = "", **environment: str) -> Iterator[Gateway]:
    """Run a gateway, with a data folder of its own unless the environment says otherwise."""
    data = {} if "WHYBOX_JOBS_DATABASE" in environment else {"WHYBOX_DATA": str(scratch / "data")}
    running = Gateway(scratch, torchserve, prelude=prelude, **{**data, **environment})
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def refused(**environment: str) -> str:
    """What a gateway says that does not start with these settings, and ends by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "whybox_service.app"],
        env={**os.environ, "WHYBOX_PORT": "0", "WHYBOX_GRPC_PORT": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def problem(response: httpx.Response) -> tuple[int, str, str]:
    """The status of an error, its type and its field."""
    told = response.json()
    return response.status_code, told["type"].removeprefix(TYPE_PREFIX), told.get("field", "")


def check_whole(job: dict[str, Any]) -> None:
    """Check that a job has succeeded, and did each iteration once."""
    assert job["state"] == "succeeded", job
    iterations = job["result"]["losses"][0]["iterations"]
    assert iterations == list(range(1, job["progress"]["iterations"] + 1))
    assert job["progress"]["iteration"] == job["progress"]["iterations"]


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < patience
        time.sleep(0.02)
