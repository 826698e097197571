"""What the steps of an inversion cost: the job beside its iterations alone, and explanations beside the job.

Overhead: a job's time from its first step to its end, over the time that the worker spent in iterations, as
it tells it itself (stage `iterate`); what is between is shown by where it goes. Latency: one client explains
one picture after the other, without a job and beside one that runs, with one worker and with two, each on
one torch thread.

    python benchmarks/inversion_steps.py [--model NAME] [--iterations N] [--explanations N]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import service
from spread import build
from tables import print_row, print_titles

LIMIT_OVERHEAD, LIMIT_RATIO = 0.05, 1.3
STEP_SECONDS = 1.0
WORKERS = (1, 2)
SIDE = 256
ENDLESS = 10_000
STAGES = ("load", "detect", "encode")
LAYOUT = {
    "width": SIDE,
    "height": SIDE,
    "objects": [
        {"label": "turn-left", "box": [30, 40, 110, 120]},
        {"label": "speed-50", "box": [140, 130, 220, 210]},
    ],
}


class Target:
    """A running service and one of its models."""

    def __init__(self, addresses: dict[str, Any], model: str) -> None:
        self._client = httpx.Client(base_url=addresses["rest"], timeout=service.PATIENCE_SECONDS)
        self._worker_metrics = addresses["torchserve"]["metrics"]
        self._model = model
        self._picture = service.picture()

    def create(self, iterations: int, priority: int = 0) -> dict[str, Any]:
        """Make a job."""
        request = {"model": self._model, "layout": LAYOUT, "params": {"iterations": iterations}}
        return self._json("POST", "/v1/inversions", json={**request, "priority": priority, "seed": 1})

    def get(self, job: dict[str, Any]) -> dict[str, Any]:
        """Look at a job."""
        return self._json("GET", f"/v1/{job['name']}")

    def cancel(self, job: dict[str, Any]) -> None:
        """End a job."""
        self._json("POST", f"/v1/{job['name']}:cancel")

    def wait(self, job: dict[str, Any], iteration: int | None = None) -> dict[str, Any]:
        """Wait until a job has ended, or has done so many iterations."""
        while True:
            found = self.get(job)
            if found["state"] in ("failed", "cancelled"):
                raise RuntimeError(f"the inversion has {found['state']}: {found.get('error')}")
            if found["state"] == "succeeded":
                return found
            if iteration is not None and found.get("progress", {}).get("iteration", 0) >= iteration:
                return found
            time.sleep(0.1)

    def explain(self) -> float:
        """Explain the picture; return the seconds that it took."""
        headers = {"Content-Type": "image/jpeg"}
        started = time.perf_counter()
        response = self._client.post(
            f"/v1/models/{self._model}:explain?select.max_detections=3",
            content=self._picture,
            headers=headers,
        )
        response.raise_for_status()
        return time.perf_counter() - started

    def queued_seconds(self) -> float:
        """How long all jobs of the model have waited in the queue together."""
        return self._sum(f"{self._client.base_url}/metrics", "whybox_inversion_queue_seconds_sum")

    def steps(self) -> float:
        """How many steps were done."""
        return self._sum(f"{self._client.base_url}/metrics", "whybox_inversion_step_seconds_count")

    def step_seconds(self) -> float:
        """How long all steps have taken together, the wait for a worker included."""
        return self._sum(f"{self._client.base_url}/metrics", "whybox_inversion_step_seconds_sum")

    def worker_seconds(self, stage: str) -> float:
        """How long workers have spent in a stage of all steps."""
        name = "whybox_worker_stage_seconds_sum"
        return self._sum(self._worker_metrics, name, operation="advance", stage=stage)

    def worker_steps(self) -> tuple[float, float]:
        """How many steps workers have done, and how long they have had them."""
        name = "whybox_worker_request_seconds"
        count, seconds = (
            self._sum(self._worker_metrics, f"{name}_{what}", operation="advance")
            for what in ("count", "sum")
        )
        return count, seconds

    def _sum(self, url: str, name: str, **labels: str) -> float:
        wanted = {"model": self._model, **labels}
        total = 0.0
        for line in httpx.get(url, timeout=service.PATIENCE_SECONDS).text.splitlines():
            if line.startswith(name + "{"):
                has = dict(re.findall(r'(\w+)="([^"]*)"', line))
                if wanted.items() <= has.items():
                    total += float(line.rpartition(" ")[2])
        return total

    def _json(self, verb: str, path: str, **asked: Any) -> dict[str, Any]:
        response = self._client.request(verb, path, **asked)
        response.raise_for_status()
        answer: dict[str, Any] = json.loads(response.content)
        return answer


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="retinanet-signs", help="recipe in model_store/")
    parser.add_argument("--iterations", type=int, default=500, help="of the job whose overhead is measured")
    parser.add_argument("--explanations", type=int, default=100, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="of the overhead")
    options = parser.parse_args()
    rows: list[list[str]] = []
    for workers in WORKERS:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            build(options.model, workers, scratch)
            environment = {
                "WHYBOX_DATA": str(scratch / "data"),
                "WHYBOX_JOBS_STEP_SECONDS": str(STEP_SECONDS),
            }
            with service.serving(scratch, scratch, environment) as addresses:
                target = Target(addresses, options.model)
                target.explain()
                target.wait(target.create(20))  # DBOS is started, and the worker is warm
                if workers == 1:
                    overhead(target, options.iterations, options.repeats)
                rows.append(beside(target, workers, options.explanations))
    print()
    print_titles("workers", ":explain alone, p50 / p95, ms", "beside a job, p50 / p95, ms", "p50", "limit")
    for row in rows:
        print_row(*row)


def overhead(target: Target, iterations: int, repeats: int) -> None:
    """Print what a job takes beside its iterations."""
    print_titles(
        *("iterations", "steps", "job, s", "iterations alone, s", "overhead", "limit"),
        *("load", "detect", "encode", "rest of the steps", "between steps"),
    )
    for _ in range(repeats):
        before = [target.worker_seconds(stage) for stage in ("iterate", *STAGES)]
        queued, steps, stepping = target.queued_seconds(), target.steps(), target.step_seconds()
        done = target.wait(target.create(iterations))
        times = [datetime.fromisoformat(done[name]).timestamp() for name in ("create_time", "update_time")]
        took = times[1] - times[0] - (target.queued_seconds() - queued)
        after = [target.worker_seconds(stage) for stage in ("iterate", *STAGES)]
        alone, *stages = (b - a for a, b in zip(before, after, strict=True))
        stepping = target.step_seconds() - stepping
        parts = [*stages, stepping - alone - sum(stages), took - stepping]
        print_row(
            iterations,
            f"{target.steps() - steps:.0f}",
            f"{took:.2f}",
            f"{alone:.2f}",
            f"{took / alone - 1:.1%}",
            f"{LIMIT_OVERHEAD:.0%}",
            *(f"{part / alone:.1%}" for part in parts),
        )


def beside(target: Target, workers: int, count: int) -> list[str]:
    """Return a row: the latency of explanations without a job and beside one."""
    alone = [target.explain() for _ in range(count)]
    job = target.create(ENDLESS)
    target.wait(job, iteration=1)
    before = target.worker_steps()
    with_job = [target.explain() for _ in range(count)]
    steps, seconds = (b - a for a, b in zip(before, target.worker_steps(), strict=True))
    if target.get(job)["state"] != "running":
        raise RuntimeError("the inversion did not run all the time")
    target.cancel(job)
    first, second = (statistics.median(times) for times in (alone, with_job))
    if workers == 1:
        told = [f"+{second - first:.2f} s", f"+{seconds / max(1, steps):.2f} s, a step"]
    else:
        told = [f"{second / first:.2f} times", f"{LIMIT_RATIO:g} times"]
    return [str(workers), _told(alone), _told(with_job), *told]


def _told(times: list[float]) -> str:
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"{1e3 * statistics.median(times):.0f} / {1e3 * p95:.0f}"


if __name__ == "__main__":
    main()
