"""Thousands of mixed requests over the whole service, and whether anything in it grows.

Detect and explain, REST and gRPC, good and bad, small and large, and clients that leave: the same mix, round
after round, over `whybox serve` with two tiny models of random weights. After each round, with nothing under
way, resident memory, file descriptors and threads of the gateway and of the workers are read, and the series
of /metrics counted. Bursts of the largest requests and the first rounds warm up.

    python benchmarks/soak.py                  # 10,000 requests
    python benchmarks/soak.py --requests 300   # a look

Prints a table; ends with 1 where something grew, a worker was lost, or an answer was not what it should be.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
from grpc_status import rpc_status
from tables import print_row, print_titles

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from builders import encoded, random_image, write_recipe
from conftest import Live, serving
from whybox.archives import build
from whybox_proto.errors import TYPE_PREFIX
from whybox_proto.v1 import explainer_pb2

REQUESTS = 10_000
ROUNDS = 20
WARM_UP_ROUNDS = 4
CLIENTS = 4
BURSTS = 10
SETTLE_SECONDS = 2.0
PATIENCE_SECONDS = 120.0

MAX_GROWTH = 0.05
SPARE_DESCRIPTORS = 8
"""Connections that are kept for a while come and go."""
SPARE_THREADS = 4
SPARE_SERIES = 60
"""A rare end of a request makes a histogram of its own, once; three of them."""

OK = "ok"
GONE = "client left"
BUSY = "overloaded"


@dataclass(frozen=True)
class Sample:
    """What one process holds: resident bytes, open file descriptors, threads."""

    memory: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Moment:
    """The service between two rounds; processes by what they are and their ids."""

    processes: dict[tuple[str, int], Sample]
    series: int


class Asker:
    """Asks one live service in every way there is; each method returns what came of it."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.small = encoded(random_image(128, 160), "JPEG")
        self.large = encoded(random_image(900, 1200, seed=1), "JPEG")
        self._address = (str(urlsplit(live.rest).hostname), int(urlsplit(live.rest).port or 0))
        self._http = httpx.Client(base_url=live.rest, timeout=PATIENCE_SECONDS)
        self._channel = grpc.insecure_channel(live.target, options=[("grpc.max_receive_message_length", -1)])

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._channel.close()

    def raw(self, operation: str, image: bytes, query: str = "", accept: str = "*/*", model: str = "") -> str:
        """Ask over REST with the picture as the body."""
        headers = {"Content-Type": "image/jpeg", "Accept": accept}
        path = f"/v1/models/{model or self.live.model}:{operation}?{query}"
        return _told(self._http.post(path, content=image, headers=headers))

    def json(self, operation: str, body: Any, model: str = "") -> str:
        """Ask over REST in JSON."""
        path = f"/v1/models/{model or self.live.model}:{operation}"
        if isinstance(body, dict) and isinstance(body.get("image"), bytes):
            body = {**body, "image": base64.b64encode(body["image"]).decode()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return _told(self._http.post(path, content=content, headers={"Content-Type": "application/json"}))

    def form(self, operation: str, image: bytes, request: dict[str, Any]) -> str:
        """Ask over REST with a form."""
        files = {"image": ("x.jpg", image, "image/jpeg")}
        described = {"request": (None, json.dumps(request), "application/json")}
        return _told(
            self._http.post(f"/v1/models/{self.live.model}:{operation}", files={**files, **described})
        )

    def get(self, path: str) -> str:
        """Get an address."""
        return _told(self._http.get(path))

    def rpc(self, name: str, body: bytes, *, cancel_after: float | None = None, timeout: float = 100) -> str:
        """Ask over gRPC."""
        future = self._channel.unary_unary(f"/whybox.v1.Explainer/{name}").future(body, timeout=timeout)
        if cancel_after is not None:
            time.sleep(cancel_after)
            future.cancel()
            return GONE
        try:
            future.result()
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            told = explainer_pb2.Error()
            if status is None or not status.details[0].Unpack(told):
                return str(error.code().name)
            return told.type
        return OK

    def leave(self, share: float, seconds: float) -> str:
        """Send a share of a request over REST, wait, and hang up."""
        path = f"/v1/models/{self.live.model}:explain?targets=class"
        headers = f"Host: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(self.large)}\r\n\r\n"
        message = f"POST {path} HTTP/1.1\r\n{headers}".encode() + self.large
        with socket.create_connection(self._address, timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(message[: int(len(message) * share)])
            time.sleep(seconds)
        return GONE

    def detect_message(self, image: bytes, **fields: Any) -> bytes:
        """A detect request in binary."""
        return explainer_pb2.DetectRequest(model=self.live.model, image=image, **fields).SerializeToString()

    def explain_message(self, image: bytes, **fields: Any) -> bytes:
        """An explain request in binary."""
        return explainer_pb2.ExplainRequest(
            model=self.live.models[-1], image=image, **fields
        ).SerializeToString()


Kind = tuple[Callable[[Asker], str], frozenset[str]]
FEW = "select.max_detections=3&select.score_threshold=0"


def kinds() -> dict[str, tuple[int, Kind]]:
    """The mix: for each kind of request its share, how it is asked, and what may come of it."""

    def kind(share: int, ask: Callable[[Asker], str], *may: str) -> tuple[int, Kind]:
        return share, (ask, frozenset(may or (OK,)))

    return {
        "detect, REST": kind(12, lambda a: a.raw("detect", a.small)),
        "detect, REST, JSON": kind(8, lambda a: a.json("detect", {"image": a.small})),
        "detect, REST, form": kind(6, lambda a: a.form("detect", a.small, {"select": {"max_detections": 5}})),
        "detect, gRPC": kind(12, lambda a: a.rpc("Detect", a.detect_message(a.small))),
        "detect, gRPC, large": kind(4, lambda a: a.rpc("Detect", a.detect_message(a.large))),
        "detect, many": kind(
            3, lambda a: a.raw("detect", a.small, "select.max_detections=1000&nms.kind=none")
        ),
        "explain, REST": kind(8, lambda a: a.raw("explain", a.small, f"targets=class&targets=x1&{FEW}")),
        "explain, gRPC": kind(
            8, lambda a: a.rpc("Explain", a.explain_message(a.small, targets=["combined"]))
        ),
        "explain, large": kind(3, lambda a: a.raw("explain", a.large, f"{FEW}&output.encoding=f32")),
        "explain, image size": kind(3, lambda a: a.raw("explain", a.large, f"{FEW}&output.size=image")),
        "explain, picture": kind(
            3,
            lambda a: a.raw(
                "explain", a.small, "select.max_detections=1&select.score_threshold=0", "image/png"
            ),
        ),
        "models": kind(2, lambda a: a.get("/v1/models")),
        "operators": kind(2, lambda a: a.get("/readyz")),
        "no picture": kind(3, lambda a: a.raw("detect", b"no picture"), "invalid_image"),
        "cut picture": kind(3, lambda a: a.raw("explain", a.small[:2000]), "invalid_image"),
        "no JSON": kind(2, lambda a: a.json("detect", b'{"image": '), "invalid_request"),
        "no protobuf": kind(2, lambda a: a.rpc("Explain", b"\xff\xff\xff"), "invalid_request"),
        "unknown field": kind(2, lambda a: a.json("detect", {"imagge": ""}), "unknown_field"),
        "unknown target": kind(2, lambda a: a.raw("explain", a.small, "targets=x3"), "unknown_target"),
        "unknown model": kind(
            2, lambda a: a.raw("detect", a.small, model=f"m{random.randrange(10**9)}"), "unknown_model"
        ),
        "unknown address": kind(1, lambda a: a.get(f"/{random.randrange(10**9)}"), "not_found"),
        "late": kind(
            2,
            lambda a: a.rpc("Explain", a.explain_message(a.large), timeout=0.02),
            "DEADLINE_EXCEEDED",
            "deadline_exceeded",
        ),
        "left, gRPC": kind(
            3, lambda a: a.rpc("Explain", a.explain_message(a.large), cancel_after=random.random() / 20), GONE
        ),
        "left, REST": kind(3, lambda a: a.leave(1.0, random.random() / 20), GONE),
        "left, half sent": kind(1, lambda a: a.leave(0.5, 0.01), GONE),
    }


def soak(live: Live, requests: int, rounds: int = ROUNDS) -> tuple[list[Moment], Counter[tuple[str, str]]]:
    """Ask so many requests in so many rounds, and look at the service after each.

    Returns:
        What was seen after each round, and how often each kind of request came to which end.
    """
    askers = [Asker(live) for _ in range(CLIENTS)]
    mix = kinds()
    deck = [name for name, (share, _) in mix.items() for _ in range(share)]
    per_round = -(-requests // rounds)
    ends: Counter[tuple[str, str]] = Counter()
    lock = threading.Lock()
    moments = []
    rng = random.Random(0)
    order = deck * -(-per_round // len(deck)) if per_round >= len(deck) else list(mix)
    try:
        for _ in range(BURSTS):
            _burst(askers)
        for _ in range(rounds):
            rng.shuffle(order)
            names = iter(order)

            def run(asker: Asker, names: Iterator[str] = names) -> None:
                while True:
                    with lock:
                        name = next(names, None)
                    if name is None:
                        return
                    end = mix[name][1][0](asker)
                    with lock:
                        ends[name, end] += 1

            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(run, askers))
            time.sleep(SETTLE_SECONDS)
            moments.append(_look(live))
            print(".", end="", file=sys.stderr, flush=True)
    finally:
        for asker in askers:
            asker.close()
    print(file=sys.stderr)
    return moments, ends


def _burst(askers: Sequence[Asker]) -> None:
    """Have all clients ask each model for the largest there is at once: the most that a batch holds."""
    for model in askers[0].live.models:

        def run(asker: Asker, model: str = model) -> None:
            asker.raw("explain", asker.large, f"{FEW}&output.encoding=f32", model=model)
            asker.raw("detect", asker.large, "select.max_detections=1000&nms.kind=none", model=model)

        with ThreadPoolExecutor(len(askers)) as pool:
            list(pool.map(run, askers))


def faults(moments: list[Moment], ends: Counter[tuple[str, str]], *, memory: bool = True) -> list[str]:
    """Say what grew, who was lost, and what came to another end than it may; `memory` judges memory too."""
    found = []
    mix = kinds()
    for (name, end), count in sorted(ends.items()):
        if end not in mix[name][1][1] | {BUSY}:
            found.append(f"{name}: {count} times {end}")
    warm = len(moments) * WARM_UP_ROUNDS // ROUNDS
    before, after = moments[warm], moments[-1]
    if before.processes.keys() != after.processes.keys():
        found.append(f"processes: {sorted(before.processes)} became {sorted(after.processes)}")
    if after.series > before.series + SPARE_SERIES:
        found.append(f"/metrics: {before.series} series became {after.series}")
    for key in before.processes.keys() & after.processes.keys():
        first, last = before.processes[key], after.processes[key]
        if last.descriptors > first.descriptors + SPARE_DESCRIPTORS:
            found.append(f"{key[0]}: {first.descriptors} file descriptors became {last.descriptors}")
        if last.threads > first.threads + SPARE_THREADS:
            found.append(f"{key[0]}: {first.threads} threads became {last.threads}")
        if memory and key[0] != "java" and growth(moments, key, warm) > MAX_GROWTH:
            found.append(f"{key[0]}: memory grew by {growth(moments, key, warm):.1%}")
    return found


def growth(moments: list[Moment], key: tuple[str, int], warm: int) -> float:
    """By what share a process's memory grew: the last three rounds over the first three after the warm-up."""
    taken = [moment.processes[key].memory for moment in moments[warm:] if key in moment.processes]
    return statistics.median(taken[-3:]) / statistics.median(taken[:3]) - 1


def report(moments: list[Moment], ends: Counter[tuple[str, str]]) -> None:
    """Print the tables."""
    print(f"{sum(ends.values())} requests in {len(moments)} rounds, {CLIENTS} clients\n")
    print_titles("request", "came to", "times")
    for (name, end), count in sorted(ends.items()):
        print_row(name, end, count)
    warm = len(moments) * WARM_UP_ROUNDS // ROUNDS
    rounds = sorted({warm, (warm + len(moments)) // 2, len(moments) - 1})
    titles = (f"round {number + 1}" for number in rounds)
    print()
    print_titles("memory (MiB), file descriptors, threads", *titles, "growth of memory")
    for key in sorted(moments[warm].processes):
        seen = [moments[number].processes.get(key) for number in rounds]
        cells = [
            f"{sample.memory / 2**20:.1f}, {sample.descriptors}, {sample.threads}" if sample else "gone"
            for sample in seen
        ]
        print_row(key[0], *cells, f"{growth(moments, key, warm):+.1%}")
    print("\nMemory after each round, MiB:")
    for key in sorted(moments[-1].processes):
        curve = [moment.processes[key].memory for moment in moments if key in moment.processes]
        print(f"  {key[0]}: " + " ".join(f"{memory / 2**20:.0f}" for memory in curve))
    print(f"\nSeries of /metrics: {', '.join(str(moments[number].series) for number in rounds)}")


def _look(live: Live) -> Moment:
    """Look at every process of the service."""
    processes: dict[tuple[str, int], Sample] = {}
    for process in [live.process, *live.process.children(recursive=True)]:
        line = " ".join(process.cmdline())
        if "model_service_worker" in line:
            name = "worker"
        elif "whybox_service.app" in line and "guard" not in line:
            name = "gateway"
        elif process.name() == "java":
            name = "java"
        else:
            continue
        sample = Sample(process.memory_info().rss, process.num_fds(), process.num_threads())
        processes[name, process.pid] = sample
    text = httpx.get(f"{live.rest}/metrics", timeout=PATIENCE_SECONDS).text
    return Moment(processes, sum(not line.startswith("#") for line in text.splitlines()))


def _told(response: httpx.Response) -> str:
    if response.is_success:
        return OK
    try:
        return str(response.json()["type"]).removeprefix(TYPE_PREFIX)
    except (ValueError, KeyError):
        return str(response.status_code)


def main() -> int:
    """Soak a service of our own, and say what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=int(os.environ.get("WHYBOX_SOAK_REQUESTS", REQUESTS)))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = folder / "store"
        for architecture in ("retinanet", "faster-rcnn"):
            (folder / architecture).mkdir()
            build(write_recipe(folder / architecture, architecture), store)
        with serving(store, folder) as live:
            moments, ends = soak(live, options.requests)
    report(moments, ends)
    found = faults(moments, ends)
    print("\n" + ("\n".join(found) or "Nothing grew."))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
