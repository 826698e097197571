"""One long explanation, spread over one worker and over two, and what a detection takes meanwhile.

The same samples of the same picture each time, torch on one thread in each worker; the maps must be the same,
bit for bit. `:detect` is asked for all the time, without and beside the explanation, one request after
another. It needs two free cores.

    python benchmarks/spread.py
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import service
import yaml
from tables import print_row, print_titles

WORKERS = (1, 2)


@dataclass(frozen=True)
class Run:
    """One explanation.

    Attributes:
        seconds: that it took.
        samples: that it drew.
        maps: a digest of all of its maps.
        detections: seconds of each detection beside it.
    """

    seconds: float
    samples: int
    maps: str
    detections: list[float]


def build(model: str, workers: int, store: Path) -> None:
    """Build a model's archive with a number of workers."""
    from whybox.archives import build

    recipe = yaml.safe_load((service.STORE / f"{model}.yaml").read_text())
    recipe["workers"] = {**recipe.get("workers", {}), "count": workers}
    recipe["weights"] = str((service.STORE / recipe["weights"]).resolve())
    path = store / f"{model}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    build(path, store)


def explaining(url: str, options: argparse.Namespace, image: bytes) -> service.Call:
    """The explanation, over REST."""
    asked = {
        "image": base64.b64encode(image).decode(),
        "method": options.method,
        "budget": {"samples": options.samples},
        "seed": 1,
        "select": {"max_detections": options.detections, "score_threshold": 0.0},
    }
    headers = {"Content-Type": "application/json", "X-Request-Timeout": "110"}
    return service.http_call(url, f"/v1/models/{options.model}:explain", json.dumps(asked).encode(), headers)


def measure(url: str, options: argparse.Namespace, image: bytes) -> tuple[list[float], list[float], Run]:
    """Seconds of detections alone, of explanations alone, and an explanation beside detections."""
    explaining(url, options, image)()
    detect = service.rest_call(url, options.model, image)
    for _ in range(5):
        detect()
    alone = [timed(detect)[0] for _ in range(options.rounds * 10)]
    # Connections of their own: the gateway closes those that are idle for long.
    undisturbed = [timed(explaining(url, options, image))[0] for _ in range(options.rounds)]
    done = threading.Event()
    beside: list[float] = []

    def keep_asking() -> None:
        call = service.rest_call(url, options.model, image)
        while not done.is_set():
            beside.append(timed(call)[0])

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        seconds, body = timed(explaining(url, options, image))
    finally:
        done.set()
        asking.join()
    answer = json.loads(body)
    digest = hashlib.sha256("".join(m["data"] for m in answer["heat_maps"]).encode()).hexdigest()
    return alone, undisturbed, Run(seconds, answer["heat_maps"][0]["samples"], digest, beside)


def timed(call: service.Call) -> tuple[float, Any]:
    """Return the seconds that a call takes, and what it gives."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def main() -> None:
    """Serve the model with one worker and with two, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="retinanet-signs", help="recipe in model_store/")
    parser.add_argument("--method", default="d_rise", help="a sampling method")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--detections", type=int, default=3, help="that are explained")
    parser.add_argument("--rounds", type=int, default=3, help="explanations of which the median counts")
    options = parser.parse_args()
    image = service.picture()
    medians: dict[int, float] = {}
    digests: set[str] = set()
    print(f"{options.model}, {options.method}, {options.samples} samples\n")
    print_titles(
        *("workers", "explanation, s", ":detect alone, ms", "explanation beside :detect, s"),
        *(":detect beside it: median, ms", "longest, ms"),
    )
    for workers in WORKERS:
        with tempfile.TemporaryDirectory() as scratch:
            build(options.model, workers, Path(scratch))
            with service.serving(Path(scratch), Path(scratch)) as addresses:
                alone, undisturbed, run = measure(addresses["rest"], options, image)
        medians[workers] = statistics.median(undisturbed)
        digests.add(run.maps)
        milliseconds = [statistics.median(alone), statistics.median(run.detections), max(run.detections)]
        before, median, longest = (f"{1e3 * seconds:.0f}" for seconds in milliseconds)
        print_row(workers, f"{medians[workers]:.2f}", before, f"{run.seconds:.2f}", median, longest)
        assert run.samples == options.samples
    print(f"\ntwo workers are {medians[1] / medians[2]:.2f} times as fast as one")
    print("the maps are the same, bit for bit" if len(digests) == 1 else "THE MAPS DIFFER")


if __name__ == "__main__":
    main()
