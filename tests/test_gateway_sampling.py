"""Sampling methods behind the gateway, live: spread over workers, added in order, within a budget."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway_calls import Outcome, over_grpc, over_rest
from sampling_parts import (
    ONE,
    TWO,
    Sampler,
    asking,
    eventually,
    expected_maps,
    most_at_one_time,
    parsed,
    same_maps,
)
from whybox_proto import maps
from whybox_proto.v1 import explainer_pb2
from whybox_service.sampling import ROUNDS_AHEAD

F32 = {"encoding": "f32"}


def explain(sampler: Sampler, request: dict[str, Any], transport: str = "rest", **headers: str) -> Outcome:
    if transport == "rest":
        return over_rest(sampler.live.rest, "Explain", request, **headers)
    metadata = tuple((name.lower(), value) for name, value in headers.items() if name == "X-Request-Id")
    timeout = float(headers.get("X-Request-Timeout", 100))
    return over_grpc(sampler.live.target, "Explain", request, timeout=timeout, metadata=metadata)


def answered(outcome: Outcome) -> explainer_pb2.ExplainResponse:
    assert outcome.answer is not None, outcome.error
    return parsed(outcome.answer)


@pytest.mark.parametrize("model", [ONE, TWO])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_map_is_the_same_however_many_workers_share_it(sampler: Sampler, model: str, groups: int) -> None:
    request = asking(model, {"groups": groups, "samples": 30}, seed=3, targets=["x1", "class"], output=F32)
    outcomes = [explain(sampler, request, transport) for transport in ("rest", "grpc")]
    assert outcomes[0] == outcomes[1]
    answer = answered(outcomes[0])
    assert same_maps(answer.heat_maps, expected_maps(request))
    assert [heat_map.samples for heat_map in answer.heat_maps] == [30] * 4
    assert all(heat_map.standard_error > 0 for heat_map in answer.heat_maps)
    assert (answer.model, answer.model_version, list(answer.warnings)) == (model, "1.0", [])
    assert {stage.name for stage in answer.stages} >= {"forward", "sample", "queue", "backend", "serialize"}


def test_all_workers_share_the_work_and_each_has_one_chunk_at_a_time(sampler: Sampler) -> None:
    wishes = {"samples": 64, "seconds": 0.3}
    assert explain(sampler, asking(TWO, wishes), **{"X-Request-Id": "shared"}).answer
    done = sampler.done("shared")
    by_worker = [[d for d in done if d["pid"] == pid] for pid in {d["pid"] for d in done}]
    assert [d["first"] for d in sorted(done, key=lambda d: d["first"])] == list(range(0, 64, 8))
    assert len(by_worker) == 2
    assert min(map(len, by_worker)) >= 2
    assert most_at_one_time(done) == 2
    assert all(most_at_one_time(own) == 1 for own in by_worker)


def test_one_worker_has_one_chunk_and_others_come_in_between(sampler: Sampler) -> None:
    request = asking(ONE, {"samples": 64, "seconds": 0.3})
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(explain, sampler, request, "rest", **{"X-Request-Id": "long"})
        eventually(lambda: len(sampler.done("long")) >= 2)
        assert over_rest(
            sampler.live.rest, "Detect", request_of_detect(), **{"X-Request-Id": "between"}
        ).answer
        assert not long.done()
        assert long.result().answer
    assert most_at_one_time(sampler.done("long")) == 1
    (between,) = sampler.done("between", "detect")
    assert between["ended"] < sampler.done("long")[-1]["started"]


def request_of_detect() -> dict[str, Any]:
    return {name: value for name, value in asking(ONE).items() if name != "method"}


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_budget_of_seconds_ends_the_sampling(sampler: Sampler, transport: str) -> None:
    request = asking(TWO, {"samples": 8000, "seconds": 0.2}, budget={"seconds": 1.5}, output=F32)
    started = time.monotonic()
    answer = answered(explain(sampler, request, transport))
    assert time.monotonic() - started < 60
    drawn = answer.heat_maps[0].samples
    assert 8 <= drawn < 8000
    assert list(answer.warnings) == [f"the time was used up after {drawn} of 8000 samples"]
    fewer = asking(TWO, {"samples": drawn, "seconds": 0.2}, output=F32)
    assert same_maps(answer.heat_maps, expected_maps(fewer))


def test_the_first_round_is_waited_for(sampler: Sampler) -> None:
    request = asking(ONE, {"samples": 64, "seconds": 0.3}, budget={"seconds": 0.001})
    answer = answered(explain(sampler, request))
    assert answer.heat_maps[0].samples == 8
    assert not answer.heat_maps[0].HasField("standard_error")


def test_a_budget_of_samples_takes_the_plans_place(sampler: Sampler) -> None:
    request = asking(TWO, budget={"samples": 19}, output=F32)
    answer = answered(explain(sampler, request))
    assert answer.heat_maps[0].samples == 19
    assert same_maps(answer.heat_maps, expected_maps(request))


def test_without_a_budget_the_deadline_ends_the_sampling(sampler: Sampler) -> None:
    request = asking(TWO, {"samples": 8000, "seconds": 0.1})
    answer = answered(explain(sampler, request, **{"X-Request-Timeout": "6"}))
    assert 8 <= answer.heat_maps[0].samples < 8000
    assert answer.warnings


def test_a_chunk_that_does_not_come_back_is_given_up_for_what_is_there(sampler: Sampler) -> None:
    """The second of two rounds outlasts the deadline: the answer has the first, and the worker stops."""
    request = asking(ONE, {"samples": 16, "slow_at": 8})
    answer = answered(explain(sampler, request, **{"X-Request-Timeout": "6", "X-Request-Id": "given-up"}))
    assert [heat_map.samples for heat_map in answer.heat_maps] == [8, 8]
    assert list(answer.warnings) == ["the time was used up after 8 of 16 samples"]
    eventually(lambda: len(sampler.done("given-up")) == 2)
    assert [chunk["told"] for chunk in sampler.done("given-up")] == [False, True]


def test_no_more_than_some_rounds_wait_for_a_chunk_that_hangs(sampler: Sampler) -> None:
    """The other worker's sums cannot be added without it, and would fill the memory of who adds them."""
    request = asking(TWO, {"samples": 4000, "slow_at": 8})
    answer = answered(explain(sampler, request, **{"X-Request-Timeout": "6", "X-Request-Id": "ahead"}))
    assert [heat_map.samples for heat_map in answer.heat_maps] == [8, 8]
    eventually(lambda: any(chunk["first"] == 8 for chunk in sampler.done("ahead")))
    # One more may be out when the last of them comes.
    assert len(sampler.done("ahead")) <= 2 + ROUNDS_AHEAD + 1


