"""Sampling methods: plans and chunks, budgets, seeds, and a chunk's work wherever it is done."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import safetensors.torch
import torch

from builders import encoded, random_image, write_recipe
from whybox.detectors.base import Detector
from whybox.engine import Engine
from whybox.methods import METHODS
from whybox.methods.base import Map, Param, Question
from whybox.methods.sampling import SamplingMethod, SamplingPlan, Sum, Task, generator, raster
from whybox.patience import NobodyWaitsError, Patience
from whybox.recipe import read_recipe
from whybox_proto.sums import Totals, chunks
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

IMAGE = random_image(64, 80, seed=3)
PICTURE = encoded(IMAGE)


class Toss(SamplingMethod):
    """Noise about a number that state, detection and target decide: a mean whose error is known."""

    name = "toss"
    description = "Random numbers"
    params = (
        Param("samples", 12, "to draw", minimum=1),
        Param("by_cell", False, "weights of cells"),
        Param("groups", 2, "of detections", minimum=1),
        Param("pause", 0.0, "seconds that a chunk takes", minimum=0.0),
    )
    targets = ("class", "x1")

    def layers(self, detector: Detector) -> list[str]:
        """None is used."""
        del detector
        return []

    def plan(self, detector: Detector, question: Question) -> SamplingPlan:
        """Rounds of three, and the detections' scores as state."""
        del detector
        count = len(question.detections)
        return SamplingPlan(
            samples=int(question.params["samples"]),
            round_samples=3,
            cells=raster(80, 64, question.max_side),
            groups=min(int(question.params["groups"]), count),
            state={"bias": question.detections.scores, "shared": torch.tensor([7.0])},
        )

    def sample(self, detector: Detector, task: Task) -> list[list[Sum]]:
        """Draw `task.count` maps for each detection and target."""
        del detector
        time.sleep(float(task.params["pause"]))
        assert task.state["shared"].tolist() == [7.0]
        assert torch.equal(task.own(task.state["bias"]), task.detections.scores)
        assert task.settings is not None
        assert torch.equal(task.picture, IMAGE)
        cells = raster(80, 64, task.max_side)
        drawn = []
        for sample in range(task.first, task.first + task.count):
            source = generator(task.seed, sample)
            drawn.append(torch.rand((len(task.targets), *cells), generator=source))
        noise = torch.stack(drawn)  # [B, T, h, w]
        rows = []
        for score in task.detections.scores.tolist():
            weight = (noise[:, 0] > 0.5).float().sum(0) if task.params["by_cell"] else float(task.count)
            rows.append(
                [Sum(noise[:, t].sum(0) + score, weight, (0, 0, 80, 64)) for t in range(len(task.targets))]
            )
        return rows


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A worker that also knows the method of this file."""
    folder = tmp_path_factory.mktemp("recipe")
    recipe = read_recipe(write_recipe(folder, "fcos"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "toss", Toss())
        yield Engine.load(recipe, folder / str(recipe.weights))


def asked(**fields: Any) -> explainer_pb2.ExplainRequest:
    """A request for the method of this file, in full precision."""
    params = fields.pop("params", {})
    fields.setdefault("select", types_pb2.Select(max_detections=5))
    fields.setdefault("targets", ["x1", "class"])
    fields = {"image": PICTURE, "method": "toss", **fields}
    request = explainer_pb2.ExplainRequest(**fields)
    request.params.update(params)
    request.output.encoding = "f32"
    if not request.output.HasField("max_side"):
        request.output.max_side = 10
    return request


def answered(engine: Engine, **operation: Any) -> worker_pb2.WorkerReply:
    deadline = operation.pop("deadline", 0.0)
    (reply,) = engine.answer([worker_pb2.WorkerRequest(request_id="r", deadline=deadline, **operation)])
    return reply


def explained(engine: Engine, request: explainer_pb2.ExplainRequest, **fields: Any) -> Any:
    reply = answered(engine, explain=request, **fields)
    assert not reply.HasField("error"), reply.error
    return reply.explain


def spread(engine: Engine, request: explainer_pb2.ExplainRequest, *, seed: int) -> list[types_pb2.HeatMap]:
    """What the gateway does: a plan, its chunks in any order, their sums."""
    reply = answered(engine, plan=request)
    assert not reply.HasField("error"), reply.error
    plan = reply.plan
    totals = Totals(plan)
    todo = list(chunks(plan))
    random.Random(seed).shuffle(todo)
    for chunk in todo:
        piece = worker_pb2.SampleRequest(
            explain=request,
            state=plan.state,
            first=chunk.first,
            count=chunk.count,
            group=chunk.group,
            groups=plan.groups,
        )
        sums = answered(engine, sample=piece)
        assert not sums.HasField("error"), sums.error
        totals.add(chunk, sums.sample)
    assert totals.warnings(len(plan.answer.detections)) == []
    return totals.heat_maps(list(request.targets), "f32")


def question_of(engine: Engine, **change: Any) -> Question:
    """The question that `asked` asks, without messages."""
    ((_, batch),) = engine.detector.prepare([IMAGE])
    forward = engine.detector.forward(batch, keep=True)
    settings = dataclasses.replace(engine.detector.defaults, score_threshold=0.05)
    found = engine.detector.postprocess(engine.detector.candidates(forward, 0), batch.frames[0], settings)[:5]
    params = {param.name: param.default for param in Toss.params}
    fields = {"picture": IMAGE, "max_side": 10, "settings": settings, **change}
    return Question(forward, 0, found, ("x1", "class"), "", params, **fields)


def test_the_description_says_that_it_samples(engine: Engine) -> None:
    described = {method.name: method.sampling for method in engine.model.methods}
    assert described["toss"]
    assert not described["odam"]


@pytest.mark.parametrize("by_cell", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_chunks_in_any_order_make_the_same_maps(engine: Engine, by_cell: bool, groups: int) -> None:
    request = asked(params={"by_cell": by_cell, "groups": groups}, budget=types_pb2.Budget(samples=11))
    whole = explained(engine, request)
    assert list(whole.warnings) == []
    assert len(whole.heat_maps) == 10
    assert {m.samples for m in whole.heat_maps} == {11}
    assert all(m.standard_error > 0 for m in whole.heat_maps)
    for seed in range(3):
        assert spread(engine, request, seed=seed) == list(whole.heat_maps)


def test_the_plan_answers_all_but_the_maps(engine: Engine) -> None:
    request = asked()
    plan = answered(engine, plan=request).plan
    whole = explained(engine, request)
    assert not plan.answer.heat_maps
    assert list(plan.answer.detections) == list(whole.detections)
    assert plan.answer.image == whole.image
    assert {stage.name for stage in plan.answer.stages} >= {"forward", "explain"}
    assert (plan.samples, plan.round_samples, plan.groups) == (12, 3, 2)


def test_a_budget_in_samples_takes_the_place_of_the_methods_own(engine: Engine) -> None:
    for budget, expected in (
        (None, 12),
        (types_pb2.Budget(samples=1), 1),
        (types_pb2.Budget(samples=40), 40),
    ):
        request = asked(budget=budget)
        assert answered(engine, plan=request).plan.samples == expected
        assert {m.samples for m in explained(engine, request).heat_maps} == {expected}
    assert {m.samples for m in explained(engine, asked(params={"samples": 5})).heat_maps} == {5}


def test_the_seed_decides_the_maps(engine: Engine) -> None:
    first, again, other = (
        [m.data for m in explained(engine, asked(seed=seed)).heat_maps] for seed in (1, 1, 2)
    )
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_more_samples_bring_less_error(engine: Engine) -> None:
    few, many = (explained(engine, asked(budget=types_pb2.Budget(samples=n))).heat_maps[0] for n in (12, 300))
    # Uniform numbers of 0 to 1: their standard deviation is 1 / √12.
    assert many.standard_error == pytest.approx((1 / 12 / 300) ** 0.5, rel=0.2)
    assert few.standard_error > 3 * many.standard_error


class TestTime:
    """Budgets in seconds. The chunks are made so slow that no machine is too fast."""

    def test_a_first_chunk_is_always_worked_on(self, engine: Engine) -> None:
        request = asked(params={"pause": 0.05, "groups": 5}, budget=types_pb2.Budget(seconds=0.001))
        answer = explained(engine, request)
        assert [(m.detection_index, m.samples) for m in answer.heat_maps] == [(0, 3), (0, 3)]
        assert list(answer.warnings) == [
            "the time was used up after 3 of 12 samples",
            "the time was used up before detections 1 to 4 could be explained",
        ]
        assert len(answer.detections) == 5

    def test_it_stops_within_the_rounds(self, engine: Engine) -> None:
        request = asked(
            params={"pause": 0.02, "groups": 1}, budget=types_pb2.Budget(seconds=0.5, samples=10_000)
        )
        answer = explained(engine, request)
        (samples,) = {m.samples for m in answer.heat_maps}
        assert 3 <= samples < 10_000
        assert list(answer.warnings) == [f"the time was used up after {samples} of 10000 samples"]
        same = explained(engine, asked(params={"groups": 1}, budget=types_pb2.Budget(samples=samples)))
        assert [m.data for m in same.heat_maps] == [m.data for m in answer.heat_maps]

    def test_the_deadline_bounds_the_budget(self, engine: Engine) -> None:
        request = asked(
            params={"pause": 0.05, "groups": 1}, budget=types_pb2.Budget(seconds=1e6, samples=1_000_000)
        )
        reply = answered(engine, explain=request, deadline=time.time() + 4)
        if reply.HasField("error"):  # on a machine so slow that the forward pass alone took it
            assert reply.error.type == "deadline_exceeded"
            return
        assert 3 <= reply.explain.heat_maps[0].samples < 1_000_000
        assert reply.explain.warnings[0].endswith("of 1000000 samples")

    def test_without_budget_and_deadline_all_samples_are_drawn(self, engine: Engine) -> None:
        assert {m.samples for m in explained(engine, asked()).heat_maps} == {12}


def test_no_detection_needs_no_sample(engine: Engine) -> None:
    request = asked(select=types_pb2.Select(score_threshold=1.0))
    answer = explained(engine, request)
    assert not answer.heat_maps
    assert not answer.warnings
    plan = answered(engine, plan=request).plan
    assert (plan.samples, plan.groups, plan.answer.detections) == (0, 1, [])
    assert list(chunks(plan)) == []


@pytest.mark.parametrize("operation", ["explain", "plan"])
def test_maps_that_cannot_be_added_up_are_refused(
    engine: Engine, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whybox.methods.sampling.MAX_CELLS", 799)  # ten maps of 8 x 10 cells have 800
    error = answered(engine, **{operation: asked()}).error
    assert (error.type, error.field, error.got) == ("response_too_large", "output.max_side", "800 cells")
    assert "smaller output.max_side" in error.expected
    assert not answered(engine, **{operation: asked(output=types_pb2.Output(max_side=9))}).HasField("error")


def test_a_chunk_that_is_too_large_to_send_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Groups of 2 and 3 detections, two targets: 3 x 2 x 80 cells of eight bytes.
    monkeypatch.setattr("whybox.methods.sampling.MAX_CHUNK_BYTES", 8 * 480 - 1)
    error = answered(engine, plan=asked()).error
    assert (error.type, error.field) == ("response_too_large", "output.max_side")
    assert not answered(engine, plan=asked(params={"groups": 3})).HasField("error")


def test_a_plan_that_is_too_large_to_send_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whybox.explaining.MAX_RESPONSE_BYTES", 100)
    error = answered(engine, plan=asked()).error
    assert (error.type, error.field) == ("response_too_large", "select.max_detections")


@pytest.mark.parametrize("operation", ["plan", "sample"])
def test_a_method_without_samples_has_no_plan(engine: Engine, operation: str) -> None:
    request = explainer_pb2.ExplainRequest(image=PICTURE)
    body = request if operation == "plan" else worker_pb2.SampleRequest(explain=request, count=1, groups=1)
    error = answered(engine, **{operation: body}).error
    assert (error.type, error.field) == ("invalid_argument", "method")


class TestBrokenChunks:
    """A chunk that no plan has."""

    def piece(self, engine: Engine, **change: Any) -> worker_pb2.SampleRequest:
        plan = answered(engine, plan=asked()).plan
        fields = {"state": plan.state, "first": 0, "count": 3, "group": 0, "groups": plan.groups}
        return worker_pb2.SampleRequest(explain=asked(), **{**fields, **change})

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"state": b""}, "state cannot be read"),
            ({"state": b"no tensors"}, "state cannot be read"),
            ({"state": safetensors.torch.save({"bias": torch.ones(2)})}, "state cannot be read"),
            ({"groups": 0}, "state cannot be read"),
            ({"groups": 6}, "state cannot be read"),
            ({"group": 2}, "not one of a plan"),
            ({"count": 0}, "not one of a plan"),
        ],
    )
    def test_it_is_refused(self, engine: Engine, change: dict[str, Any], words: str) -> None:
        error = answered(engine, sample=self.piece(engine, **change)).error
        assert error.type == "invalid_request"
        assert words in error.message

    @pytest.mark.parametrize(
        ("method", "params", "change"),
        [
            ("toss", {}, {"detections.boxes": torch.ones(2, 4)}),
            ("toss", {}, {"detections.scores": torch.full((5,), math.nan)}),
            ("toss", {}, {"detections.labels": torch.full((5,), 4)}),
            ("toss", {}, {"shared": None}),
            ("mask_out", {}, {"unmasked": torch.full((5, 1), math.nan)}),
            ("mask_out", {}, {"unmasked": torch.ones(5, 2)}),
            ("odsmoothgrad", {}, {"held.candidates": torch.full((5,), 10**6)}),
            ("odsmoothgrad", {}, {"held.candidates": torch.full((5,), -1)}),
            ("odsmoothgrad", {}, {"held.candidates": torch.zeros(5)}),
            ("odsmoothgrad", {}, {"range": torch.full((3,), math.inf)}),
            ("odsmoothgrad", {"matching": "output"}, {"detections.boxes": torch.full((5, 4), math.nan)}),
        ],
    )
    def test_other_tensors_than_the_plan_gave_are_refused(
        self, engine: Engine, method: str, params: dict[str, Any], change: dict[str, torch.Tensor | None]
    ) -> None:
        request = asked(method=method, targets=["class"], params=params)
        plan = answered(engine, plan=request).plan
        digest, written = plan.state[:32], plan.state[32:]
        state = safetensors.torch.load(written)
        assert set(change) <= set(state)
        changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
        piece = worker_pb2.SampleRequest(
            explain=request,
            state=digest + safetensors.torch.save(changed),
            count=min(plan.round_samples, plan.samples),
            groups=plan.groups,
        )
        error = answered(engine, sample=piece).error
        assert (error.type, error.field) == ("invalid_request", "state")
        assert "state cannot be read" in error.message
        piece.state = plan.state
        assert answered(engine, sample=piece).WhichOneof("result") == "sample"

    def test_a_state_is_that_of_its_request_and_model_alone(self, engine: Engine) -> None:
        plan = answered(engine, plan=asked()).plan
        others = [
            asked(params={"samples": 13}),
            asked(seed=1),
            asked(select=types_pb2.Select(max_detections=4)),
            asked(image=encoded(random_image(64, 80, seed=4))),
        ]
        for request in others:
            piece = worker_pb2.SampleRequest(explain=request, state=plan.state, count=3, groups=plan.groups)
            assert answered(engine, sample=piece).error.field == "state"
        newer = Engine(dataclasses.replace(engine.recipe, version="2.0"), engine.detector)
        assert answered(newer, sample=self.piece(engine)).error.field == "state"

    @pytest.mark.parametrize("method", ["mask_out", "odsmoothgrad"])
    def test_samples_that_there_are_not_are_refused(self, engine: Engine, method: str) -> None:
        request = explainer_pb2.ExplainRequest(image=PICTURE, method=method)
        plan = answered(engine, plan=request).plan
        piece = worker_pb2.SampleRequest(
            explain=request, state=plan.state, count=2**32 - 1, groups=plan.groups
        )
        error = answered(engine, sample=piece).error
        assert error.type == "invalid_request"
        assert "not one of a plan" in error.message

    def test_the_state_alone_is_whole(self, engine: Engine) -> None:
        assert answered(engine, sample=self.piece(engine)).WhichOneof("result") == "sample"


def test_a_chunk_that_nobody_waits_for_is_not_worked_on(engine: Engine) -> None:
    plan = answered(engine, plan=asked()).plan
    piece = worker_pb2.SampleRequest(explain=asked(), state=plan.state, count=3, groups=plan.groups)
    assert answered(engine, sample=piece, deadline=time.time() - 1).error.type == "deadline_exceeded"


def test_a_client_that_has_left_ends_the_work_between_chunks(engine: Engine) -> None:
    question = question_of(engine, patience=Patience(deadline=time.time() - 1))
    with pytest.raises(NobodyWaitsError):
        METHODS["toss"].explain(engine.detector, question)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("d_rise", {"samples": 8, "score_threshold": 0.0}),
        ("mask_out", {"score_threshold": 0.0}),
        ("odsmoothgrad", {"matching": "output", "samples": 1}),
    ],
)
def test_soft_nms_of_changed_pictures_looks_whether_anybody_waits(
    engine: Engine, method: str, params: dict[str, Any]
) -> None:
    looks: list[None] = []

    class Watched(Patience):
        def check(self) -> None:
            looks.append(None)

    def looked(nms: str) -> int:
        settings = dataclasses.replace(
            engine.detector.defaults, score_threshold=0.0, nms=nms, sigma=0.5, final_threshold=0.0
        )
        described = {param.name: param.default for param in METHODS[method].params}
        question = dataclasses.replace(
            question_of(engine, patience=Watched(), settings=settings),
            targets=("class",),
            layer="image" if method == "d_rise" else "",
            params={**described, **params},
        )
        looks.clear()
        METHODS[method].explain(engine.detector, question)
        return len(looks)

    assert looked("soft") > looked("iou")


class TestGenerator:
    """Numbers of one sample."""

    def test_they_follow_from_seed_and_sample_alone(self) -> None:
        assert torch.equal(torch.rand(8, generator=generator(5, 9)), torch.rand(8, generator=generator(5, 9)))

    def test_neighbours_share_nothing(self) -> None:
        drawn = torch.stack(
            [torch.rand(1000, generator=generator(s, i)) for s in range(12) for i in range(12)]
        )
        correlation = torch.corrcoef(drawn)
        correlation.fill_diagonal_(0)
        assert float(correlation.abs().max()) < 0.2  # five standard deviations of chance are 0.16
        assert len({tuple(row[:4].tolist()) for row in drawn}) == 144

    def test_any_seed_of_the_contract_will_do(self) -> None:
        for seed in (0, 2**31, 2**32 - 1):
            assert 0 <= float(torch.rand(1, generator=generator(seed, 10**6))) < 1


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((640, 480), 512, (384, 512)),
        ((480, 640), 512, (512, 384)),
        ((100, 50), 512, (50, 100)),
        ((5000, 20), 100, (1, 100)),
        ((1, 1), 1, (1, 1)),
    ],
)
def test_raster(size: tuple[int, int], max_side: int, expected: tuple[int, int]) -> None:
    assert raster(*size, max_side) == expected


def test_a_map_keeps_region_and_error_in_process(engine: Engine) -> None:
    """`Method.explain` without the engine's messages, as a script uses it."""
    request = asked()
    whole = explained(engine, request)
    question = question_of(engine)
    rows = METHODS["toss"].explain(engine.detector, question)
    flat: list[Map] = [made for row in rows for made in row]
    for made, written in zip(flat, whole.heat_maps, strict=True):
        assert made.values.numpy().astype("<f4").tobytes() == written.data
        assert list(made.region) == list(written.region)
        assert made.samples == written.samples
        assert made.standard_error == pytest.approx(written.standard_error)
