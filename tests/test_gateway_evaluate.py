"""`:evaluate`, and `evaluate` on `:explain`: each map measured by some worker, on a live service."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from gateway_calls import Outcome, over_grpc, over_rest, rest_outcome
from sampling_parts import (
    ONE,
    TWO,
    Sampler,
    asking,
    expected_maps,
    message,
    parsed,
    same_maps,
)
from sampling_worker import mean_of, single_maps
from whybox_proto import maps
from whybox_proto.v1 import explainer_pb2, types_pb2

TRUTH = {"width": 40, "height": 30, "objects": [{"label": "thing", "box": [1, 2, 20, 25]}]}


def everywhere(sampler: Sampler, rpc: str, request: dict[str, Any]) -> Outcome:
    """Ask over both transports, which must agree."""
    rest = over_rest(sampler.live.rest, rpc, request)
    assert rest == over_grpc(sampler.live.target, rpc, request)
    return rest


def evaluation(explain: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"explain": explain, **fields}


def single(request: dict[str, Any]) -> list[types_pb2.HeatMap]:
    """The maps of the method that draws no samples, as they are."""
    made = []
    for values in single_maps(message(request)):
        made.append(types_pb2.HeatMap())
        maps.encode(values, made[-1], "f32")
    return made


@pytest.mark.parametrize("method", ["odam", "sampler"])
@pytest.mark.parametrize("output", [{}, {"encoding": "png"}, {"size": "image"}], ids=str)
def test_each_map_says_how_good_it_is(sampler: Sampler, method: str, output: dict[str, Any]) -> None:
    request = asking(TWO, method=method, targets=["class", "x1"], output=output)
    outcome = everywhere(sampler, "Explain", {**request, "evaluate": True})
    plain = everywhere(sampler, "Explain", request)
    assert outcome.answer is not None
    assert plain.answer is not None
    answer = parsed(outcome.answer)
    raw = single(request) if method == "odam" else expected_maps(request)
    measured = [heat_map.faithfulness["mean"] for heat_map in answer.heat_maps]
    # What is measured is the map itself, not its rounding.
    assert measured == [np.float32(mean_of(heat_map)) for heat_map in raw]
    for heat_map in answer.heat_maps:
        heat_map.faithfulness.clear()
    assert same_maps(answer.heat_maps, list(parsed(plain.answer).heat_maps))
    assert "measure" in {stage.name for stage in answer.stages}


@pytest.mark.parametrize("method", ["odam", "sampler"])
def test_an_evaluation_has_the_explanation_and_a_row_for_each_map(sampler: Sampler, method: str) -> None:
    request = asking(TWO, {"detections": 3}, method=method, targets=["x1", "class"])
    outcome = everywhere(sampler, "Evaluate", evaluation(request, truth=TRUTH))
    assert outcome.answer is not None
    answer = outcome.answer["evaluations"]
    assert [(row.get("detection_index", 0), row["target"]) for row in answer] == [
        (i, target) for i in range(3) for target in ("x1", "class")
    ]
    assert all(set(row["values"]) == {"mean", "things"} and row["values"]["things"] == 1 for row in answer)
    explanation = parsed(outcome.answer["explanation"])
    assert [heat_map.encoding for heat_map in explanation.heat_maps] == ["u8"] * 6
    assert not any(heat_map.faithfulness for heat_map in explanation.heat_maps)
    assert (explanation.model, explanation.model_version) == (TWO, "1.0")
    assert {"queue", "backend", "measure", "serialize"} <= {stage.name for stage in explanation.stages}


def test_measures_are_spread_over_the_workers(sampler: Sampler) -> None:
    wishes = {"detections": 6, "seconds": 0.3, "samples": 8}
    headers = {"X-Request-Id": "spread"}
    request = evaluation(asking(TWO, wishes))
    assert over_rest(sampler.live.rest, "Evaluate", request, **headers).answer
    done = sampler.done("spread", "measure")
    assert len(done) == 6
    assert len({measure["pid"] for measure in done}) == 2


def test_nothing_found_has_nothing_to_measure(sampler: Sampler) -> None:
    outcome = everywhere(sampler, "Evaluate", evaluation(asking(TWO, {"detections": 0})))
    assert outcome.answer is not None
    assert not outcome.answer.get("evaluations")


@pytest.mark.parametrize(
    ("change", "type", "field"),
    [
        ({"measures": ["meen"]}, "invalid_argument", "measures[0]"),
        ({"measures": ["mean", "mean"]}, "invalid_argument", "measures[1]"),
        ({"measures": ["things"]}, "invalid_argument", "truth"),
        ({"truth": {**TRUTH, "width": 41}}, "invalid_argument", "truth"),
        ({"truth": {"width": 40, "height": 30}}, "invalid_argument", "truth.objects"),
        (
            {"truth": {**TRUTH, "objects": [{"label": "thin", "box": [1, 2, 3, 4]}]}},
            "unknown_label",
            "truth.objects[0].label",
        ),
        (
            {"truth": {**TRUTH, "objects": [{"label": "thing", "box": [1, 2, 50, 4]}]}},
            "invalid_argument",
            "truth.objects[0].box",
        ),
        ({"explain": {**asking(TWO), "method": "sampelr"}}, "unknown_method", "explain.method"),
        ({"explain": {**asking(TWO), "image": ""}}, "missing_image", "explain.image"),
        ({"explain": asking(TWO, {"fail_at": 0})}, "invalid_argument", "explain.params.x"),
        ({"explain": {**asking(TWO), "model": "two-workres"}}, "unknown_model", "explain.model"),
    ],
)
def test_a_bad_evaluation_is_refused_alike(
    sampler: Sampler, change: dict[str, Any], type: str, field: str
) -> None:
    outcome = everywhere(sampler, "Evaluate", {**evaluation(asking(TWO)), **change})
    assert (outcome.error["type"], outcome.error["field"]) == (type, field)


def test_a_truth_of_another_size_draws_no_samples(sampler: Sampler) -> None:
    request = evaluation(asking(TWO), truth={**TRUTH, "width": 41})
    over_rest(sampler.live.rest, "Evaluate", request, **{"X-Request-Id": "size"})
    assert not sampler.done("size")


@pytest.mark.parametrize("method", ["odam", "sampler"])
def test_maps_that_cannot_be_sent_are_not_measured(sampler: Sampler, method: str) -> None:
    request = asking(TWO, {"size": [9000, 9000]}, method=method, output={"size": "image"})
    headers = {"X-Request-Id": f"unsent-{method}"}
    error = over_rest(sampler.live.rest, "Evaluate", evaluation(request), **headers).error
    assert (error["type"], error["field"]) == ("response_too_large", "explain.output.size")
    assert not sampler.done(headers["X-Request-Id"], "measure")


@pytest.mark.parametrize("method", ["odam", "sampler"])
def test_an_evaluation_of_maps_in_image_size_says_what_that_took(sampler: Sampler, method: str) -> None:
    outcome = everywhere(
        sampler, "Evaluate", evaluation(asking(TWO, method=method, output={"size": "image"}))
    )
    assert outcome.answer is not None
    explanation = parsed(outcome.answer["explanation"])
    assert [(heat_map.width, heat_map.height) for heat_map in explanation.heat_maps] == [(40, 30)] * 2
    assert "enlarge" in {stage.name for stage in explanation.stages}


def test_the_deadline_holds(sampler: Sampler) -> None:
    wishes = {"detections": 30, "seconds": 0.4, "samples": 8}
    request = asking(ONE, wishes, method="odam", evaluate=True)
    outcome = over_rest(sampler.live.rest, "Explain", request, **{"X-Request-Timeout": "2"})
    assert outcome.error["type"] == "deadline_exceeded"
    assert over_rest(sampler.live.rest, "Explain", asking(ONE)).answer, "the worker is free again"


class TestHowItArrives:
    """The picture and the model stand in `explain`, however the request arrives."""

    def url(self, sampler: Sampler) -> str:
        return f"{sampler.live.rest}/v1/models/{TWO}:evaluate"

    def rows(self, response: httpx.Response) -> list[str]:
        assert response.status_code == 200, response.text
        return [row["target"] for row in response.json()["evaluations"]]

    def test_as_a_picture(self, sampler: Sampler) -> None:
        query = {"explain.method": "odam", "explain.targets": ["x1"], "measures": ["mean"]}
        response = httpx.post(
            self.url(sampler),
            content=b"{}",
            params=query,
            headers={"Content-Type": "image/jpeg"},
            verify=False,
        )
        assert self.rows(response) == ["x1", "x1"]

    def test_as_a_form(self, sampler: Sampler) -> None:
        described = json.dumps({"explain": {"method": "odam"}, "truth": TRUTH})
        form = {"image": ("a.jpg", b"{}", "image/jpeg"), "request": ("", described, "application/json")}
        response = httpx.post(self.url(sampler), files=form, verify=False)
        assert self.rows(response) == ["class", "class"]

    def test_as_a_message(self, sampler: Sampler) -> None:
        request = explainer_pb2.EvaluateRequest(
            explain=explainer_pb2.ExplainRequest(image=b"{}", method="odam")
        )
        kind = "application/x-protobuf"
        response = httpx.post(
            self.url(sampler),
            content=request.SerializeToString(),
            headers={"Content-Type": kind, "Accept": kind},
            verify=False,
        )
        answer = explainer_pb2.EvaluateResponse.FromString(response.content)
        assert [row.target for row in answer.evaluations] == ["class", "class"]
        assert answer.explanation.stages[-1].name == "serialize"

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"explain": {"model": "other"}}, "explain.model"),
            ({"explain": {}, "model": "other"}, "model"),
        ],
    )
    def test_the_path_says_which_model(self, sampler: Sampler, body: dict[str, Any], field: str) -> None:
        error = rest_outcome(httpx.post(self.url(sampler), json=body, verify=False)).error
        assert error["field"] == field

    def test_two_pictures(self, sampler: Sampler) -> None:
        form = {
            "image": ("a.jpg", b"{}", "image/jpeg"),
            "request": ("", json.dumps({"explain": {"image": "e30="}}), "application/json"),
        }
        error = rest_outcome(httpx.post(self.url(sampler), files=form, verify=False)).error
        assert (error["type"], error["field"]) == ("invalid_argument", "explain.image")

    @pytest.mark.parametrize("transport", ["rest", "grpc"])
    def test_a_picture_may_be_large_and_the_rest_not(self, sampler: Sampler, transport: str) -> None:
        large = explainer_pb2.EvaluateRequest(
            explain=explainer_pb2.ExplainRequest(
                model=TWO, method="odam", image=json.dumps({"x": "x" * (2 << 20)}).encode()
            )
        )
        assert self._ask(sampler, transport, large).answer
        large.truth.objects.add(mask="x" * (1 << 20))
        error = self._ask(sampler, transport, large).error
        assert (error["type"], error["message"]) == (
            "request_too_large",
            "there is too much beside the picture",
        )

    def _ask(self, sampler: Sampler, transport: str, request: explainer_pb2.EvaluateRequest) -> Outcome:
        if transport == "grpc":
            return over_grpc(sampler.live.target, "Evaluate", request)
        headers = {"Content-Type": "application/x-protobuf"}
        body = request.SerializeToString()
        return rest_outcome(
            httpx.post(self.url(sampler), content=body, headers=headers, verify=False), "Evaluate"
        )
