"""The real sampling methods in TorchServe: one worker, two, and the engine in process make the same maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from google.protobuf import json_format

import stream_parts
from builders import encoded, random_image, write_recipe
from conftest import Live, serving
from gateway_calls import b64, over_rest
from sampling_parts import parsed, same_maps
from whybox.archives import build
from whybox.engine import Engine
from whybox.methods import METHODS
from whybox.recipe import read_recipe
from whybox_proto.sums import chunks
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

# What is asked of each, so that there are at least three chunks.
SAMPLING: dict[str, dict[str, Any]] = {
    "d_rise": {"budget": {"samples": 80}},
    "mask_out": {"params": {"side": 20, "stride": 8}},
    "odsmoothgrad": {"budget": {"samples": 10}},
}
TWO = "two-workers"


@dataclass(frozen=True)
class Served:
    """The same detector in a service and in this process."""

    live: Live
    engine: Engine

    def in_process(self, request: dict[str, Any]) -> list[types_pb2.HeatMap]:
        """The maps that the engine makes by itself."""
        reply = self._answer(worker_pb2.WorkerRequest(explain=_message(request)))
        return list(reply.explain.heat_maps)

    def plan(self, request: dict[str, Any]) -> worker_pb2.Plan:
        """How the engine will work."""
        return self._answer(worker_pb2.WorkerRequest(plan=_message(request))).plan

    def _answer(self, request: worker_pb2.WorkerRequest) -> worker_pb2.WorkerReply:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the workers have
        try:
            (reply,) = self.engine.answer([request])
        finally:
            torch.set_num_threads(threads)
        assert not reply.HasField("error"), reply.error
        return reply


def _message(request: dict[str, Any]) -> explainer_pb2.ExplainRequest:
    return json_format.ParseDict(request, explainer_pb2.ExplainRequest())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store, folder = tmp_path_factory.mktemp("sampling_store"), tmp_path_factory.mktemp("recipe")
    recipe = write_recipe(folder, "retinanet", name=TWO, workers={"count": 2})
    build(recipe, store)
    engine = Engine.load(read_recipe(recipe), folder / "retinanet-random.safetensors")
    with serving(store, tmp_path_factory.mktemp("sampling_live")) as live:
        yield Served(live, engine)


def asking(model: str, method: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": model,
        "image": b64(encoded(random_image(64, 80))),
        "method": method,
        "seed": 11,
        "select": {"max_detections": 3, "score_threshold": 0.0},
        "output": {"encoding": "f32", "max_side": 40},
        **SAMPLING.get(method, {}),
        **fields,
    }


def test_every_sampling_method_is_here() -> None:
    assert set(SAMPLING) == {name for name, method in METHODS.items() if method.sampling}


@pytest.mark.parametrize("method", SAMPLING)
def test_the_map_does_not_depend_on_who_made_it(served: Served, live: Live, method: str) -> None:
    """`live` has one worker."""
    plan = served.plan(asking(TWO, method))
    assert len(list(chunks(plan))) >= 3
    expected = served.in_process(asking(TWO, method))
    assert [heat_map.samples for heat_map in expected] == [plan.samples] * 3
    for where, model in ((live, "retinanet-random"), (served.live, TWO)):
        outcome = over_rest(where.rest, "Explain", asking(model, method))
        assert outcome.answer is not None, outcome.error
        assert same_maps(parsed(outcome.answer).heat_maps, expected)


@pytest.mark.parametrize("method", SAMPLING)
def test_a_stream_ends_with_it(served: Served, method: str) -> None:
    request = asking(TWO, method)
    told = stream_parts.over_grpc(served.live, request)
    assert not told.error
    assert same_maps(told.answers[-1].heat_maps, served.in_process(request))


@pytest.mark.parametrize("method", ["odam", "d_rise"])
def test_maps_are_measured(served: Served, method: str) -> None:
    request = asking(TWO, method, evaluate=True)
    outcome = over_rest(served.live.rest, "Explain", request)
    assert outcome.answer is not None, outcome.error
    maps = parsed(outcome.answer).heat_maps
    expected = served.in_process(request)
    assert all(heat_map.faithfulness for heat_map in maps)
    assert same_maps(maps, expected)
