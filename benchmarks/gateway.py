"""What gateway and TorchServe add to a detect call: latency, throughput, and the gateway's start.

The same 200 kB JPEG goes to the handler in process, to bare TorchServe, and through the gateway over REST and
gRPC; torch runs on one thread everywhere. The ways take turns: what else the machine does hits all alike.

    python benchmarks/gateway.py
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import service
from tables import print_row, print_titles

from whybox_proto.v1 import explainer_pb2, worker_pb2

WARM_UP = 10
BARE = "bare TorchServe"
LIMIT_LATENCY_MS, LIMIT_THROUGHPUT, LIMIT_START_S = 3.0, 0.85, 2.0


def main() -> None:
    """Measure, and print a table with the limits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="retinanet-signs", help="recipe in model_store/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=150, help="of each way, for the latency")
    parser.add_argument("--seconds", type=float, default=4.0, help="per round, for the throughput")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported, here and in the worker
    image = service.picture()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        in_process = in_process_call(options.model, image)
        service.build(options.model, Path(scratch))
        addresses = stack.enter_context(service.serving(Path(scratch), Path(scratch)))
        makers = {
            "in process": lambda: in_process,
            BARE: lambda: service.torchserve_call(addresses["torchserve"]["inference"], options.model, image),
            "gateway, REST": lambda: service.rest_call(addresses["rest"], options.model, image),
            "gateway, gRPC": lambda: service.grpc_call(addresses["grpc"], options.model, image),
        }
        latency = service.latencies(makers, options.requests, WARM_UP)
        throughput = service.throughput(makers, options.rounds, options.seconds)
    report(options.model, len(image), latency, throughput)
    start = statistics.median(gateway_start() for _ in range(3))
    print(f"\nThe gateway, from start to its first answer: {start:.2f} s (limit {LIMIT_START_S:g} s).")


def report(
    model: str, size: int, latency: dict[str, list[float]], throughput: dict[str, list[float]]
) -> None:
    """Print the table."""
    base_rate = statistics.median(throughput["in process"])
    print(
        f"{model}, a JPEG of {size / 1000:.0f} kB, one worker, torch on one thread, {os.cpu_count()} cores\n"
    )
    clients = f"{service.CLIENTS} clients, 1/s"
    print_titles("way", "p10, ms", "median, ms", "p90, ms", "over bare, ms", clients, "of that")
    for name in latency:
        deciles = statistics.quantiles(latency[name], n=10)
        # Of pairs that were taken one after the other: what slows the machine for a while slows both.
        added = statistics.median(
            ours - bare for ours, bare in zip(latency[name], latency[BARE], strict=True)
        )
        share = statistics.median(throughput[name]) / base_rate
        taken = (f"{deciles[i] * 1e3:.1f}" for i in (0, 4, 8))
        print_row(name, *taken, f"{added * 1e3:+.1f}", f"{share * base_rate:.1f}", f"{share:.2f}")
    print(
        f"\nLimits: {LIMIT_LATENCY_MS:g} ms added to bare TorchServe, {LIMIT_THROUGHPUT:g} of the rate in "
        "process."
    )


def in_process_call(model: str, image: bytes) -> service.Call:
    """The worker's whole work without TorchServe: bytes in, bytes out, one call at a time."""
    import torch

    from whybox.engine import Engine
    from whybox.recipe import read_recipe

    torch.set_num_threads(1)
    recipe = read_recipe(service.STORE / f"{model}.yaml")
    engine = Engine.load(recipe, service.STORE / str(recipe.weights))
    body = worker_pb2.WorkerRequest(detect=explainer_pb2.DetectRequest(image=image)).SerializeToString()
    lock = threading.Lock()

    def call() -> bytes:
        with lock:
            (reply,) = engine.answer([worker_pb2.WorkerRequest.FromString(body)])
        assert reply.WhichOneof("result") == "detect", reply
        return reply.SerializeToString()

    return call


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


if __name__ == "__main__":
    main()
