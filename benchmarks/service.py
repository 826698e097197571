"""What the benchmarks of the service share: a running service, what they send, and calls of it."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import psutil
from PIL import Image

from whybox_proto.v1 import explainer_pb2, worker_pb2

Call = Callable[[], object]
Serving = AbstractContextManager[dict[str, Any]]

CLIENTS = 8
PATIENCE_SECONDS = 120
STORE = Path(__file__).parent.parent / "model_store"


@contextmanager
def serving(
    store: Path, scratch: Path, environment: dict[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Run `whybox serve` on the archives of a folder, torch on one thread; give its addresses.

    Args:
        store: folder with the archives.
        scratch: folder for a file.
        environment: further variables.
    """
    ready = scratch / "ready.json"
    command = [sys.executable, "-m", "whybox_client.cli", "serve", "--port", "0", "--grpc-port", "0"]
    log = (scratch / "serve.log").open("w")
    process = subprocess.Popen(
        [*command, "--model-store", str(store), "--ready-file", str(ready)],
        stdout=log,
        stderr=log,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise RuntimeError(f"whybox serve ended: {(scratch / 'serve.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield {**json.loads(ready.read_text()), "pid": process.pid}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        log.close()


def gateway_of(pid: int) -> psutil.Process:
    """Return the gateway's process among those of `whybox serve`."""
    for process in psutil.Process(pid).children(recursive=True):
        command = process.cmdline()
        if command[-1] == "whybox_service.app" and "whybox_service.guard" not in command:
            return process
    raise RuntimeError("there is no gateway")


def build(model: str, store: Path) -> None:
    """Build the archive of one of the recipes in model_store/."""
    from whybox.archives import build

    build(STORE / f"{model}.yaml", store)


def picture() -> bytes:
    """Noise over a gradient, 640x480: a JPEG of about 200 kB."""
    rng = np.random.default_rng(0)
    gradient = np.linspace(0, 200, 640)[None, :, None].repeat(480, 0).repeat(3, 2)
    image = Image.fromarray((gradient + rng.uniform(0, 55, (480, 640, 3))).astype(np.uint8))
    for quality in range(80, 100):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() >= 190_000:
            break
    return buffer.getvalue()


def torchserve_call(url: str, model: str, image: bytes) -> Call:
    """The worker through TorchServe alone, as the gateway asks it."""
    body = worker_pb2.WorkerRequest(detect=explainer_pb2.DetectRequest(image=image)).SerializeToString()
    return http_call(url, f"/predictions/{model}", body, {"Content-Type": "application/x-protobuf"})


def rest_call(url: str, model: str, image: bytes, key: str = "") -> Call:
    """The gateway over REST: the picture as the body, JSON back."""
    headers = {"Content-Type": "image/jpeg", **({"Authorization": f"Bearer {key}"} if key else {})}
    return http_call(url, f"/v1/models/{model}:detect", image, headers)


def http_call(url: str, path: str, body: bytes, headers: dict[str, str]) -> Call:
    """A POST over a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS)

    def call() -> bytes:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer[:500]!r}")
        return answer

    return call


def grpc_call(target: str, model: str, image: bytes, key: str = "") -> Call:
    """The gateway over gRPC, over a channel of its own."""
    channel = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
    method = channel.unary_unary("/whybox.v1.Explainer/Detect")
    body = explainer_pb2.DetectRequest(model=model, image=image).SerializeToString()
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    return lambda: method(body, timeout=PATIENCE_SECONDS, metadata=metadata)


def latencies(ways: dict[str, Callable[[], Call]], count: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds that each of some calls takes; the ways take turns, so that noise hits all alike."""
    calls = {name: make() for name, make in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(count + warm_up):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number >= warm_up:
                taken[name].append(time.perf_counter() - started)
    return taken


def throughput(ways: dict[str, Callable[[], Call]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Calls per second of `CLIENTS` clients at once, round by round; the first round only warms up."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, make in ways.items():
            rate = _rate(make, seconds)
            if number:
                rates[name].append(rate)
    return rates


def _rate(make: Callable[[], Call], seconds: float) -> float:
    done = [0] * CLIENTS
    stop = time.perf_counter() + seconds

    def run(client: int) -> None:
        call = make()
        while time.perf_counter() < stop:
            call()
            done[client] += 1

    started = time.perf_counter()
    clients = [threading.Thread(target=run, args=(client,)) for client in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return sum(done) / (time.perf_counter() - started)
