"""Every field on both transports, good and bad values: the same answers, the same errors."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from conftest import Live
from gateway_calls import SERVICE, b64, everywhere, over_grpc, rest_outcome
from gateway_samples import leaves, put
from whybox_service.operations import Operations, operation_name
from whybox_service.rest.routes import ADDRESSES

FIRST: dict[str, Any] = {"score_threshold": 0.0, "max_detections": 2}
BOX = [10.0, 20.0, 60.0, 90.0]
OK = ""  # in place of an error: there is an answer

# Field → (value, type of the error it makes, field that the error names). A field without a value that can be
# wrong has good ones only.
DETECT: dict[str, list[tuple[Any, str, str]]] = {
    "model_version": [("1.0", OK, ""), ("9.9", "unknown_model", "model_version")],
    "image": [
        ("", "missing_image", "image"),
        (b64(b"no picture"), "invalid_image", "image"),
        (b64(b"\xff\xd8\xff\xe0" + bytes(50)), "invalid_image", "image"),
    ],
    "select.score_threshold": [
        (0.3, OK, ""),
        (1.0, OK, ""),
        (1.5, "invalid_argument", "select.score_threshold"),
        (-0.1, "invalid_argument", "select.score_threshold"),
    ],
    "select.max_detections": [
        (1, OK, ""),
        (0, "invalid_argument", "select.max_detections"),
        (1001, "invalid_argument", "select.max_detections"),
    ],
    "select.labels": [
        (["beta"], OK, ""),
        (["beta", "alpha"], OK, ""),
        (["beta", "alpah"], "unknown_label", "select.labels[1]"),
        ([""], "unknown_label", "select.labels[0]"),
    ],
    "select.indices": [([1], OK, ""), ([0, 999], "invalid_argument", "select.indices[1]")],
    "select.box": [
        (BOX, OK, ""),
        (BOX[:3], "invalid_argument", "select.box"),
        ([10.0, 20.0, 5.0, 90.0], "invalid_argument", "select.box"),
    ],
    "select.expected.box": [(BOX, "unknown_label", "select.expected.label")],
    "select.expected.label": [("beta", "invalid_argument", "select.expected.box")],
    "nms.kind": [("iou", OK, ""), ("none", OK, ""), ("iuo", "invalid_argument", "nms.kind")],
    "nms.iou_threshold": [(0.7, OK, ""), (7.0, "invalid_argument", "nms.iou_threshold")],
    "nms.corr_high": [(0.5, "unknown_parameter", "nms.corr_high")],
    "nms.corr_low": [(0.5, "unknown_parameter", "nms.corr_low")],
    "nms.sigma": [(0.5, "unknown_parameter", "nms.sigma")],
    "nms.final_threshold": [(0.5, "unknown_parameter", "nms.final_threshold")],
    "nms.explain_suppressed": [(True, OK, "")],
}
EXPLAIN: dict[str, list[tuple[Any, str, str]]] = {
    **DETECT,
    "method": [("odam", OK, ""), ("odma", "unknown_method", "method")],
    "targets": [
        (["x1"], OK, ""),
        (["class", "class:beta", "combined"], OK, ""),
        (["class", "x3"], "unknown_target", "targets[1]"),
        (["class:alpah"], "unknown_label", "targets[0]"),
        (["x1", "x1"], "invalid_argument", "targets[1]"),
    ],
    "layer": [("layer3", OK, ""), ("layer9", "unknown_layer", "layer")],
    "params": [
        ({"smoothing": 0.2}, OK, ""),
        ({"smooth": 1}, "unknown_parameter", "params.smooth"),
        ({"smoothing": "much"}, "invalid_argument", "params.smoothing"),
        ({"smoothing": -1}, "invalid_argument", "params.smoothing"),
        ({"smoothing": [1]}, "invalid_argument", "params.smoothing"),
        ({"smoothing": {"a": {"b": None}}}, "invalid_argument", "params.smoothing"),
    ],
    "budget.seconds": [(1.0, "invalid_argument", "budget")],
    "budget.samples": [(10, "invalid_argument", "budget")],
    "seed": [(7, OK, "")],
    "evaluate": [(True, OK, "")],
    "output.size": [("image", OK, ""), ("feature", OK, ""), ("huge", "invalid_argument", "output.size")],
    "output.encoding": [
        ("u8", OK, ""),
        ("f32", OK, ""),
        ("png", OK, ""),
        ("jpeg", "invalid_argument", "output.encoding"),
    ],
    "output.max_side": [(64, OK, ""), (0, "invalid_argument", "output.max_side")],
}
CASES = {"Detect": DETECT, "Explain": EXPLAIN}


@pytest.mark.parametrize("rpc", CASES)
def test_the_cases_cover_every_field(rpc: str) -> None:
    fields = {path for path, _ in leaves(SERVICE.methods_by_name[rpc].input_type)}
    assert set(CASES[rpc]) == fields - {"model"}  # tested below, because it stands in the path


@pytest.mark.parametrize(
    ("rpc", "path", "value", "type", "field"),
    [(rpc, path, *row) for rpc, cases in CASES.items() for path, rows in cases.items() for row in rows],
)
def test_both_transports_say_the_same(
    live: Live, picture: bytes, rpc: str, path: str, value: Any, type: str, field: str
) -> None:
    request: dict[str, Any] = {"model": live.model, "image": b64(picture), "select": dict(FIRST)}
    outcome = everywhere(live, rpc, put(request, path, value))
    if type == OK:
        assert outcome.answer, outcome.error
        assert outcome.answer["model"] == live.model
        stages = [stage["name"] for stage in outcome.answer["stages"]]
        assert {"decode", "forward", "backend", "serialize"} <= set(stages)
    else:
        assert (outcome.error["type"], outcome.error["field"]) == (type, field)


@pytest.mark.parametrize("rpc", ["GetModel", "Detect", "Explain"])
def test_an_unknown_model_names_the_nearest(live: Live, picture: bytes, rpc: str) -> None:
    name = live.model[:-1] + "n"
    request = {"model": name} if rpc == "GetModel" else {"model": name, "image": b64(picture)}
    outcome = everywhere(live, rpc, request)
    assert (outcome.error["type"], outcome.error["field"]) == ("unknown_model", "model")
    assert f"did you mean {live.model!r}" in outcome.error["message"]


def test_no_model_at_all(live: Live, picture: bytes) -> None:
    outcome = over_grpc(live.target, "Detect", {"image": b64(picture)})
    assert (outcome.error["type"], outcome.error["field"]) == ("invalid_argument", "model")


def test_models_are_described(live: Live) -> None:
    outcome = everywhere(live, "ListModels", {})
    assert outcome.answer is not None
    assert [model["name"] for model in outcome.answer["models"]] == live.models
    for model in outcome.answer["models"]:
        assert everywhere(live, "GetModel", {"model": model["name"]}).answer == model
        versioned = everywhere(live, "GetModel", {"model": model["name"], "model_version": model["version"]})
        assert versioned.answer == model
        assert model["ready"]
        assert [worker["status"] for worker in model["state"]["workers"]] == ["READY"]
        assert model["state"]["queue_remaining"] > 0
        assert model["labels"] == ["alpha", "beta", "gamma", "delta"]
        assert model["methods"][0]["name"] == "odam"
        assert [measure["name"] for measure in model["measures"]]


def test_an_unknown_version_names_those_there_are(live: Live) -> None:
    outcome = everywhere(live, "GetModel", {"model": live.model, "model_version": "1.1"})
    assert (outcome.error["type"], outcome.error["field"]) == ("unknown_model", "model_version")
    assert outcome.error["expected"] == "one of: 1.0"


def test_models_come_in_pages(live: Live) -> None:
    names, token = [], ""
    for _ in live.models:
        answer = everywhere(live, "ListModels", {"page_size": 1, "page_token": token}).answer
        assert answer is not None
        names += [model["name"] for model in answer["models"]]
        token = answer.get("next_page_token", "")
    assert names == live.models
    assert not token


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"page_size": 1001}, "page_size"),
        ({"page_token": "x!"}, "page_token"),
        ({"page_token": "é"}, "page_token"),
    ],
)
def test_a_wrong_page_is_refused(live: Live, request_: dict[str, Any], field: str) -> None:
    outcome = everywhere(live, "ListModels", request_)
    assert (outcome.error["type"], outcome.error["field"]) == ("invalid_argument", field)


def test_every_rpc_has_an_operation_and_an_address() -> None:
    for method in SERVICE.methods:
        assert hasattr(Operations, operation_name(method.name)), method.name
        assert any(method.name in (address.rpc, address.stream) for address in ADDRESSES), method.name


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x1a\xff", b"\x0a\x02\xff\xfe", b"{}"])
@pytest.mark.parametrize("rpc", ["Detect", "Explain"])
def test_malformed_protobuf(live: Live, rpc: str, garbage: bytes) -> None:
    response = httpx.post(
        f"{live.rest}/v1/models/{live.model}:{rpc.lower()}",
        content=garbage,
        headers={"Content-Type": "application/x-protobuf"},
        verify=False,
    )
    outcome = rest_outcome(response)
    assert outcome == over_grpc(live.target, rpc, garbage)
    assert outcome.error["type"] == "invalid_request"
    assert outcome.error["expected"] == f"a whybox.v1.{rpc}Request"
