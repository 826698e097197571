"""What gateway and TorchServe add to a detect call: latency, throughput, and the gateway's start.

The same 200 kB JPEG goes to the handler in process, to bare TorchServe, and through the gateway over REST and
gRPC; torch runs on one thread everywhere. Rounds alternate: what else the machine does hits all alike.

    python benchmarks/gateway.py
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
from PIL import Image

from whybox_proto.v1 import explainer_pb2, worker_pb2

STORE = Path(__file__).parent.parent / "model_store"
CLIENTS = 8
LIMIT_LATENCY_MS, LIMIT_THROUGHPUT, LIMIT_START_S = 10.0, 0.85, 2.0

Call = Callable[[], object]


def main() -> None:
    """Measure, and print a table with the limits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="retinanet-signs", help="recipe in model_store/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=40, help="per round, for the latency")
    parser.add_argument("--seconds", type=float, default=4.0, help="per round, for the throughput")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported, here and in the worker
    image = picture()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        in_process = in_process_call(options.model, image)
        addresses = stack.enter_context(serving(options.model, Path(scratch)))
        makers = {
            "in process": lambda: in_process,
            "bare TorchServe": lambda: torchserve_call(
                addresses["torchserve"]["inference"], options.model, image
            ),
            "gateway, REST": lambda: rest_call(addresses["rest"], options.model, image),
            "gateway, gRPC": lambda: grpc_call(addresses["grpc"], options.model, image),
        }
        latency = measure(makers, options.rounds, lambda make: latencies(make(), options.requests))
        throughput = measure(makers, options.rounds, lambda make: [rate(make, options.seconds)])
    report(options.model, len(image), latency, throughput)
    start = statistics.median(gateway_start() for _ in range(3))
    print(f"\nThe gateway, from start to its first answer: {start:.2f} s (limit {LIMIT_START_S:g} s).")


def measure(
    makers: dict[str, Callable[[], Call]], rounds: int, one: Callable[[Callable[[], Call]], list[float]]
) -> dict[str, list[float]]:
    """Take `one` measurement of each in turn, round after round; the first round only warms up."""
    samples: dict[str, list[float]] = {name: [] for name in makers}
    for number in range(rounds + 1):
        for name, make in makers.items():
            taken = one(make)
            if number:
                samples[name] += taken
    return samples


def report(
    model: str, size: int, latency: dict[str, list[float]], throughput: dict[str, list[float]]
) -> None:
    """Print the table."""
    base_latency = statistics.median(latency["in process"])
    base_rate = statistics.median(throughput["in process"])
    print(
        f"{model}, a JPEG of {size / 1000:.0f} kB, one worker, torch on one thread, {os.cpu_count()} cores\n"
    )
    print(f"| way | p10, ms | median, ms | p90, ms | added, ms | {CLIENTS} clients, 1/s | over in process |")
    print("|---|---|---|---|---|---|---|")
    for name in latency:
        deciles = statistics.quantiles(latency[name], n=10)
        added = (deciles[4] - base_latency) * 1e3
        share = statistics.median(throughput[name]) / base_rate
        print(
            f"| {name} | {deciles[0] * 1e3:.1f} | {deciles[4] * 1e3:.1f} | {deciles[8] * 1e3:.1f} "
            f"| {added:+.1f} | {share * base_rate:.1f} | {share:.2f} |"
        )
    print(
        f"\nLimits: {LIMIT_LATENCY_MS:g} ms added to the median, {LIMIT_THROUGHPUT:g} of the rate in process."
    )


def latencies(call: Call, count: int) -> list[float]:
    """Seconds that each of some calls takes, one after another."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return taken


def rate(make: Callable[[], Call], seconds: float) -> float:
    """Calls per second of `CLIENTS` clients at once; in process they take turns, as torch has one thread."""
    done = 0
    lock = threading.Lock()
    stop = time.perf_counter() + seconds

    def run() -> None:
        nonlocal done
        call = make()
        while time.perf_counter() < stop:
            call()
            with lock:
                done += 1

    started = time.perf_counter()
    clients = [threading.Thread(target=run) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return done / (time.perf_counter() - started)


def in_process_call(model: str, image: bytes) -> Call:
    """The worker's whole work without TorchServe: bytes in, bytes out, one call at a time."""
    import torch

    from whybox.engine import Engine
    from whybox.recipe import read_recipe

    torch.set_num_threads(1)
    recipe = read_recipe(STORE / f"{model}.yaml")
    engine = Engine.load(recipe, STORE / str(recipe.weights))
    body = worker_pb2.WorkerRequest(detect=explainer_pb2.DetectRequest(image=image)).SerializeToString()
    lock = threading.Lock()

    def call() -> bytes:
        with lock:
            (reply,) = engine.answer([worker_pb2.WorkerRequest.FromString(body)])
        assert reply.WhichOneof("result") == "detect", reply
        return reply.SerializeToString()

    return call


def torchserve_call(url: str, model: str, image: bytes) -> Call:
    """The worker through TorchServe alone, as the gateway asks it."""
    body = worker_pb2.WorkerRequest(detect=explainer_pb2.DetectRequest(image=image)).SerializeToString()
    return http_call(url, f"/predictions/{model}", "application/x-protobuf", body)


def rest_call(url: str, model: str, image: bytes) -> Call:
    """The gateway over REST: the picture as the body, JSON back."""
    return http_call(url, f"/v1/models/{model}:detect", "image/jpeg", image)


def http_call(url: str, path: str, kind: str, body: bytes) -> Call:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)

    def call() -> bytes:
        connection.request("POST", path, body, {"Content-Type": kind})
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        return answer

    return call


def grpc_call(target: str, model: str, image: bytes) -> Call:
    """The gateway over gRPC."""
    channel = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
    method = channel.unary_unary("/whybox.v1.Explainer/Detect")
    body = explainer_pb2.DetectRequest(model=model, image=image).SerializeToString()
    return lambda: method(body, timeout=120)


@contextmanager
def serving(model: str, scratch: Path) -> Iterator[dict[str, str]]:
    """Build the archive and run `whybox serve` on it."""
    from whybox.archives import build

    build(STORE / f"{model}.yaml", scratch)
    ready = scratch / "ready.json"
    command = [sys.executable, "-m", "whybox_client.cli", "serve", "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(
        [*command, "--model-store", str(scratch), "--ready-file", str(ready)], stdout=subprocess.DEVNULL
    )
    try:
        while not ready.exists():
            assert process.poll() is None, "whybox serve ended"
            time.sleep(0.1)
        yield json.loads(ready.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def gateway_start() -> float:
    """Seconds from the start of a gateway process to its first answer."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "addresses.json")
        settings = {"PORT": "0", "GRPC_PORT": "0", "ADDRESS_FILE": str(file), "LOG_LEVEL": "error"}
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "whybox_service.app"],
            env={**os.environ, **{f"WHYBOX_{name}": value for name, value in settings.items()}},
        )
        while not file.exists():
            time.sleep(0.005)
        connection = http.client.HTTPConnection(urlsplit(json.loads(file.read_text())["rest"]).netloc)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        taken = time.perf_counter() - started
        connection.close()
        process.terminate()
        process.wait()
    return taken


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


if __name__ == "__main__":
    main()
