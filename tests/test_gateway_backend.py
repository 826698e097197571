"""What TorchServe and its workers do wrong becomes a row of the table of errors; and the service goes on."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from conftest import PATIENCE_SECONDS, Live, serving
from gateway_calls import Outcome, b64, over_grpc, over_rest
from whybox_proto.errors import ERRORS

NAME = "faulty"
QUEUE = 2
SMALL = {"WHYBOX_POLL_SECONDS": "0.5", "WHYBOX_MAX_WAITING": "2"}


def pack(
    name: str,
    handler: Path,
    store: Path,
    *,
    queue: int = QUEUE,
    response_timeout: int = 120,
    workers: int = 1,
    batch_size: int = 1,
    batch_delay: int = 100,
) -> None:
    """Write an archive of one handler file, its queue short."""
    manifest = {
        "runtime": "python",
        "model": {
            "modelName": name,
            "handler": handler.name,
            "modelVersion": "1.0",
            "configFile": "model-config.yaml",
        },
        "archiverVersion": "0.12.0",
    }
    with zipfile.ZipFile(store / f"{name}.mar", "w") as archive:
        archive.write(handler, handler.name)
        archive.writestr(
            "model-config.yaml",
            f"minWorkers: {workers}\nmaxWorkers: {workers}\nbatchSize: {batch_size}\n"
            f"maxBatchDelay: {batch_delay}\njobQueueSize: {queue}\nresponseTimeout: {response_timeout}\n",
        )
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    store = tmp_path_factory.mktemp("faulty_store")
    pack(NAME, Path(__file__).with_name("faulty_worker.py"), store)
    with serving(store, tmp_path_factory.mktemp("faulty"), env=SMALL) as running:
        yield running


def wish(live: Live, what: str, transport: str = "rest", **headers: str) -> Outcome:
    request = {"model": NAME, "image": b64(what.encode())}
    if transport == "rest":
        return over_rest(live.rest, "Detect", request, **headers)
    return over_grpc(live.target, "Detect", request)


def well(live: Live) -> bool:
    answer = wish(live, "well").answer
    return answer is not None and answer["warnings"] == ["well "]


def wait_until_well(live: Live) -> None:
    """Wait for a good answer, and for the readiness to say so; it looks at TorchServe every so often."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while not well(live) or httpx.get(f"{live.rest}/readyz", verify=False, timeout=60).status_code != 200:
        assert time.monotonic() < patience
        time.sleep(0.2)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
@pytest.mark.parametrize(
    ("what", "type", "says"),
    [
        ("raise", "backend_unavailable", "the worker failed: Prediction failed"),
        ("garbage", "internal", "cannot be read"),
        ("nothing", "internal", "another question"),
        ("other", "internal", "another question"),
    ],
)
def test_a_worker_that_misbehaves(faulty: Live, transport: str, what: str, type: str, says: str) -> None:
    error = wish(faulty, what, transport).error
    assert error["type"] == type
    assert says in error["message"]
    assert well(faulty)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
@pytest.mark.parametrize("type", ERRORS)
def test_an_error_that_the_worker_answers_is_passed_on(faulty: Live, transport: str, type: str) -> None:
    told = {"type": type, "message": "told", "field": "image", "expected": "e", "got": "g"}
    assert wish(faulty, f"error {type}", transport).error == told


def test_an_error_of_another_version_is_internal(faulty: Live) -> None:
    assert wish(faulty, "error from_the_future").error["type"] == "internal"


def test_names_are_torchserves(faulty: Live) -> None:
    answer = wish(faulty, "well").answer
    assert answer is not None
    assert (answer["model"], answer["model_version"]) == (NAME, "1.0")
    described = over_rest(faulty.rest, "GetModel", {"model": NAME}).answer
    assert described is not None
    assert described["name"] == NAME


def test_an_answer_over_torchserves_limit_ends_the_worker_and_not_the_service(faulty: Live) -> None:
    assert wish(faulty, f"large {65 << 20}").error["type"] in ("backend_unavailable", "internal")
    wait_until_well(faulty)


def test_a_worker_that_dies_is_told_and_comes_back(faulty: Live) -> None:
    error = wish(faulty, "die").error
    assert error["type"] == "backend_unavailable"
    wait_until_well(faulty)


def test_a_worker_that_takes_long_meets_the_deadline(faulty: Live) -> None:
    error = wish(faulty, "sleep 2", **{"X-Request-Timeout": "0.5"}).error
    assert error["type"] == "deadline_exceeded"
    wait_until_well(faulty)


def test_a_full_queue_is_told_at_once(faulty: Live) -> None:
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: wish(faulty, "sleep 3"), range(8)))
    refused = [outcome.error for outcome in outcomes if outcome.error]
    assert {error["type"] for error in refused} == {"overloaded"}
    assert 1 <= len(refused) <= 7
    wait_until_well(faulty)


def test_torchserve_registers_nothing_from_outside(faulty: Live) -> None:
    for verb, path in (("POST", "/models?url=http://example.org/x.mar"), ("DELETE", f"/models/{NAME}")):
        response = httpx.request(verb, faulty.torchserve["management"] + path, verify=False, timeout=60)
        assert response.status_code == 405
    assert well(faulty)
