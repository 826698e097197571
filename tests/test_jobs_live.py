"""Inversion jobs on the whole service: a real TorchServe, whose processes are killed while a job runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import inversion_worker
from conftest import PATIENCE_SECONDS, Live, serving
from fault_parts import wait_until_green
from jobs_parts import ENDED, LAYOUT, check_whole, eventually
from test_gateway_backend import pack

NAME = "counting"
PARAMS = {"iterations": 400, "pause": 0.02, "per_step": 10}


@pytest.fixture(scope="module")
def asked_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gets the id of each step that a worker is asked for."""
    return tmp_path_factory.mktemp("asked") / "steps"


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory, asked_file: Path) -> Iterator[Live]:
    """The whole service, on a model that inverts without torch."""
    store = tmp_path_factory.mktemp("counting_store")
    pack(NAME, Path(inversion_worker.__file__), store, queue=20)
    environment = {
        "WHYBOX_POLL_SECONDS": "0.5",
        "WHYBOX_JOBS_STEP_SECONDS": "0.2",
        inversion_worker.ASKED_FILE: str(asked_file),
    }
    with serving(store, tmp_path_factory.mktemp("counting"), env=environment) as live:
        yield live


def ask(live: Live, verb: str, path: str, **asked: Any) -> httpx.Response:
    return httpx.request(verb, f"{live.rest}/v1/{path}", timeout=PATIENCE_SECONDS, **asked)


def look(live: Live, name: str) -> dict[str, Any]:
    """Look at a job; an empty one while the gateway is not there."""
    try:
        response = ask(live, "GET", name)
    except httpx.TransportError:
        return {"state": ""}
    assert response.status_code in (200, 503), response.text
    job: dict[str, Any] = response.json()
    return job if response.status_code == 200 else {"state": ""}


def wait(live: Live, name: str) -> dict[str, Any]:
    patience = time.monotonic() + PATIENCE_SECONDS
    while (job := look(live, name))["state"] not in ENDED:
        assert time.monotonic() < patience, job
        time.sleep(0.1)
    return job


def process(live: Live, what: str) -> psutil.Process:
    """The gateway, TorchServe, or its worker."""
    for child in live.process.children(recursive=True):
        line = " ".join(child.cmdline())
        if child.is_running() and what in line and "guard" not in line:
            return child
    raise AssertionError(f"there is no {what}")


@pytest.mark.parametrize(
    "what", ["model_service_worker", "org.pytorch.serve.ModelServer", "whybox_service.app"]
)
def test_killed_in_mid_job(counting: Live, asked_file: Path, what: str) -> None:
    wait_until_green(counting.rest)
    request = {"model": NAME, "layout": LAYOUT, "params": PARAMS}
    job = ask(counting, "POST", "inversions", json=request).json()
    eventually(lambda: look(counting, job["name"]).get("progress", {}).get("iteration", 0) > 20)
    os.kill(process(counting, what).pid, signal.SIGKILL)
    done = wait(counting, job["name"])
    check_whole(done)
    assert ask(counting, "GET", job["name"] + "/image").content == inversion_worker.picture_of(400)
    assert done["result"]["params"]["workers"] == (1 if what == "whybox_service.app" else 2)
    name = job["name"].partition("/")[2]
    steps = [line for line in asked_file.read_text().splitlines() if line.startswith(name)]
    assert set(steps) == {f"{name}-{step}" for step in range(1, 41)}
    assert len(steps) <= 40 + 1, "more than one step was lost"


def test_a_detector_is_inverted(live: Live) -> None:
    """From the layout to the picture, on a detector of random weights."""
    model = ask(live, "GET", f"models/{live.model}").json()
    layout = {"width": 96, "height": 96, "objects": [{"label": model["labels"][0], "box": [20, 20, 70, 70]}]}
    request = {"model": live.model, "layout": layout, "params": {"iterations": 12}, "seed": 3}
    response = ask(live, "POST", "inversions", json=request)
    assert response.status_code == 202, response.text
    name = response.json()["name"]
    with httpx.stream("GET", f"{live.rest}/v1/{name}/events", timeout=PATIENCE_SECONDS) as stream:
        kinds = [line.partition(": ")[2] for line in stream.iter_lines() if line.startswith("event: ")]
    assert kinds[-1] == "result"
    job = look(live, name)
    assert job["state"] == "succeeded", job
    assert job["progress"]["iteration"] == job["progress"]["iterations"] == 12
    for curve in job["result"]["losses"]:
        assert curve["iterations"] == sorted(set(curve["iterations"]))
    assert ask(live, "GET", f"{name}/image").content.startswith(b"\x89PNG")
    assert ask(live, "DELETE", name).status_code == 204
