"""What the tests of faults share: a steady load whose outcomes are kept, and a TorchServe that misbehaves."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from conftest import PATIENCE_SECONDS
from gateway_calls import Outcome, b64, over_grpc, over_rest
from whybox_proto.v1 import types_pb2, worker_pb2

# What a request may become while something is broken; the last where its turn would come after its deadline.
FAILURES = {"backend_unavailable", "deadline_exceeded", "DEADLINE_EXCEEDED", "overloaded"}
# How much longer than its deadline a request may take on a busy machine.
SLACK_SECONDS = 15.0


@dataclass(frozen=True)
class Ended:
    """How one request ended.

    Attributes:
        model: whom it asked.
        type: of the error, as the table of errors has it; empty for an answer.
        message: what the error says.
        seconds: how long it took.
    """

    model: str
    type: str
    message: str
    seconds: float


@dataclass
class Load:
    """The requests of a steady load."""

    deadline: float
    ended: list[Ended] = field(default_factory=list)

    def check(self, *more: str) -> None:
        """Each ended by its deadline, well or as a fault may end it."""
        assert self.ended
        late = [one for one in self.ended if one.seconds > self.deadline + SLACK_SECONDS]
        assert not late
        others = [one for one in self.ended if one.type and one.type not in FAILURES.union(more)]
        assert not others

    def answers(self, model: str) -> int:
        """How many requests of a model were answered."""
        return sum(one.model == model and not one.type for one in self.ended)


def ask(
    rest: str, grpc: str, transport: str, model: str, what: str = "well", deadline: float = 10.0
) -> Outcome:
    """Ask the faulty worker for something."""
    request = {"model": model, "image": b64(what.encode())}
    if transport == "rest":
        try:
            return over_rest(rest, "Detect", request, **{"X-Request-Timeout": str(deadline)})
        except httpx.TransportError as error:
            return Outcome(error={"type": "UNAVAILABLE", "message": str(error)})
    return over_grpc(grpc, "Detect", request, timeout=deadline)


def timed(rest: str, grpc: str, transport: str, model: str, what: str, deadline: float) -> Ended:
    """Ask, and look at the clock."""
    started = time.monotonic()
    error = ask(rest, grpc, transport, model, what, deadline).error
    return Ended(model, error.get("type", ""), error.get("message", ""), time.monotonic() - started)


@contextmanager
def steady(rest: str, grpc: str, models: list[str], deadline: float = 3.0) -> Iterator[Load]:
    """Ask each of some models over both transports, one request after another, while the block lasts."""
    load = Load(deadline)
    stop = threading.Event()

    def run(transport: str, model: str) -> None:
        while not stop.is_set():
            load.ended.append(timed(rest, grpc, transport, model, "well", deadline))
            stop.wait(0.1)

    threads = [
        threading.Thread(target=run, args=(transport, model))
        for transport in ("rest", "grpc")
        for model in models
    ]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive(), "a request hangs"


def reasons(rest: str) -> dict[str, str] | None:
    """What is not ready; empty where all is, None where the gateway does not answer."""
    try:
        response = httpx.get(f"{rest}/readyz", verify=False, timeout=PATIENCE_SECONDS)
    except httpx.TransportError:
        return None
    if response.status_code == 200:
        return {}
    told: dict[str, str] = response.json().get("reasons", {"gateway": response.text})
    return told


def wait_until_red(rest: str) -> dict[str, str] | None:
    """Wait until something is not ready, and return what."""
    return _wait(rest, red=True)


def wait_until_green(rest: str) -> None:
    """Wait until everything is ready."""
    _wait(rest, red=False)


def _wait(rest: str, *, red: bool) -> dict[str, str] | None:
    patience = time.monotonic() + PATIENCE_SECONDS
    while True:
        seen = reasons(rest)
        if (seen != {}) == red:
            return seen
        assert time.monotonic() < patience, seen
        time.sleep(0.05)


class BrokenTorchServe:
    """Plays a TorchServe with one model whose answers break on the way, as `mode` says.

    Modes: `well`; `close`: no answer; `truncate`: half of an answer; `garbage`: no HTTP; `hang`: nothing;
    `slow`: a byte a second; `endless`: headers that do not end; `management`: its management API hangs.
    """

    MODEL = "played"

    def __init__(self) -> None:
        self.mode = "well"
        self._ended = threading.Event()
        played = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    played._converse(self.request)

        socketserver.ThreadingTCPServer.daemon_threads = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> BrokenTorchServe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _converse(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while line := stream.readline():
            length = 0
            while (header := stream.readline().strip()) != b"":
                name, _, value = header.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            body = stream.read(length)
            path = line.split()[1].decode().partition("?")[0]
            if not self._answer(connection, path, body):
                return

    def _answer(self, connection: socket.socket, path: str, body: bytes) -> bool:
        """Answer a request; return whether the connection stays."""
        if path.startswith("/models"):
            if self.mode == "management":
                self._ended.wait(PATIENCE_SECONDS)
                return False
            connection.sendall(_http(json.dumps(self._management(path)).encode()))
            return True
        request = worker_pb2.WorkerRequest.FromString(body)
        reply = worker_pb2.WorkerReply()
        describing = request.WhichOneof("operation") == "describe"
        if describing:
            reply.model.CopyFrom(
                types_pb2.Model(
                    name=self.MODEL,
                    labels=["thing"],
                    default_nms="iou",
                    nms=[types_pb2.Nms(kind="iou", iou_threshold=0.5)],
                )
            )
        else:
            reply.detect.warnings.append("x" * 1000)
        answer = _http(reply.SerializeToString())
        if describing or self.mode in ("well", "management"):
            connection.sendall(answer)
            return True
        if self.mode == "truncate":
            connection.sendall(answer[: len(answer) // 2])
        elif self.mode == "garbage":
            connection.sendall(b"\x00\xff what is this\r\n\r\n")
        elif self.mode == "hang":
            self._ended.wait(PATIENCE_SECONDS)
        elif self.mode == "slow":
            for byte in answer:
                connection.sendall(bytes([byte]))
                if self._ended.wait(1.0):
                    break
        elif self.mode == "endless":
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not self._ended.wait(0.01):
                connection.sendall(b"X-More: " + b"y" * 10_000 + b"\r\n")
        return False

    def _management(self, path: str) -> Any:
        if path == "/models":
            return {"models": [{"modelName": self.MODEL, "modelUrl": "played.mar"}]}
        return [
            {
                "modelName": self.MODEL,
                "modelVersion": "1.0",
                "batchSize": 1,
                "workers": [{"id": "9000", "pid": 1, "status": "READY"}],
                "jobQueueStatus": {"remainingCapacity": 100, "pendingRequests": 0},
            }
        ]


def _http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
