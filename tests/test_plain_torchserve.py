"""An archive without the gateway: plain TorchServe calls with a picture as the body, JSON back."""

from __future__ import annotations

import json

import httpx
import pytest
from google.protobuf import json_format

from builders import LABELS
from conftest import Live
from whybox_proto import maps
from whybox_proto.v1 import explainer_pb2, types_pb2


@pytest.fixture
def torchserve(live: Live) -> str:
    return live.torchserve["inference"]


def put(url: str, body: bytes) -> httpx.Response:
    """What ``curl -T FILE URL`` sends."""
    return httpx.put(url, content=body, timeout=60)


def test_a_picture_gets_its_detections(torchserve: str, live: Live, picture: bytes) -> None:
    answer = put(f"{torchserve}/predictions/{live.model}", picture)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    found = json_format.ParseDict(answer.json(), explainer_pb2.DetectResponse())
    assert found.model == live.model
    assert len(found.detections) > 3
    assert {d.label for d in found.detections} <= set(LABELS)


def test_a_picture_gets_its_explanations(torchserve: str, live: Live, picture: bytes) -> None:
    answer = put(f"{torchserve}/explanations/{live.model}", picture)
    explained = json_format.ParseDict(answer.json(), explainer_pb2.ExplainResponse())
    assert len(explained.heat_maps) == len(explained.detections) > 3
    assert {m.target for m in explained.heat_maps} == {"class"}
    assert all(float(maps.decode(m).max()) > 0 for m in explained.heat_maps[:3])


def test_a_form_works_too(torchserve: str, live: Live, picture: bytes) -> None:
    url = f"{torchserve}/predictions/{live.model}"
    form = httpx.post(url, files={"data": ("a.jpg", picture)}, timeout=60).json()
    assert form["detections"] == put(url, picture).json()["detections"]


@pytest.mark.parametrize("body", [b"no picture", b"\xff\xd8\xff\xe0cut"])
def test_what_is_no_picture_gets_a_problem(torchserve: str, live: Live, body: bytes) -> None:
    answer = put(f"{torchserve}/predictions/{live.model}", body)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    problem = answer.json()
    assert (problem["type"], problem["field"]) == ("urn:whybox:error:invalid_image", "image")


def test_json_is_no_picture_either(torchserve: str, live: Live) -> None:
    answer = httpx.post(f"{torchserve}/predictions/{live.model}", json={"image": 1}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["type"] == "urn:whybox:error:invalid_image"


def test_describing_through_the_management_api(live: Live) -> None:
    url = f"{live.torchserve['management']}/models/{live.model}?customized=true"
    (described,) = httpx.get(url, timeout=60).json()
    metadata = described["customizedMetadata"]
    model = json_format.ParseDict(
        json.loads(metadata) if isinstance(metadata, str) else metadata, types_pb2.Model()
    )
    assert model.name == live.model
    assert {method.name: method.sampling for method in model.methods}.items() >= {
        "odam": False,
        "d_rise": True,
    }.items()
