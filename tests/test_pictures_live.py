"""Every picture of the corpus over both transports: the same outcome, and no worker is lost."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

import picture_files
from conftest import PATIENCE_SECONDS, Live
from gateway_calls import Outcome, b64, over_grpc, rest_outcome

GOOD = picture_files.good()
BAD = picture_files.bad()
SELECT = {"score_threshold": 0.0, "max_detections": 2}


def worker_pids(live: Live) -> set[int]:
    """The process ids of the workers, as TorchServe tells them."""
    found = set()
    for model in live.models:
        (described,) = httpx.get(
            f"{live.torchserve['management']}/models/{model}", timeout=60, verify=False
        ).json()
        found |= {worker["pid"] for worker in described["workers"]}
    return found


@pytest.fixture(scope="module")
def unharmed(live: Live) -> Iterator[Live]:
    """The service, which has the same workers when the tests are over."""
    before = worker_pids(live)
    yield live
    assert worker_pids(live) == before
    assert all(psutil.pid_exists(pid) for pid in before)
    assert httpx.get(f"{live.rest}/readyz", timeout=PATIENCE_SECONDS, verify=False).status_code == 200


def everyway(live: Live, model: str, image: bytes) -> list[Outcome]:
    """Detect over REST as raw body, form, JSON and protobuf, and over gRPC."""
    url = f"{live.rest}/v1/models/{model}:detect"
    request = {"model": model, "image": b64(image), "select": SELECT}
    described = (None, json.dumps({"select": SELECT}), "application/json")
    answers = [
        httpx.post(
            f"{url}?select.score_threshold=0&select.max_detections=2",
            content=image,
            headers={"Content-Type": "application/octet-stream"},
            timeout=PATIENCE_SECONDS,
            verify=False,
        ),
        httpx.post(
            url, files={"image": ("x", image), "request": described}, timeout=PATIENCE_SECONDS, verify=False
        ),
        httpx.post(url, json=request, timeout=PATIENCE_SECONDS, verify=False),
    ]
    return [*(rest_outcome(answer) for answer in answers), over_grpc(live.target, "Detect", request)]


@pytest.mark.parametrize("name", GOOD)
def test_a_picture_that_is_read_is_read_everywhere(unharmed: Live, name: str) -> None:
    file = GOOD[name]
    height, width = file.pixels.shape[:2]
    for outcome in everyway(unharmed, unharmed.model, file.data):
        assert outcome.answer is not None, outcome.error
        assert outcome.answer["image"] == {"width": width, "height": height}


@pytest.mark.parametrize("name", ["one pixel", "one row", "png 16-bit grey", "jpeg turned 6"])
def test_both_kinds_of_detector_take_it_and_explain_it(unharmed: Live, name: str) -> None:
    image = GOOD[name].data
    for model in unharmed.models:
        request = {"model": model, "image": b64(image), "select": SELECT, "output": {"size": "image"}}
        outcome = over_grpc(unharmed.target, "Explain", request)
        assert outcome.answer is not None, outcome.error
        for heat_map in outcome.answer.get("heat_maps", []):
            assert (heat_map["height"], heat_map["width"]) == GOOD[name].pixels.shape[:2]


@pytest.mark.parametrize("name", BAD)
def test_a_picture_that_is_refused_is_refused_everywhere(unharmed: Live, name: str) -> None:
    file = BAD[name]
    first, *others = everyway(unharmed, unharmed.model, file.data)
    assert (first.error["type"], first.error["field"]) == (file.type, "image")
    assert file.says in first.error["message"]
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", ["jpeg turned 6", "png rgba", "tiff 16-bit grey", "gif animated"])
def test_the_overlay_is_drawn_on_the_picture_that_the_worker_saw(unharmed: Live, name: str) -> None:
    file = GOOD[name]
    response = httpx.post(
        f"{unharmed.rest}/v1/models/{unharmed.model}:explain?select.max_detections=1&select.score_threshold=0",
        content=file.data,
        headers={"Content-Type": "application/octet-stream", "Accept": "image/png"},
        timeout=PATIENCE_SECONDS,
        verify=False,
    )
    assert response.status_code == 200, response.text
    drawn = np.asarray(Image.open(io.BytesIO(response.content)))
    assert drawn.shape == file.pixels.shape


def test_a_picture_that_is_too_large_to_draw_on_is_refused_with_another_way(unharmed: Live) -> None:
    response = httpx.post(
        f"{unharmed.rest}/v1/models/{unharmed.model}:explain?select.max_detections=1&select.score_threshold=0",
        content=picture_files.saved(Image.effect_noise((5000, 4000), 50), "JPEG"),
        headers={"Content-Type": "image/jpeg", "Accept": "image/png", "X-Request-Timeout": "100"},
        timeout=PATIENCE_SECONDS,
        verify=False,
    )
    error = rest_outcome(response).error
    assert (error["type"], error["got"]) == ("response_too_large", "5000x4000")
    assert "application/json" in error["message"]
