"""Why was this object missed, and what was dropped: every reason, by arithmetic and through the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from builders import LABELS, encoded, random_image, write_recipe
from whybox.detectors.base import Candidates, Detections, Frame, PostProcessing, detections_of
from whybox.detectors.postprocess import contenders
from whybox.engine import Engine
from whybox.finding import Finding
from whybox.nms import suppress
from whybox.recipe import read_recipe
from whybox.selection import select, settings_of
from whybox.suppressed import suppressed_messages
from whybox.why_not import why_not
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

FRAME = Frame(width=100, height=80, network_width=200, network_height=160)
"""Network pixels are half the size of the picture's."""

MODEL = types_pb2.Model(
    score_threshold=0.4,
    nms=[types_pb2.Nms(kind="iou", iou_threshold=0.5), types_pb2.Nms(kind="none")],
    default_nms="iou",
)

# Image frame: an object at the left with two boxes of IoU 0.8 and a twin of IoU 0.6, one at the right.
LEFT, LEFT_TOO, TWIN, RIGHT = [0, 0, 20, 20], [0, 0, 20, 16], [5, 0, 25, 20], [60, 40, 80, 60]
BOXES = [LEFT, LEFT_TOO, TWIN, RIGHT]
#          alpha beta gamma delta
SCORES = [
    [0.90, 0.10, 0.00, 0.00],
    [0.80, 0.10, 0.00, 0.00],
    [0.85, 0.10, 0.00, 0.00],
    [0.30, 0.50, 0.20, 0.00],
]


def asked(where: list[float], label: str, **more: Any) -> types_pb2.Select:
    return types_pb2.Select(expected=types_pb2.Expected(box=where, label=label), **more)


def found_with(
    request: types_pb2.Select,
    *,
    kind: str = "iou",
    group_limit: int | None = None,
    best_class_only: bool = False,
    **settings: Any,
) -> Finding:
    candidates = Candidates(
        FRAME.to_network(torch.tensor(BOXES, dtype=torch.float32)),
        torch.tensor(SCORES),
        torch.zeros(len(BOXES), dtype=torch.int64),
    )
    detect = explainer_pb2.DetectRequest(select=request, nms=types_pb2.Nms(kind=kind, **settings))
    chosen = settings_of(detect, MODEL)
    entering = candidates
    if best_class_only:
        best = candidates.scores == candidates.scores.amax(1, keepdim=True)
        entering = replace(candidates, scores=torch.where(best, candidates.scores, -1.0))
    entered = replace(
        contenders(entering, FRAME, chosen, group_limit=group_limit), best_class_only=best_class_only
    )
    verdict = suppress(entered.boxes, entered.scores, entered.labels, chosen, explain=True)
    detections = detections_of(candidates, entered, verdict, FRAME, chosen)
    return Finding(candidates, entered, verdict, detections, FRAME, chosen)


def explain(request: types_pb2.Select, **settings: Any) -> tuple[types_pb2.WhyNot, Detections, Detections]:
    """The reason, its candidate, and the answer's detections."""
    found = found_with(request, **settings)
    answer = select(found.detections, request, LABELS, [])
    return (*why_not(found, answer, request, LABELS), answer)