def test_a_first_round_that_outlasts_the_deadline(sampler: Sampler) -> None:
    request = asking(ONE, {"seconds": 30})
    for transport in ("rest", "grpc"):
        error = explain(sampler, request, transport, **{"X-Request-Timeout": "1"}).error
        assert error["type"].lower() == "deadline_exceeded"
    assert explain(sampler, asking(ONE)).answer, "the worker is free again"


def test_an_error_of_a_chunk_ends_the_explanation(sampler: Sampler) -> None:
    request = asking(TWO, {"samples": 400, "seconds": 0.1, "fail_at": 16})
    outcomes = [explain(sampler, request, transport) for transport in ("rest", "grpc")]
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0].error["type"], outcomes[0].error["field"]) == ("invalid_argument", "params.x")


@pytest.mark.parametrize("odd_at", [0, 16])
@pytest.mark.parametrize("odd", ["more cells", "fewer bytes", "another map"])
def test_a_chunk_that_is_not_the_plan_s_is_an_internal_error(sampler: Sampler, odd: str, odd_at: int) -> None:
    outcome = explain(sampler, asking(TWO, {"odd": odd, "odd_at": odd_at}, output=F32))
    assert outcome.error.get("type") == "internal"
    assert outcome.error["message"].startswith("the worker's chunk of samples cannot be added up: ")
    assert explain(sampler, asking(TWO)).answer, "what was taken has been given back"


def test_a_lost_worker_s_chunk_is_asked_again(sampler: Sampler, tmp_path: Path) -> None:
    wishes = {"samples": 64, "seconds": 0.1, "die_at": 24, "died": str(tmp_path / "died")}
    request = asking(TWO, wishes, output=F32)
    answer = answered(explain(sampler, request, **{"X-Request-Timeout": "60"}))
    assert (tmp_path / "died").exists()
    assert same_maps(answer.heat_maps, expected_maps(request))


