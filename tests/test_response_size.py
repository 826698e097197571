"""No answer passes TorchServe's limit: just under it arrives, over it is refused, and the worker lives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from builders import encoded, random_image, write_recipe
from conftest import Live, serving
from gateway_calls import Outcome, b64, over_grpc, over_rest
from test_gateway_backend import pack
from test_pictures_live import worker_pids
from whybox import explaining
from whybox.describe import describe
from whybox.engine import Engine
from whybox.recipe import MAX_LABEL, MAX_LABELS, RecipeError, read_recipe
from whybox.torchserve import codec
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service.torchserve import MESSAGE_BYTES

NAME = "large"
LIMIT = codec.MAX_ANSWER_BYTES


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    store = tmp_path_factory.mktemp("large_store")
    pack(NAME, Path(__file__).with_name("large_worker.py"), store)
    with serving(store, tmp_path_factory.mktemp("large")) as running:
        yield running


def ask(live: Live, transport: str, size: int) -> Outcome:
    request = {"model": NAME, "image": b64(str(size).encode())}
    if transport == "rest":
        return over_rest(live.rest, "Detect", request)
    return over_grpc(live.target, "Detect", request)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_an_answer_at_the_limit_arrives_and_one_over_it_is_refused(large: Live, transport: str) -> None:
    before = worker_pids(large)
    arrived = ask(large, transport, LIMIT)
    assert arrived.answer is not None, arrived.error
    assert len(arrived.answer["warnings"][0]) > LIMIT - 100
    refused = ask(large, transport, LIMIT + 1).error
    assert refused["type"] == "response_too_large"
    assert "ask for fewer targets" in refused["message"]
    assert refused["expected"] == f"at most {LIMIT} bytes"
    assert worker_pids(large) == before
    assert ask(large, transport, 1000).answer is not None


def test_a_plain_answer_is_measured_as_it_is_sent() -> None:
    heat_map = types_pb2.HeatMap(data=bytes(LIMIT * 4 // 5))  # a third more in base64
    reply = worker_pb2.WorkerReply(explain=explainer_pb2.ExplainResponse(heat_maps=[heat_map]))
    assert codec.Call(None, None, plain=False).write(reply).status == 200
    answer = codec.Call(None, None, plain=True).write(reply)
    assert answer.status == 422
    assert "response_too_large" in str(answer.body)


@pytest.mark.parametrize("encoding", ["u8", "f32", "png"])
def test_the_engine_counts_all_that_it_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    path = write_recipe(tmp_path, "retinanet")
    recipe = read_recipe(path)
    assert recipe.weights is not None
    engine = Engine.load(recipe, path.parent / recipe.weights)
    request = worker_pb2.WorkerRequest()
    request.explain.image = encoded(random_image(64, 64))
    request.explain.targets.extend(["class", "x1", "combined"])
    request.explain.select.max_detections = 5
    request.explain.select.score_threshold = 0
    request.explain.output.encoding = encoding
    (whole,) = engine.answer([request])
    assert len(whole.explain.heat_maps) == 15
    stages = sum(stage.ByteSize() + 2 for stage in whole.explain.stages)
    size = whole.ByteSize() - stages
    # What is counted is at least what is sent, and not much more.
    monkeypatch.setattr(explaining, "MAX_RESPONSE_BYTES", size + 15 * explaining.FIELD_BYTES)
    (answered,) = engine.answer([request])
    assert answered.WhichOneof("result") == "explain"
    monkeypatch.setattr(explaining, "MAX_RESPONSE_BYTES", size - 8)
    (refused,) = engine.answer([request])
    assert refused.error.type == "response_too_large"


def test_the_limits_fit_into_each_other() -> None:
    assert explaining.MAX_RESPONSE_BYTES < LIMIT < MESSAGE_BYTES


def test_a_description_stays_far_below_the_limit(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "retinanet")
    recipe = read_recipe(path)
    assert recipe.weights is not None
    detector = Engine.load(recipe, path.parent / recipe.weights).detector
    detector.labels = [f"{number:06}".ljust(MAX_LABEL, "é") for number in range(MAX_LABELS)]
    assert describe(recipe, detector).ByteSize() < LIMIT / 4


@pytest.mark.parametrize("labels", [["x" * (MAX_LABEL + 1)], [str(n) for n in range(MAX_LABELS + 1)]])
def test_a_recipe_of_too_many_labels_is_refused(tmp_path: Path, labels: list[str]) -> None:
    with pytest.raises(RecipeError, match="labels: expected at most"):
        read_recipe(write_recipe(tmp_path, "retinanet", labels=labels))


def test_a_recipe_for_too_large_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"input\.max_pixels: expected at most"):
        read_recipe(write_recipe(tmp_path, "retinanet", input={"max_pixels": 10**9}))