class TestReasons:
    """Four candidates: alpha at the left (two and a twin), beta at the right."""

    def test_found(self) -> None:
        told, candidate, answer = explain(asked(LEFT, "alpha"))
        assert (told.reason, told.by_index, told.expected_iou) == ("found", 0, 1.0)
        assert candidate.candidates.tolist() == [0]
        assert answer.candidates.tolist() == [0, 3]
        assert told.candidate.label == "alpha"
        assert list(told.candidate.box) == LEFT
        assert not told.HasField("suppressed")

    def test_found_though_another_candidate_fits_better(self) -> None:
        """The answer's box has an IoU of 0.8 with what was expected: that is the object."""
        told, candidate, _ = explain(asked(LEFT_TOO, "alpha"))
        assert told.reason == "found"
        assert told.expected_iou == pytest.approx(0.8)
        assert candidate.candidates.tolist() == [0]

    def test_suppressed(self) -> None:
        """The answer's box has an IoU of 0.6 with the twin: its neighbour, which suppressed it."""
        told, candidate, answer = explain(asked(TWIN, "alpha"))
        assert (told.reason, told.by_index, told.expected_iou) == ("suppressed", 0, 1.0)
        assert candidate.candidates.tolist() == [2]
        assert answer.candidates.tolist()[told.by_index] == 0
        dropped = told.suppressed
        assert (dropped.rule, dropped.label, dropped.by_index) == ("iou", "alpha", 0)
        assert (dropped.score, dropped.iou) == pytest.approx((0.85, 0.6))
        assert not dropped.HasField("correlation")

    def test_suppressed_by_one_that_is_not_in_the_answer(self) -> None:
        told, _, answer = explain(asked(TWIN, "alpha", box=RIGHT))
        assert told.reason == "suppressed"
        assert answer.candidates.tolist() == [3]
        assert not told.HasField("by_index")
        assert not told.suppressed.HasField("by_index")

    def test_score(self) -> None:
        told, _, _ = explain(asked(RIGHT, "gamma", score_threshold=0.6))
        assert told.reason == "score"
        assert (told.candidate.score, told.score_threshold) == pytest.approx((0.2, 0.6))
        assert not told.by_label

    def test_outscored(self) -> None:
        told, candidate, answer = explain(asked(RIGHT, "alpha"))
        assert (told.reason, told.by_label) == ("outscored", "beta")
        assert (told.candidate.score, told.by_score, told.score_threshold) == pytest.approx((0.3, 0.5, 0.4))
        assert answer.labels.tolist()[told.by_index] == 1
        assert candidate.labels.tolist() == [0]  # its maps are those of the expected class

    def test_outscored_by_a_class_that_was_suppressed(self) -> None:
        """The twin's alpha went to the first box, which therefore stands for it."""
        told, _, answer = explain(asked(TWIN, "beta"))
        assert (told.reason, told.by_label, told.by_index) == ("outscored", "alpha", 0)
        assert answer.candidates.tolist()[0] == 0

    def test_outscored_where_a_candidate_enters_as_its_best_class_alone(self) -> None:
        """However low the threshold: DETR's queries answer with one class."""
        told, _, answer = explain(asked(RIGHT, "alpha", score_threshold=0.25), best_class_only=True)
        assert (told.reason, told.by_label) == ("outscored", "beta")
        assert answer.labels.tolist()[told.by_index] == 1

    def test_the_limit(self) -> None:
        told, _, answer = explain(asked(RIGHT, "beta", max_detections=1))
        assert (told.reason, len(answer)) == ("limit", 1)
        told, _, _ = explain(asked(RIGHT, "beta", max_detections=1, labels=["alpha", "beta"]))
        assert told.reason == "limit"
        told, _, _ = explain(asked(RIGHT, "beta", max_detections=1, labels=["beta"]))
        assert told.reason == "found"

    def test_the_limit_before_suppression(self) -> None:
        told, _, _ = explain(asked(RIGHT, "beta"), group_limit=3)
        assert told.reason == "limit"

    def test_filtered(self) -> None:
        for more in ({"labels": ["alpha"]}, {"indices": [0]}, {"box": LEFT}):
            told, _, answer = explain(asked(RIGHT, "beta", **more))
            assert told.reason == "filtered", more
            assert answer.candidates.tolist() == [0]

    def test_no_candidate(self) -> None:
        told, candidate, _ = explain(asked([90, 0, 100, 10], "alpha"))
        assert told.reason == "no_candidate"
        assert not told.HasField("candidate")
        assert not told.HasField("expected_iou")
        assert len(candidate) == 0

    def test_a_far_candidate_is_better_than_none(self) -> None:
        told, candidate, _ = explain(asked([70, 40, 90, 60], "beta"))
        assert told.expected_iou == pytest.approx(1 / 3)
        assert candidate.candidates.tolist() == [3]

    def test_the_index_follows_the_answers_order(self) -> None:
        told, _, answer = explain(asked(RIGHT, "beta", indices=[1, 0]))
        assert answer.candidates.tolist() == [3, 0]
        assert (told.reason, told.by_index) == ("found", 0)

    def test_a_box_partly_outside_is_cut(self) -> None:
        told, _, _ = explain(asked([-20, -20, 20, 20], "alpha"))
        assert (told.reason, told.expected_iou) == ("found", 1.0)

    @pytest.mark.parametrize("box", [[100, 0, 120, 20], [-9, 0, 0, 20], [0, 80, 9, 99]])
    def test_a_box_outside_is_an_error(self, box: list[float]) -> None:
        with pytest.raises(ContractError, match="outside the picture") as raised:
            explain(asked(box, "alpha"))
        assert (raised.value.type, raised.value.field) == ("invalid_argument", "select.expected.box")
        assert "100 x 80" in raised.value.expected


