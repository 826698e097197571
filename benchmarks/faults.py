"""What breaks, and how long it shows: readiness red and green again, and what becomes of a steady load.

One process after another of a running service is killed or stopped, under a load of so many requests a second
(open loop) with a deadline each. Settings are those of production; torch on one thread.

    python benchmarks/faults.py
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpcore
import psutil
import service
from tables import print_row, print_titles

LOOK_SECONDS = 0.1
# What a request may take beyond its deadline: ways and clocks.
LIMIT_DEADLINE = 1.1


@dataclass(frozen=True)
class Fault:
    """Something that breaks.

    Attributes:
        name: in the table.
        process: finds the process.
        stop: whether it is stopped; else it is killed.
        red_limit: seconds within which the readiness should be red.
        resume: whether it goes on as soon as the readiness is red; else something has to replace it.
    """

    name: str
    process: Callable[[], psutil.Process]
    stop: bool
    red_limit: float
    resume: bool = False


@dataclass
class Course:
    """What happened around one fault.

    Attributes:
        red: seconds from the fault to the first answer of `/readyz` that is not 200.
        green: seconds from the fault, or from the moment at which the process went on, to the next that is.
        codes: how the requests ended, and how many did so.
        longest: seconds of the longest request.
    """

    red: float = math.nan
    green: float = math.nan
    codes: collections.Counter[str] = field(default_factory=collections.Counter)
    longest: float = 0.0


def main() -> None:
    """Measure, and print a table with the limits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="retinanet-signs", help="recipe in model_store/")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds, of each request")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds to wait for readiness")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        service.build(options.model, scratch)
        with service.serving(scratch, scratch) as addresses:
            courses = asyncio.run(measure(addresses, options))
    report(courses, options)


async def measure(addresses: dict[str, Any], options: argparse.Namespace) -> dict[Fault, Course]:
    """Have one fault after another, each in a service that is well."""
    management = addresses["torchserve"]["management"]
    tree = psutil.Process(addresses["pid"])
    faults = [
        Fault("worker killed", lambda: _worker(management, options.model), False, 5.0),
        Fault("worker stopped", lambda: _worker(management, options.model), True, 25.0, resume=True),
        Fault("TorchServe killed", lambda: _named(tree, "org.pytorch.serve.ModelServer"), False, 5.0),
        Fault("TorchServe stopped", lambda: _named(tree, "org.pytorch.serve.ModelServer"), True, 15.0),
        Fault("gateway killed", lambda: service.gateway_of(tree.pid), False, 5.0),
    ]
    url = f"{addresses['rest']}/v1/models/{options.model}:detect"
    image = service.picture()
    courses = {}
    for fault in faults:
        courses[fault] = await run(fault, addresses["rest"], url, image, options)
    return courses


async def run(fault: Fault, rest: str, url: str, image: bytes, options: argparse.Namespace) -> Course:
    """Break something under a steady load, and wait until all is well again."""
    course = Course()
    ended = asyncio.Event()
    async with httpcore.AsyncConnectionPool(max_connections=500) as pool:
        loading = asyncio.create_task(_load(pool, url, image, options, course, ended))
        await asyncio.sleep(2.0)
        process = await asyncio.to_thread(fault.process)
        broken = time.perf_counter()
        if fault.stop:
            process.suspend()
        else:
            process.kill()
        course.red = await _until(pool, rest, broken, options.patience, ready=False)
        if fault.resume:
            process.resume()
            broken = time.perf_counter()
        course.green = await _until(pool, rest, broken, options.patience, ready=True)
        await asyncio.sleep(2.0)
        ended.set()
        await loading
    return course


async def _load(
    pool: httpcore.AsyncConnectionPool,
    url: str,
    image: bytes,
    options: argparse.Namespace,
    course: Course,
    ended: asyncio.Event,
) -> None:
    headers = {"Content-Type": "image/jpeg", "X-Request-Timeout": f"{options.deadline:g}"}

    async def ask() -> None:
        started = time.perf_counter()
        try:
            response = await pool.request("POST", url, headers=headers, content=image)
            code = "" if response.status == 200 else json.loads(response.content)["type"].rpartition(":")[2]
        except (httpcore.NetworkError, httpcore.RemoteProtocolError):
            code = "no connection"
        course.codes[code] += 1
        course.longest = max(course.longest, time.perf_counter() - started)

    requests = []
    while not ended.is_set():
        requests.append(asyncio.create_task(ask()))
        await asyncio.sleep(1 / options.rate)
    await asyncio.gather(*requests)


async def _until(
    pool: httpcore.AsyncConnectionPool, rest: str, since: float, patience: float, *, ready: bool
) -> float:
    """Seconds from a moment until the readiness is as told; NaN where that never comes."""
    headers = {"X-Request-Timeout": "1"}
    while time.perf_counter() - since < patience:
        try:
            response = await pool.request("GET", f"{rest}/readyz", headers=headers)
            seen = response.status == 200
        except (httpcore.NetworkError, httpcore.RemoteProtocolError):
            seen = False
        if seen == ready:
            return time.perf_counter() - since
        await asyncio.sleep(LOOK_SECONDS)
    return math.nan


def report(courses: dict[Fault, Course], options: argparse.Namespace) -> None:
    """Print the table."""
    print(
        f"{options.model}, {options.rate:g} requests a second with a deadline of {options.deadline:g} s, "
        f"one worker, torch on one thread, {os.cpu_count()} cores\n"
    )
    titles = ("fault", "red after, s", "limit, s", "green after, s", "requests", "failed", "as")
    print_titles(*titles, "longest, s", "over the deadline")
    for fault, course in courses.items():
        failed = {code: count for code, count in course.codes.most_common() if code}
        print_row(
            fault.name,
            f"{course.red:.1f}",
            f"{fault.red_limit:g}",
            f"{course.green:.1f}",
            course.codes.total(),
            sum(failed.values()),
            ", ".join(f"{count} {code}" for code, count in failed.items()),
            f"{course.longest:.2f}",
            f"{course.longest / options.deadline:.2f}",
        )
    print(
        f"\nNo request should take more than {LIMIT_DEADLINE:g} of its deadline. A stopped worker goes on "
        "once that shows, and its seconds to green count from there; all else comes back by itself."
    )


def _worker(management: str, model: str) -> psutil.Process:
    with httpcore.ConnectionPool() as pool:
        (described,) = json.loads(pool.request("GET", f"{management}/models/{model}").content)
    return psutil.Process(described["workers"][0]["pid"])


def _named(tree: psutil.Process, word: str) -> psutil.Process:
    """Find a process by a word of its command line; its guard, which has it as well, is its parent."""
    return [process for process in tree.children(recursive=True) if word in process.cmdline()][-1]


if __name__ == "__main__":
    main()
