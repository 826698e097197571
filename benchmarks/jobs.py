"""How long inversions take to list, over REST and gRPC, from SQLite and from Postgres, against their limit.

    python benchmarks/jobs.py

The jobs are rows of ended ones, as long as those of real jobs: 20 objects with masks, four losses of a
thousand iterations. Each figure is the median of whole requests to a gateway in a process of its own.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
from tables import print_row, print_titles

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from jobs_parts import Gateway, PlayedTorchServe
from postgres import postgres
from whybox_proto.v1 import explainer_pb2
from whybox_service.jobs.database import engine_for
from whybox_service.jobs.store import New, Store

LIMIT_MS = 50.0
REPEATS = 15
PAGE = 1000


def main() -> None:
    """Print the table."""
    print_titles("what", "ms", "limit, ms", "share of the limit")
    with PlayedTorchServe() as torchserve, tempfile.TemporaryDirectory() as scratch:
        running = Gateway(Path(scratch) / "sqlite", torchserve.url, WHYBOX_DATA=f"{scratch}/data")
        measure(running, f"sqlite:///{scratch}/data/jobs.sqlite", 1000, "SQLite")
        with postgres() as server:
            environment = {
                "WHYBOX_JOBS_DATABASE": server.url,
                "WHYBOX_JOBS_ARTIFACTS": f"{scratch}/artifacts",
            }
            running = Gateway(Path(scratch) / "postgres", torchserve.url, **environment)
            measure(running, server.url, 10_000, "Postgres")


def measure(running: Gateway, url: str, count: int, where: str) -> None:
    """Fill the table and time its lists."""
    try:
        assert running.ask("GET", "inversions").status_code == 200
        fill(url, count)
        told = f"of {count} jobs on {where}, the newest {PAGE}"
        with httpx.Client(base_url=running.rest) as client, grpc.insecure_channel(running.grpc) as channel:
            page = {"page_size": PAGE}
            show(f"{told}, REST JSON", lambda: client.get("/v1/inversions", params=page).raise_for_status())
            binary = {"Accept": "application/x-protobuf"}
            show(f"{told}, REST protobuf", lambda: client.get("/v1/inversions", params=page, headers=binary))
            show(
                f"{told} that succeeded, JSON",
                lambda: client.get("/v1/inversions", params={**page, "state": "succeeded"}),
            )
            stub = channel.unary_unary(
                "/whybox.v1.Explainer/ListInversions",
                response_deserializer=explainer_pb2.ListInversionsResponse.FromString,
            )
            request = explainer_pb2.ListInversionsRequest(page_size=PAGE)
            show(f"{told}, gRPC", lambda: stub(request.SerializeToString()))
            show(f"of {count} jobs on {where}, the newest 50, JSON", lambda: client.get("/v1/inversions"))

            def walk() -> None:
                asked = explainer_pb2.ListInversionsRequest(page_size=PAGE)
                while True:
                    asked.page_token = stub(asked.SerializeToString()).next_page_token
                    if not asked.page_token:
                        return

            if count > PAGE:
                show(f"all {count} jobs on {where}, {count // PAGE} pages, gRPC", walk)
    finally:
        running.stop()


def fill(url: str, count: int) -> None:
    """Put ended jobs into the table."""
    engine = engine_for(url)
    store = Store(engine, lambda *_: None)
    request = explainer_pb2.CreateInversionRequest(model="retinanet-signs", seed=1)
    request.params.update({"preset": "default", "iterations": 1000})
    request.layout.width = request.layout.height = 256
    for i in range(20):
        request.layout.objects.add(label="gate-open", box=[i, i, i + 30, i + 30], mask="m" * 200)
    result = explainer_pb2.InversionResult(match=explainer_pb2.LayoutMatch(mean_iou=0.9, recall=1, ap50=1))
    for name in ("cls", "reg", "tv", "norm"):
        result.losses.add(name=name, iterations=range(1000), values=[0.5] * 1000)
    progress = explainer_pb2.InversionProgress(
        iteration=1000, iterations=1000, losses={"cls": 0.1, "reg": 0.2}
    )
    for i in range(count):
        job = f"{i:032x}"
        store.create(New(job, request, b"digest", "1.0"), count)
        store.begin(job)
        store.advanced(job, 1, progress.SerializeToString())
        store.end(job, "succeeded", result=result)
    engine.dispose()


def show(what: str, ask: Callable[[], object]) -> None:
    """Time a question, and print a row."""
    ask()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        ask()
        times.append(1e3 * (time.perf_counter() - started))
    ms = statistics.median(times)
    print_row(what, f"{ms:.1f}", f"{LIMIT_MS:g}", f"{ms / LIMIT_MS:.2f}")


if __name__ == "__main__":
    main()