class TestSuppressed:
    """What `explain_suppressed` lists, of the same four candidates."""

    def listed(
        self, request: types_pb2.Select, **settings: Any
    ) -> tuple[list[types_pb2.SuppressedDetection], list[str]]:
        found, warnings = found_with(request, **settings), []
        answer = select(found.detections, request, LABELS, warnings)
        return suppressed_messages(found, answer, request, LABELS, warnings), warnings

    def test_best_first_with_reasons(self) -> None:
        dropped, warnings = self.listed(types_pb2.Select())
        assert [(list(d.box), d.label, d.by_index, d.rule) for d in dropped] == [
            (TWIN, "alpha", 0, "iou"),
            (LEFT_TOO, "alpha", 0, "iou"),
        ]
        assert [d.iou for d in dropped] == pytest.approx([0.6, 0.8])
        assert not warnings

    def test_the_index_survives_filters_and_another_order(self) -> None:
        dropped, _ = self.listed(types_pb2.Select(indices=[1, 0]))
        assert [d.by_index for d in dropped] == [1, 1]
        dropped, _ = self.listed(types_pb2.Select(indices=[1]))
        assert [d.HasField("by_index") for d in dropped] == [False, False]
        dropped, _ = self.listed(types_pb2.Select(max_detections=1, box=LEFT))
        assert [d.by_index for d in dropped] == [0, 0]

    def test_only_the_labels_asked_for(self) -> None:
        assert not self.listed(types_pb2.Select(labels=["beta"]))[0]
        assert len(self.listed(types_pb2.Select(labels=["beta", "alpha"]))[0]) == 2

    def test_a_long_list_is_cut_and_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("whybox.suppressed.MAX_SUPPRESSED", 1)
        dropped, warnings = self.listed(types_pb2.Select())
        assert [list(d.box) for d in dropped] == [TWIN]
        assert warnings == ["suppressed lists the best 1 of 2"]

    def test_none_drops_nothing(self) -> None:
        assert not self.listed(types_pb2.Select(), kind="none")[0]


PICTURE = encoded(random_image(seed=5))


