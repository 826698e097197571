"""Explanations in the gateway on stand-ins for the workers: what must not break it, and what is not asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service import pictures
from whybox_service.asking import Asked
from whybox_service.calls import Call, Deadline
from whybox_service.explaining import Explaining
from whybox_service.spreading import Spreading
from whybox_service.workshop import Workshop

MODEL = types_pb2.Model(
    name="m",
    version="1.0",
    methods=[types_pb2.Method(name="sampler", targets=["class"], sampling=True)],
    measures=[types_pb2.Measure(name="mean")],
)
LIMIT = 1 << 20

Answer = Callable[[worker_pb2.WorkerRequest], worker_pb2.WorkerReply]


class Workers:
    """Answers in the place of workers and their catalogue, and keeps what was asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[str] = []

    async def ask(
        self, _model: types_pb2.Model, question: worker_pb2.WorkerRequest, _call: Call, **_: bool
    ) -> Asked:
        self.asked.append(question.WhichOneof("operation") or "")
        return Asked(self._answer(question), 0.0, 0.0)

    def ready_workers(self, _model: str, _version: str) -> int:
        return 2

    def batch_delay(self, _model: str, _version: str) -> float:
        return 0.0


def explaining(workers: Workers) -> Explaining:
    stand_in: Any = workers
    metrics: Any = SimpleNamespace(detections=lambda *_: None)
    settings: Any = SimpleNamespace(max_sums_bytes=LIMIT, max_response_bytes=LIMIT)
    return Explaining(stand_in, Spreading(stand_in), metrics, settings)


def explain(made: Explaining, model: types_pb2.Model = MODEL, **fields: Any) -> explainer_pb2.ExplainResponse:
    request = explainer_pb2.ExplainRequest(model="m", image=b"?", method="sampler", **fields)
    return asyncio.run(made.explain(model, request, Call("id", Deadline.after(20))))


def plan(**changes: Any) -> worker_pb2.Plan:
    answer = explainer_pb2.ExplainResponse(
        image=types_pb2.ImageSize(width=40, height=30),
        detections=[types_pb2.Detection(index=0, box=[1, 2, 3, 4], label="thing", score=0.5)],
    )
    return worker_pb2.Plan(**{"answer": answer, "samples": 16, "round_samples": 8, "groups": 1, **changes})


def sums(*, values: bytes = np.ones(12, "<f4").tobytes(), **header: Any) -> worker_pb2.Sums:
    described = types_pb2.HeatMap(**{"target": "class", "width": 4, "height": 3, **header})
    return worker_pb2.Sums(sums=[worker_pb2.MapSum(heat_map=described, values=values, weight=8)])


def sampling(planned: worker_pb2.Plan, summed: worker_pb2.Sums) -> Workers:
    def answer(question: worker_pb2.WorkerRequest) -> worker_pb2.WorkerReply:
        if question.WhichOneof("operation") == "plan":
            return worker_pb2.WorkerReply(plan=planned)
        return worker_pb2.WorkerReply(sample=summed)

    return Workers(answer)


def test_what_is_well_is_answered() -> None:
    """The cases below change one thing of this one."""
    (heat_map,) = explain(explaining(sampling(plan(), sums()))).heat_maps
    assert (heat_map.samples, heat_map.min_value) == (16, 0.125)


@pytest.mark.parametrize(
    ("planned", "summed"),
    [
        (plan(round_samples=0), sums()),
        (plan(groups=0), sums()),
        (plan(groups=2**32 - 1), sums()),
        (plan(), sums(width=5)),
        (plan(), sums(width=0, height=0)),
        (plan(), sums(width=2**31, height=2**31)),
        (plan(), sums(target="x1")),
        (plan(), sums(values=np.full(12, np.nan, "<f4").tobytes())),
        (plan(), sums(values=b"odd")),
    ],
    ids=[
        "no round",
        "no group",
        "groups",
        "wide",
        "no cells",
        "huge",
        "not asked for",
        "not a number",
        "not float32",
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error_and_takes_no_memory(
    planned: worker_pb2.Plan, summed: worker_pb2.Sums
) -> None:
    made = explaining(sampling(planned, summed))
    with pytest.raises((ContractError, ValueError)):
        explain(made)
    made._sampling._buffers.take(LIMIT)


def test_a_map_of_no_detection_is_an_error_in_the_thread_that_finds_it() -> None:
    """An exception that a future cannot hold, such as StopIteration, would keep its place for good."""
    answer = explainer_pb2.ExplainResponse(heat_maps=[types_pb2.HeatMap(detection_index=1)])

    async def find() -> None:
        async with asyncio.timeout(5):
            await Workshop(1).run(pictures.detection_of, answer, answer.heat_maps[0])

    with pytest.raises(ContractError, match="no detection"):
        asyncio.run(find())


def test_no_candidate_in_a_large_picture_has_no_map_that_could_be_too_large() -> None:
    missed = explainer_pb2.ExplainResponse(
        image=types_pb2.ImageSize(width=9000, height=9000), why_not=types_pb2.WhyNot(reason="no_candidate")
    )
    made = explaining(sampling(plan(answer=missed, samples=0), sums()))
    answer = explain(made, output=types_pb2.Output(size="image"))
    assert answer.why_not.reason == "no_candidate"
    assert not answer.why_not.heat_maps
    assert not answer.warnings


def test_a_model_without_measures_is_not_asked_to_explain() -> None:
    workers = sampling(plan(), sums())
    bare = types_pb2.Model()
    bare.CopyFrom(MODEL)
    bare.ClearField("measures")
    with pytest.raises(ContractError, match="takes no measures"):
        explain(explaining(workers), bare, evaluate=True)
    assert not workers.asked
