"""Ten times the load that the service can carry: what accepted requests take, how fast others are refused.

First the rate that it can carry (closed loop, a few clients), then what a request takes when the queue is
just full (as many clients as it takes), then ten times the rate, whatever comes back (open loop). One worker,
torch on one thread; clients and service share the machine.

    python benchmarks/overload.py
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpcore
import service
from tables import print_row, print_titles

LIMIT_ACCEPTED, LIMIT_REFUSED_MS, LIMIT_REFUSED_SHARE = 3.0, 50.0, 0.99
FEW = 8
FACTOR = 10


@dataclass(frozen=True)
class Reply:
    """One request: its status, and the seconds until it was there."""

    status: int
    seconds: float


class Target:
    """A detect call of the service over REST."""

    def __init__(self, url: str, model: str, image: bytes, seconds: float) -> None:
        self._url = f"{url}/v1/models/{model}:detect"
        self._image = image
        self._headers = {"Content-Type": "image/jpeg", "X-Request-Timeout": f"{seconds:g}"}
        self._pool = httpcore.AsyncConnectionPool(max_connections=4000, max_keepalive_connections=4000)

    async def ask(self) -> Reply:
        """Send one request."""
        started = time.perf_counter()
        response = await self._pool.request("POST", self._url, headers=self._headers, content=self._image)
        return Reply(response.status, time.perf_counter() - started)

    async def closed(self, clients: int, seconds: float) -> tuple[list[Reply], float]:
        """Have some clients ask one request after another; return the replies, and the rate of good ones."""
        replies: list[Reply] = []
        started = time.perf_counter()

        async def run() -> None:
            while time.perf_counter() - started < seconds:
                replies.append(await self.ask())

        await asyncio.gather(*(run() for _ in range(clients)))
        good = sum(reply.status == 200 for reply in replies)
        return replies, good / (time.perf_counter() - started)

    async def open(self, rate: float, seconds: float) -> list[Reply]:
        """Send requests at a rate, whether or not earlier ones have been answered."""
        started = time.perf_counter()
        asked = []
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
            asked.append(asyncio.create_task(self.ask()))
        return await asyncio.gather(*asked)


async def measure(options: argparse.Namespace, url: str, image: bytes) -> None:
    """Take the three measurements and print them."""
    target = Target(url, options.model, image, options.deadline)
    await target.closed(FEW, 5)
    alone, rate = await target.closed(FEW, options.seconds)
    print(f"{FEW} clients in turn: {rate:.1f} requests/s, p99 {p99(alone):.2f} s")
    full, full_rate = await target.closed(options.slots + options.waiting, options.seconds)
    accepted_full = [reply for reply in full if reply.status == 200]
    print(
        f"{options.slots + options.waiting} clients, a queue just full: {full_rate:.1f} requests/s, "
        f"p99 {p99(accepted_full):.2f} s, {len(full) - len(accepted_full)} not accepted"
    )
    replies = await target.open(FACTOR * rate, options.seconds)
    accepted = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 429]
    other = len(replies) - len(accepted) - len(refused)
    fast = sum(reply.seconds <= LIMIT_REFUSED_MS / 1e3 for reply in refused) / max(1, len(refused))
    print(f"\n{FACTOR} times the rate, {FACTOR * rate:.0f} requests/s for {options.seconds:g} s:\n")
    print_titles("", "requests", "median, s", "p99, s", "against the limit")
    ratio = p99(accepted) / p99(accepted_full)
    told = f"{ratio:.2f} of the full queue's p99 (limit {LIMIT_ACCEPTED:g})"
    print_row("accepted", len(accepted), f"{median(accepted):.2f}", f"{p99(accepted):.2f}", told)
    told = f"{fast:.1%} within {LIMIT_REFUSED_MS:g} ms (limit {LIMIT_REFUSED_SHARE:.0%})"
    print_row("refused (429)", len(refused), f"{median(refused):.4f}", f"{p99(refused):.4f}", told)
    print_row("anything else", other, "", "", "none expected")


def median(replies: list[Reply]) -> float:
    """The median of the seconds."""
    return statistics.median(reply.seconds for reply in replies)


def p99(replies: list[Reply]) -> float:
    """The 99th percentile of the seconds."""
    ordered = sorted(reply.seconds for reply in replies)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def main() -> None:
    """Serve a model and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="retinanet-signs", help="recipe in model_store/")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--waiting", type=int, default=64, help="requests that may wait")
    parser.add_argument("--slots", type=int, default=8, help="requests with the worker: two batches")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds that each request has")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        service.build(options.model, Path(scratch))
        environment = {"WHYBOX_MAX_WAITING": str(options.waiting)}
        with service.serving(Path(scratch), Path(scratch), environment) as addresses:
            asyncio.run(measure(options, addresses["rest"], service.picture()))


if __name__ == "__main__":
    main()
