"""What the gateway itself costs: beside a worker that does nothing, each part can be seen.

The same 200 kB JPEG goes to a bare TorchServe and through gateways over REST and gRPC: one plain, one with
keys and a log line a request in JSON. Calls take turns; so do the rounds of throughput.

    python benchmarks/overheads.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import service
from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_packaging import generate_model_archive
from tables import print_row, print_titles

from whybox_proto.v1 import explainer_pb2
from whybox_service.keys import entry_of, new_key
from whybox_service.metrics import Metrics

MODEL = "nothing"
BARE = "bare TorchServe"
FULL = " with keys and logs"
CPU_ROUNDS = 3
WARM_UP = 50
LIMIT_ADDED_MS, LIMIT_SHARE = 3.0, 0.05


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=400, help="of each way, for the latency")
    parser.add_argument("--rounds", type=int, default=7, help="of the throughput")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    options = parser.parse_args()
    image = service.picture()
    key = new_key()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        scratch = Path(name)
        archive(scratch / "store")
        plain = stack.enter_context(running(scratch, "plain", {"WHYBOX_LOG_LEVEL": "error"}))
        full = stack.enter_context(
            running(
                scratch,
                "full",
                {
                    "WHYBOX_LOG_LEVEL": "info",
                    "WHYBOX_LOG_FORMAT": "json",
                    "WHYBOX_API_KEYS": str(entry_of("benchmark", key)),
                },
            )
        )
        ways: dict[str, Callable[[], service.Call]] = {
            BARE: lambda: service.torchserve_call(plain["torchserve"]["inference"], MODEL, image),
            "REST": lambda: service.rest_call(plain["rest"], MODEL, image),
            "gRPC": lambda: service.grpc_call(plain["grpc"], MODEL, image),
            "REST" + FULL: lambda: service.rest_call(full["rest"], MODEL, image, key),
            "gRPC" + FULL: lambda: service.grpc_call(full["grpc"], MODEL, image, key),
        }
        taken = service.latencies(ways, options.requests, WARM_UP)
        rates = service.throughput(ways, options.rounds, options.seconds)
        spent = {
            name: cpu_seconds(service.gateway_of((full if FULL in name else plain)["pid"]), make(), options)
            for name, make in ways.items()
            if name != BARE
        }
    report(taken, rates, spent)


def cpu_seconds(gateway: psutil.Process, call: service.Call, options: argparse.Namespace) -> float:
    """Processor seconds that the gateway spends on a request; other work on the machine hardly shows."""
    before = gateway.cpu_times()
    for _ in range(CPU_ROUNDS * options.requests):
        call()
    after = gateway.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return spent / (CPU_ROUNDS * options.requests)


def report(taken: dict[str, list[float]], rates: dict[str, list[float]], spent: dict[str, float]) -> None:
    """Print the tables."""
    print(f"A worker that does nothing, a JPEG of 200 kB, {os.cpu_count()} cores\n")
    clients = f"{service.CLIENTS} clients, 1/s"
    print_titles("way", "median, ms", "p90, ms", "over bare, ms", clients, "gateway's CPU, ms")
    for name, seconds in taken.items():
        deciles = statistics.quantiles(seconds, n=10)
        added = statistics.median(ours - bare for ours, bare in zip(seconds, taken[BARE], strict=True))
        cpu = f"{spent[name] * 1e3:.2f}" if name in spent else ""
        ms = (f"{1e3 * each:.2f}" for each in (deciles[4], deciles[8]))
        print_row(name, *ms, f"{added * 1e3:+.2f}", f"{statistics.median(rates[name]):.0f}", cpu)
    print(f"\nLimit: {LIMIT_ADDED_MS:g} ms added to bare TorchServe.\n")
    metrics = metrics_seconds()
    for transport in ("REST", "gRPC"):
        plain, full = rates[transport], rates[transport + FULL]
        ratio = statistics.median(with_all / without for with_all, without in zip(full, plain, strict=True))
        share = (spent[transport + FULL] - spent[transport] + metrics) / spent[transport + FULL]
        print(
            f"{transport}: keys, logs and metrics are {share:.1%} of the gateway's CPU "
            f"(metrics {metrics * 1e6:.0f} µs a request), limit {LIMIT_SHARE:.0%}; "
            f"throughput with keys and logs over that without: {ratio:.2f}."
        )


def metrics_seconds(count: int = 20_000) -> float:
    """Seconds that the metrics of one request take, as the gateway writes them."""
    metrics = Metrics(lambda name: name == MODEL)
    answer = explainer_pb2.DetectResponse()
    for stage in ("queue", "backend", "serialize"):
        answer.stages.add(name=stage, seconds=0.001)
    started = time.perf_counter()
    for _ in range(count):
        with metrics.request("rest", "detect") as observation:
            observation.model = MODEL
            metrics.load(MODEL, 1, 0)
            metrics.load(MODEL, 0, 0)
            metrics.stages("detect", MODEL, answer.stages)
            metrics.detections("detect", MODEL, 10)
    return (time.perf_counter() - started) / count


def archive(store: Path) -> None:
    """Pack the worker that does nothing."""
    store.mkdir()
    generate_model_archive(
        ModelArchiverConfig(
            model_name=MODEL,
            handler=str(Path(__file__).with_name("nothing_worker.py")),
            version="1.0",
            export_path=str(store),
        )
    )


def running(scratch: Path, name: str, environment: dict[str, str]) -> service.Serving:
    """Run the service with an environment of its own."""
    folder = scratch / name
    folder.mkdir()
    return service.serving(scratch / "store", folder, environment)


if __name__ == "__main__":
    main()