def test_nothing_found_draws_no_samples(sampler: Sampler) -> None:
    answer = answered(explain(sampler, asking(TWO, {"detections": 0}), **{"X-Request-Id": "nothing"}))
    assert not answer.heat_maps
    assert not answer.warnings
    assert not sampler.done("nothing")


def test_what_was_missed_has_the_maps(sampler: Sampler) -> None:
    request = asking(TWO, {"missed": True, "detections": 1}, output=F32)
    answer = answered(explain(sampler, request))
    assert not answer.heat_maps
    assert same_maps(answer.why_not.heat_maps, expected_maps(request))


@pytest.mark.parametrize("encoding", ["u8", "f32", "png"])
def test_maps_are_enlarged_from_what_was_not_rounded(sampler: Sampler, encoding: str) -> None:
    request = asking(TWO, output={"size": "image", "encoding": encoding})
    answer = answered(explain(sampler, request))
    for got, cells in zip(answer.heat_maps, expected_maps(request), strict=True):
        large = maps.enlarge(maps.decode(cells), (0, 0, 40, 30), 40, 30)
        wanted = type(got)()
        wanted.CopyFrom(cells)
        maps.encode(large, wanted, encoding)
        assert (got.data, got.width, got.height, got.encoding) == (wanted.data, 40, 30, encoding)
        assert got.samples == 32


def test_what_cannot_be_sent_is_refused_before_samples_are_drawn(sampler: Sampler) -> None:
    request = asking(TWO, {"size": [9000, 9000]}, output={"size": "image"})
    error = explain(sampler, request, **{"X-Request-Id": "too-large"}).error
    assert (error["type"], error["field"]) == ("response_too_large", "output.size")
    assert not sampler.done("too-large")


def test_sums_share_their_memory(sampler: Sampler) -> None:
    """180,000 cells take less than half of what there is: two such explanations fit, three do not."""
    request = asking(ONE, {"cells": [300, 300], "samples": 64, "seconds": 0.1})
    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(lambda _: explain(sampler, request), range(3)))
    assert sorted(outcome.error.get("type", "") for outcome in outcomes) == ["", "", "overloaded"]
    error = explain(sampler, asking(ONE, {"cells": [500, 500]})).error
    assert (error["type"], error["field"]) == ("response_too_large", "output.max_side")
    assert explain(sampler, request).answer, "what was taken has been given back"


@pytest.mark.parametrize(
    ("budget", "field"),
    [
        ({"samples": 0}, "budget.samples"),
        ({"seconds": 0.0}, "budget.seconds"),
        ({"seconds": -1.0}, "budget.seconds"),
        ({"seconds": "NaN"}, "budget.seconds"),
        ({"seconds": "Infinity"}, "budget.seconds"),
    ],
)
def test_a_budget_that_is_none(sampler: Sampler, budget: dict[str, Any], field: str) -> None:
    outcomes = [explain(sampler, asking(TWO, budget=budget), transport) for transport in ("rest", "grpc")]
    # JSON has no such numbers, so over REST they are none, and over gRPC out of range.
    assert outcomes[0] == outcomes[1] or isinstance(budget.get("seconds"), str)
    for outcome in outcomes:
        assert (outcome.error["type"], outcome.error["field"]) == ("invalid_argument", field)


def test_kserve_s_instances_may_sample(sampler: Sampler) -> None:
    requests = [asking(TWO, {"detections": count}, output=F32) for count in (1, 2)]
    instances = [{k: v for k, v in request.items() if k != "model"} for request in requests]
    response = httpx.post(
        f"{sampler.live.rest}/v1/models/{TWO}:explain",
        content=json.dumps({"instances": instances}),
        headers={"Content-Type": "application/json"},
        verify=False,
        timeout=60,
    )
    for answer, request in zip(response.json()["explanations"], requests, strict=True):
        assert same_maps(parsed(answer).heat_maps, expected_maps(request))


def test_a_picture_of_a_sampled_map(sampler: Sampler) -> None:
    """The picture is none that could be drawn on, which is found when the map is there."""
    outcome = explain(sampler, asking(TWO, {"detections": 1}), Accept="image/png")
    assert (outcome.error["type"], outcome.error["field"]) == ("invalid_image", "image")