@pytest.fixture(scope="module", params=["retinanet", "faster-rcnn"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("recipe")
    numbers = {"odam": {"corr_high": 0.3, "corr_low": 0.02, "iou_threshold": 0.3}}
    recipe = read_recipe(write_recipe(folder, request.param, nms=numbers))
    return Engine.load(recipe, folder / str(recipe.weights))


def answer_of(engine: Engine, operation: str, **fields: Any) -> Any:
    (reply,) = engine.answer([worker_pb2.WorkerRequest(**{operation: {"image": PICTURE, **fields}})])
    assert not reply.HasField("error"), reply.error
    return getattr(reply, operation)


class TestThroughTheEngine:
    """Requests, one- and two-stage."""

    def test_every_kind_lists_what_it_dropped(self, engine: Engine) -> None:
        for kind in ("iou", "soft", "odam"):
            nms = {"kind": kind, "explain_suppressed": True}
            if kind == "soft":
                nms |= {"sigma": 0.1, "final_threshold": 0.2}
            made = answer_of(engine, "detect", nms=nms)
            everything = answer_of(engine, "detect", nms={"kind": "none"}, select={"max_detections": 1000})
            assert len(made.suppressed) > 3, kind
            assert len(made.suppressed) <= len(everything.detections)
            scores = [dropped.score for dropped in made.suppressed]
            assert scores == sorted(scores, reverse=True)
            rules = {"iou": {"iou"}, "soft": {"soft"}, "odam": {"same_object", "same_evidence"}}[kind]
            for dropped in made.suppressed:
                assert dropped.rule in rules
                assert dropped.HasField("correlation") == (kind == "odam")
                if dropped.HasField("by_index"):
                    assert made.detections[dropped.by_index].label == dropped.label

    def test_odam_answers_alike_alone_in_a_batch_and_for_explain(self, engine: Engine) -> None:
        request = {"image": PICTURE, "nms": {"kind": "odam"}}
        alone = answer_of(engine, "detect", nms={"kind": "odam"})
        plain = worker_pb2.WorkerRequest(detect={"image": PICTURE})
        replies = engine.answer([plain, worker_pb2.WorkerRequest(detect=request)])
        together = replies[1].detect.detections
        assert [d.label for d in together] == [d.label for d in alone.detections]
        for one, other in zip(together, alone.detections, strict=True):
            assert list(one.box) == pytest.approx(list(other.box), abs=1e-3)
        assert [list(d.box) for d in replies[0].detect.detections] != [list(d.box) for d in together]
        made = answer_of(engine, "explain", nms={"kind": "odam"}, select={"max_detections": 2})
        assert list(made.detections) == list(alone.detections)[:2]

    def test_the_recipes_numbers_are_the_defaults(self, engine: Engine) -> None:
        described = {nms.kind: nms for nms in engine.model.nms}
        assert described["odam"].corr_high == pytest.approx(0.3)
        assert described["soft"].sigma == pytest.approx(0.5)
        own = answer_of(engine, "detect", nms={"kind": "odam"}).detections
        named = {"kind": "odam", "corr_high": 0.3, "corr_low": 0.02, "iou_threshold": 0.3}
        assert answer_of(engine, "detect", nms=named).detections == own
        assert answer_of(engine, "detect", nms={**named, "corr_high": 1.0}).detections != own

    def test_thresholds_of_one_are_greedy(self, engine: Engine) -> None:
        greedy = answer_of(engine, "detect", nms={"kind": "iou", "iou_threshold": 0.3})
        odam = {"kind": "odam", "iou_threshold": 0.3, "corr_high": 1, "corr_low": -1}
        assert answer_of(engine, "detect", nms=odam).detections == greedy.detections

    def test_the_maps_of_what_was_missed(self, engine: Engine) -> None:
        """A threshold over every score: the maps are those of the same candidate where it is found."""
        (best,) = answer_of(engine, "detect", select={"max_detections": 1}).detections
        expected = {"box": list(best.box), "label": best.label}
        strict = {"score_threshold": 1.0, "expected": expected}
        made = answer_of(
            engine, "explain", select=strict, targets=["class", "x1"], output={"encoding": "f32"}
        )
        assert not made.detections
        assert not made.heat_maps
        told = made.why_not
        assert (told.reason, told.score_threshold) == ("score", 1.0)
        assert told.candidate.score == pytest.approx(best.score)
        found = answer_of(
            engine,
            "explain",
            select={"max_detections": 1},
            targets=["class", "x1"],
            output={"encoding": "f32"},
        )
        assert [m.target for m in told.heat_maps] == ["class", "x1"]
        assert list(told.heat_maps) == list(found.heat_maps)
        assert answer_of(engine, "detect", select=strict).why_not.reason == "score"

    def test_the_expected_class_is_explained_not_the_winning_one(self, engine: Engine) -> None:
        (best,) = answer_of(engine, "detect", select={"max_detections": 1}).detections
        other = next(label for label in LABELS if label != best.label)
        made = answer_of(
            engine,
            "explain",
            select={"score_threshold": 1.0, "expected": {"box": list(best.box), "label": other}},
            targets=["class", f"class:{other}"],
        )
        own, named = made.why_not.heat_maps
        assert own.data == named.data
        assert made.why_not.candidate.label == other

    def test_nothing_near_has_no_maps(self, engine: Engine) -> None:
        tiny = {"box": [0, 0, 0.01, 0.01], "label": "beta"}
        made = answer_of(engine, "explain", select={"expected": tiny})
        assert made.why_not.reason == "no_candidate"
        assert not made.why_not.heat_maps
        assert not made.heat_maps
        assert made.detections  # the answer itself is as ever

    def test_a_plan_is_for_what_was_missed(self, engine: Engine) -> None:
        sampling = next(method.name for method in engine.model.methods if method.sampling)
        (best,) = answer_of(engine, "detect", select={"max_detections": 1}).detections
        select = {"score_threshold": 1.0, "expected": {"box": list(best.box), "label": best.label}}
        plan = answer_of(engine, "plan", method=sampling, select=select, budget={"samples": 2})
        assert plan.answer.why_not.reason == "score"
        assert not plan.answer.detections
        assert (plan.samples, bool(plan.state)) == (2, True)

    def test_a_box_outside_the_picture_is_an_error(self, engine: Engine) -> None:
        request = {"image": PICTURE, "select": {"expected": {"box": [500, 0, 600, 9], "label": "beta"}}}
        (reply,) = engine.answer([worker_pb2.WorkerRequest(detect=request)])
        assert (reply.error.type, reply.error.field) == ("invalid_argument", "select.expected.box")


def test_bad_numbers_in_a_recipe_are_refused(tmp_path: Any) -> None:
    for numbers, message in (
        ({"odam": {"corr_high": 2}}, r"nms.odam.corr_high: expected at least -1 and at most 1; got 2"),
        ({"odam": {"sigma": 1}}, "nms.odam: expected iou_threshold and corr_high and corr_low; got 'sigma'"),
        ({"soft": {"sigma": "wide"}}, "nms.soft.sigma: expected a number; got 'wide'"),
        ({"soft": {"sigma": 0}}, "nms.soft.sigma: expected above 0"),
        ({"oadm": {}}, "nms: expected default, iou, soft, odam, none; got 'oadm'"),
        ({"default": "best"}, "nms.default: expected one of iou, soft, odam, none; got 'best'"),
        ({"iou": 0.5}, "nms.iou: expected a mapping; got 0.5"),
    ):
        recipe = read_recipe(write_recipe(tmp_path, "retinanet", nms=numbers))
        with pytest.raises(ValueError, match=message):
            Engine.load(recipe, tmp_path / str(recipe.weights))


def test_settings_come_from_the_request_then_the_model() -> None:
    model = types_pb2.Model(
        score_threshold=0.25,
        default_nms="odam",
        nms=[types_pb2.Nms(kind="odam", iou_threshold=0.5, corr_high=0.75, corr_low=0.25)],
    )
    request = explainer_pb2.DetectRequest(nms=types_pb2.Nms(corr_low=0.125))
    assert settings_of(request, model) == PostProcessing(
        0.25, 100, "odam", 0.5, corr_high=0.75, corr_low=0.125
    )
