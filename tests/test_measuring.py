"""Maps measured by a worker: the detector looks again, and the truth is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from builders import LABELS, encoded, random_image, write_recipe
from whybox.detectors.base import Detections, Detector, PostProcessing
from whybox.engine import Engine
from whybox.measuring import Measuring, truth_of, union
from whybox.methods.base import Map
from whybox.metrics.measures import MEASURES
from whybox.patience import NobodyWaitsError, Patience
from whybox.recipe import read_recipe
from whybox_proto import maps, rle
from whybox_proto.checks import check_evaluate, check_explain
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

PICTURE = random_image(seed=5)
IMAGE = encoded(PICTURE)
HEIGHT, WIDTH = 128, 160


class Lamp(Detector):
    """Finds one object in a fixed box, of class ``on``, whose score is the box's mean brightness.

    That of ``off`` is the rest of it. Below a brightness of 0.05 it finds nothing.
    """

    labels = ("on", "off")
    defaults = PostProcessing(0.5, 10)
    BOX = (4.0, 2.0, 12.0, 8.0)

    def __init__(self) -> None:
        self.sizes: list[int] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, device: torch.device | str) -> Lamp:
        raise NotImplementedError(device)

    def score(self, image: Tensor) -> float:
        return float(image[2:8, 4:12].float().mean()) / 255

    def detect(self, images: Sequence[Tensor], settings: PostProcessing | None = None) -> list[Detections]:
        assert settings is not None
        self.sizes.append(len(images))
        answers = []
        for image in images:
            score = self.score(image)
            kept = score > max(0.05, settings.score_threshold)
            answers.append(
                Detections(
                    torch.tensor([self.BOX])[: int(kept)],
                    torch.tensor([0])[: int(kept)],
                    torch.tensor([score])[: int(kept)],
                    torch.tensor([[score, 1 - score]])[: int(kept)],
                    torch.tensor([-1])[: int(kept)],
                )
            )
        return answers


def lamp_picture() -> Tensor:
    picture = torch.full((12, 16, 3), 200, dtype=torch.uint8)
    picture[:, :, 1] = 100
    return picture


def slow_curve(order: Sequence[int], picture: Tensor, fill: Tensor, *, delete: bool) -> float:
    """Deletion or insertion, pixel by pixel."""
    lamp, scores = Lamp(), []
    shares = [(k / 20) ** 2 for k in range(21)]
    for share in shares:
        changed = picture.clone() if delete else torch.zeros_like(picture)
        for position in order[: round(share * len(order))]:
            row, column = divmod(position, picture.shape[1])
            changed[row, column] = fill[row, column] if delete else picture[row, column]
        score = lamp.score(changed)
        scores.append(score if score > 0.05 else 0.0)
    whole = lamp.score(picture)
    pairs = zip(shares, shares[1:], scores, scores[1:], strict=False)
    return sum((right - left) * (low + high) / 2 for left, right, low, high in pairs) / whole


class TestFollowing:
    def test_deletion_and_insertion_pixel_by_pixel(self) -> None:
        picture = lamp_picture()
        values = torch.from_numpy(np.random.default_rng(3).random((12, 16), np.float32))  # no two are equal
        made = Map(values, (0, 0, 16, 12))
        taken = Measuring(Lamp(), 2**30).take(made, "class", Lamp.BOX, 0, picture, seed=7)
        order = values.flatten().argsort(descending=True).tolist()
        random = np.random.default_rng([7, 0])
        random.permutation(np.arange(12 * 16, dtype=np.int32))  # drawn first, for equal pixels
        fill = torch.from_numpy(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        assert taken["deletion"] == pytest.approx(slow_curve(order, picture, fill, delete=True))
        assert taken["insertion"] == pytest.approx(slow_curve(order, picture, picture, delete=False))

    def test_a_right_map_is_better_than_a_wrong_one(self) -> None:
        right = torch.zeros(12, 16)
        right[2:8, 4:12] = 1
        measuring = Measuring(Lamp(), 2**30)
        good, bad = (
            measuring.take(Map(m, (0, 0, 16, 12)), "class", Lamp.BOX, 0, lamp_picture())
            for m in (right, 1 - right)
        )
        assert good["insertion"] > 0.8 > 0.3 > bad["insertion"]
        assert good["compactness"] < bad["compactness"]

    def test_the_score_of_another_class(self) -> None:
        """Of ``class:off`` the score rises where that of ``on`` falls, as long as the object is found."""
        right = torch.zeros(12, 16)
        right[2:8, 4:12] = 1
        made, measuring = Map(right, (0, 0, 16, 12)), Measuring(Lamp(), 2**30)
        assert measuring.scores(Lamp.BOX, 0, [lamp_picture()]) == [pytest.approx(500 / 3 / 255)]
        own = measuring.take(made, "class", Lamp.BOX, 0, lamp_picture(), names=["deletion"])
        other = measuring.take(made, "class:off", Lamp.BOX, 0, lamp_picture(), names=["deletion"])
        assert own["deletion"] < 1 < other["deletion"]

    def test_what_is_not_found_has_no_figures(self) -> None:
        made = Map(torch.ones(2, 2), (0, 0, 16, 12))
        measuring = Measuring(Lamp(), 2**30)
        for box, label in (((0.0, 0.0, 4.0, 2.0), 0), (Lamp.BOX, 1)):  # elsewhere, and of another class
            assert "deletion" not in measuring.take(made, "class", box, label, lamp_picture())
        dark = torch.zeros(12, 16, 3, dtype=torch.uint8)
        assert "insertion" not in measuring.take(made, "class", Lamp.BOX, 0, dark)

    def test_a_side_is_not_followed(self) -> None:
        lamp = Lamp()
        taken = Measuring(lamp, 2**30).take(
            Map(torch.ones(2, 2), (0, 0, 16, 12)), "x1", Lamp.BOX, 0, lamp_picture()
        )
        assert not lamp.sizes
        assert not {"deletion", "insertion"} & set(taken)

    def test_nobody_waits(self) -> None:
        lamp = Lamp()
        with pytest.raises(NobodyWaitsError):
            Measuring(lamp, 2**30).take(
                Map(torch.ones(2, 2), (0, 0, 16, 12)),
                "class",
                Lamp.BOX,
                0,
                lamp_picture(),
                patience=Patience(deadline=time.time() - 1),
            )
        assert not lamp.sizes


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("recipe")
    recipe = read_recipe(write_recipe(folder, "retinanet"))
    return Engine.load(recipe, folder / str(recipe.weights))


@pytest.fixture(scope="module")
def explained(engine: Engine) -> explainer_pb2.ExplainResponse:
    request = explainer_pb2.ExplainRequest(image=IMAGE, targets=["class", "x1"])
    request.select.max_detections = 2
    request.output.encoding = "f32"
    (reply,) = engine.answer([worker_pb2.WorkerRequest(explain=request)])
    assert not reply.HasField("error"), reply.error
    return reply.explain


def truth_for(detection: types_pb2.Detection) -> types_pb2.Layout:
    """The detection's own box, and another object beside it."""
    layout = types_pb2.Layout(width=WIDTH, height=HEIGHT)
    x1, y1, x2, y2 = np.clip(np.rint(list(detection.box)), 0, [WIDTH, HEIGHT] * 2).astype(int).tolist()
    own, other = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
    own[y1:y2, x1:x2] = True
    other[:30, :40] = True
    evidence = own.copy()
    evidence[(y1 + y2) // 2 :] = False
    layout.objects.add(label="beta", box=[0, 0, 40, 30], mask=rle.encode(other))
    layout.objects.add(
        label=detection.label, box=[x1, y1, x2, y2], mask=rle.encode(own), evidence=rle.encode(evidence)
    )
    return layout


def measure_request(
    explained: explainer_pb2.ExplainResponse, position: int = 0, **fields: object
) -> worker_pb2.MeasureRequest:
    heat_map = explained.heat_maps[position]
    detection = explained.detections[heat_map.detection_index]
    return worker_pb2.MeasureRequest(image=IMAGE, detection=detection, heat_map=heat_map, **fields)


def ask(engine: Engine, request: worker_pb2.MeasureRequest) -> worker_pb2.WorkerReply:
    (reply,) = engine.answer([worker_pb2.WorkerRequest(measure=request, request_id="r")])
    return reply


class TestMeasureRequests:
    def test_without_truth(self, engine: Engine, explained: explainer_pb2.ExplainResponse) -> None:
        reply = ask(engine, measure_request(explained))
        assert not reply.HasField("error"), reply.error
        assert (reply.measure.detection_index, reply.measure.target) == (0, "class")
        assert set(reply.measure.values) == {"deletion", "insertion", "compactness", "sparsity"}
        second = ask(engine, measure_request(explained, 3)).measure
        assert (second.detection_index, second.target) == (1, "x1")
        assert set(second.values) == {"compactness", "sparsity"}

    def test_with_truth(self, engine: Engine, explained: explainer_pb2.ExplainResponse) -> None:
        truth = truth_for(explained.detections[0])
        values = ask(engine, measure_request(explained, truth=truth)).measure.values
        assert set(values) == set(MEASURES) - {"own_half", "iof_own_third", "iof_middle_third"}
        assert values["energy_box"] == pytest.approx(values["energy_mask"], abs=1e-5)
        made = explained.heat_maps[0]
        whole = maps.enlarge(maps.decode(made), (*made.region,), WIDTH, HEIGHT)
        mask = rle.decode(truth.objects[1].mask, HEIGHT, WIDTH)
        assert values["energy_mask"] == pytest.approx(float(whole[mask].sum() / whole.sum()), rel=1e-4)
        values = ask(engine, measure_request(explained, 1, truth=truth)).measure.values
        assert {"iof_own_third", "iof_middle_third"} <= set(values)

    def test_those_named(self, engine: Engine, explained: explainer_pb2.ExplainResponse) -> None:
        truth = truth_for(explained.detections[0])
        asked = measure_request(explained, truth=truth, measures=["energy_box", "compactness"])
        assert set(ask(engine, asked).measure.values) == {"energy_box", "compactness"}

    def test_an_object_of_another_class_is_not_its_own(
        self, engine: Engine, explained: explainer_pb2.ExplainResponse
    ) -> None:
        truth = truth_for(explained.detections[0])
        truth.objects[1].label = next(label for label in LABELS if label != explained.detections[0].label)
        values = ask(engine, measure_request(explained, truth=truth)).measure.values
        assert set(values) == {"deletion", "insertion", "compactness", "sparsity"}

    def test_the_same_seed_gives_the_same_figures(
        self, engine: Engine, explained: explainer_pb2.ExplainResponse
    ) -> None:
        first, again, other = (
            ask(engine, measure_request(explained, seed=seed, measures=["deletion"])).measure.values[
                "deletion"
            ]
            for seed in (1, 1, 2)
        )
        assert first == again != other

    def test_many_at_once_and_one_that_is_wrong(
        self, engine: Engine, explained: explainer_pb2.ExplainResponse
    ) -> None:
        right = measure_request(explained, measures=["compactness"])
        wrong = measure_request(explained, measures=["compact"])
        requests = [worker_pb2.WorkerRequest(measure=m) for m in (right, wrong, right)]
        replies = engine.answer(requests)
        assert [reply.WhichOneof("result") for reply in replies] == ["measure", "error", "measure"]
        assert replies[0] == replies[2]

    def test_weights_and_answers_are_as_before(
        self, engine: Engine, explained: explainer_pb2.ExplainResponse
    ) -> None:
        ask(engine, measure_request(explained))
        request = explainer_pb2.ExplainRequest(image=IMAGE, targets=["class", "x1"])
        request.select.max_detections = 2
        request.output.encoding = "f32"
        (reply,) = engine.answer([worker_pb2.WorkerRequest(explain=request)])
        assert list(reply.explain.heat_maps) == list(explained.heat_maps)

    @pytest.mark.parametrize(
        ("change", "type", "field"),
        [
            (lambda m: m.measures.append("odi"), "invalid_argument", "measures[0]"),
            (lambda m: m.measures.append("vea"), "invalid_argument", "truth"),
            (lambda m: m.detection.box.__setitem__(0, float("nan")), "invalid_argument", "detection.box"),
            (lambda m: m.detection.ClearField("box"), "invalid_argument", "detection.box"),
            (lambda m: setattr(m.detection, "label", "omega"), "unknown_label", "detection.label"),
            (lambda m: setattr(m.heat_map, "data", b"123"), "invalid_request", "heat_map"),
            (lambda m: setattr(m.heat_map, "width", 10**6), "invalid_request", "heat_map"),
            (lambda m: m.heat_map.ClearField("region"), "invalid_request", "heat_map"),
            (lambda m: setattr(m.heat_map, "encoding", "u16"), "invalid_request", "heat_map"),
            (lambda m: setattr(m.heat_map, "data", b"\0\0\xc0\x7f" * 4), "invalid_request", "heat_map"),
            (lambda m: setattr(m.heat_map, "target", "class:omega"), "unknown_label", "heat_map.target"),
            (lambda m: setattr(m.heat_map, "target", "x1:beta"), "unknown_target", "heat_map.target"),
            (lambda m: setattr(m.heat_map, "target", ""), "unknown_target", "heat_map.target"),
            (lambda m: setattr(m, "image", b""), "missing_image", "image"),
            (lambda m: setattr(m, "image", b"GIF"), "invalid_image", "image"),
        ],
    )
    def test_bad_requests(
        self,
        engine: Engine,
        explained: explainer_pb2.ExplainResponse,
        change: Callable[[worker_pb2.MeasureRequest], object],
        type: str,
        field: str,
    ) -> None:
        request = worker_pb2.MeasureRequest()
        request.CopyFrom(measure_request(explained))
        if request.heat_map.width * request.heat_map.height != 4:
            request.heat_map.width = request.heat_map.height = 2
            request.heat_map.data = request.heat_map.data[:16]
        change(request)
        reply = ask(engine, request)
        assert (reply.error.type, reply.error.field) == (type, field), reply

    def test_a_truth_of_another_size(self, engine: Engine, explained: explainer_pb2.ExplainResponse) -> None:
        truth = types_pb2.Layout(width=HEIGHT, height=WIDTH)
        truth.objects.add(label="beta", box=[0, 0, 40, 30])
        error = ask(engine, measure_request(explained, truth=truth)).error
        assert (error.type, error.field) == ("invalid_argument", "truth")
        assert (error.expected, error.got) == (
            "width 160 and height 128, those of the upright picture",
            "width 128 and height 160",
        )

    def test_a_detection_without_an_area(
        self, engine: Engine, explained: explainer_pb2.ExplainResponse
    ) -> None:
        request = worker_pb2.MeasureRequest()
        request.CopyFrom(measure_request(explained, truth=truth_for(explained.detections[0])))
        request.detection.box[:] = [20, 20, 20, 20]
        reply = ask(engine, request)
        assert not reply.HasField("error"), reply.error
        assert set(reply.measure.values) == {"sparsity"}

    def test_a_passed_deadline(self, engine: Engine, explained: explainer_pb2.ExplainResponse) -> None:
        late = worker_pb2.WorkerRequest(measure=measure_request(explained), deadline=time.time() - 1)
        (reply,) = engine.answer([late])
        assert reply.error.type == "deadline_exceeded"


class TestEvaluateInProcess:
    def test_the_maps_of_an_explanation_are_measured(
        self, engine: Engine, explained: explainer_pb2.ExplainResponse
    ) -> None:
        request = explainer_pb2.ExplainRequest(image=IMAGE, targets=["class", "x1"], evaluate=True, seed=3)
        request.select.max_detections = 2
        (reply,) = engine.answer([worker_pb2.WorkerRequest(explain=request)])
        assert not reply.HasField("error"), reply.error
        assert "measure" in {stage.name for stage in reply.explain.stages}
        for position, heat_map in enumerate(reply.explain.heat_maps):
            alone = ask(engine, measure_request(explained, position, seed=3)).measure
            assert dict(heat_map.faithfulness) == pytest.approx(dict(alone.values))
        assert "deletion" in reply.explain.heat_maps[0].faithfulness
        assert "deletion" not in reply.explain.heat_maps[1].faithfulness

    def test_not_asked_for(self, explained: explainer_pb2.ExplainResponse) -> None:
        assert not any(heat_map.faithfulness for heat_map in explained.heat_maps)


class TestTruth:
    def test_the_best_object_of_the_label(self) -> None:
        layout = types_pb2.Layout(width=20, height=10)
        masks = [np.zeros((10, 20), bool) for _ in range(3)]
        for mask, (x1, x2) in zip(masks, ((0, 8), (1, 10), (12, 20)), strict=True):
            mask[:, x1:x2] = True
            layout.objects.add(label="beta", box=[x1, 0, x2, 10], mask=rle.encode(mask))
        truth = truth_of(layout, (1.0, 0.0, 9.5, 10.0), "beta", Patience())
        assert truth is not None
        assert truth.box == (1, 0, 10, 10)
        assert np.array_equal(truth.mask, masks[1])
        assert truth.evidence is None
        assert np.array_equal(truth.other_boxes, masks[0] | masks[2])
        assert np.array_equal(truth.other_masks, masks[0] | masks[2])
        assert truth_of(layout, (1.0, 0.0, 9.5, 10.0), "alpha", Patience()) is None
        assert truth_of(layout, (4.0, 0.0, 16.0, 10.0), "beta", Patience()) is None  # too little of any
        layout.objects[2].mask = ""
        truth = truth_of(layout, (1.0, 0.0, 9.5, 10.0), "beta", Patience())
        assert truth is not None
        assert truth.other_masks is None

    def test_union(self) -> None:
        left, right = np.array([[True, False]]), np.array([[False, True]])
        assert union([]) is None
        assert union([left, None]) is None
        assert np.array_equal(union([left, right]), left | right)


def evaluate_request(**truth: object) -> explainer_pb2.EvaluateRequest:
    layout = types_pb2.Layout(**({"width": WIDTH, "height": HEIGHT} | truth))
    return explainer_pb2.EvaluateRequest(explain=explainer_pb2.ExplainRequest(image=IMAGE), truth=layout)


def thing(**fields: object) -> types_pb2.LayoutObject:
    return types_pb2.LayoutObject(**({"label": "beta", "box": [0, 0, 40, 30]} | fields))


SMALL_MASK = rle.encode(np.ones((10, 10), bool))
NAN = float("nan")


class TestChecks:
    def test_what_is_right(self, engine: Engine) -> None:
        mask = rle.encode(np.ones((HEIGHT, WIDTH), bool))
        request = evaluate_request(objects=[thing(mask=mask), thing(mask=mask, evidence=mask)])
        request.measures.extend(["vea", "deletion", "odi_mask"])
        check_evaluate(request, engine.model)
        check_evaluate(explainer_pb2.EvaluateRequest(explain={"image": IMAGE}), engine.model)

    @pytest.mark.parametrize(
        ("request_", "type", "field"),
        [
            (evaluate_request(), "invalid_argument", "truth.objects"),
            (evaluate_request(objects=[thing()], width=0), "invalid_argument", "truth.width"),
            (evaluate_request(objects=[thing()], height=10**6), "invalid_argument", "truth.height"),
            (
                evaluate_request(objects=[thing(), thing(label="omega")]),
                "unknown_label",
                "truth.objects[1].label",
            ),
            (evaluate_request(objects=[thing(box=[])]), "invalid_argument", "truth.objects[0].box"),
            (
                evaluate_request(objects=[thing(box=[0, 0, NAN, 9])]),
                "invalid_argument",
                "truth.objects[0].box",
            ),
            (evaluate_request(objects=[thing(box=[9, 0, 3, 9])]), "invalid_argument", "truth.objects[0].box"),
            (
                evaluate_request(objects=[thing(box=[-1, 0, 3, 9])]),
                "invalid_argument",
                "truth.objects[0].box",
            ),
            (
                evaluate_request(objects=[thing(box=[0, 0, 3, 129])]),
                "invalid_argument",
                "truth.objects[0].box",
            ),
            (evaluate_request(objects=[thing(mask=SMALL_MASK)]), "invalid_argument", "truth.objects[0].mask"),
            (evaluate_request(objects=[thing(mask="ä")]), "invalid_argument", "truth.objects[0].mask"),
            (
                evaluate_request(objects=[thing(evidence=SMALL_MASK)]),
                "invalid_argument",
                "truth.objects[0].evidence",
            ),
        ],
    )
    def test_a_wrong_truth(
        self, engine: Engine, request_: explainer_pb2.EvaluateRequest, type: str, field: str
    ) -> None:
        with pytest.raises(ContractError) as caught:
            check_evaluate(request_, engine.model)
        assert (caught.value.type, caught.value.field) == (type, field)
        assert caught.value.expected
        assert caught.value.got

    def test_a_mask_of_another_size_says_both(self, engine: Engine) -> None:
        with pytest.raises(ContractError, match="100 pixels; an image of 160 x 128 has 20480"):
            check_evaluate(evaluate_request(objects=[thing(mask=SMALL_MASK)]), engine.model)

    @pytest.mark.parametrize(
        ("measures", "field"),
        [
            (["deletions"], "measures[0]"),
            (["deletion", "insertion", "deletion"], "measures[2]"),
            (["deletion", "vea"], "truth.objects[0].mask"),
            (["evidence_ratio"], "truth.objects[0].evidence"),
        ],
    )
    def test_wrong_measures(self, engine: Engine, measures: list[str], field: str) -> None:
        request = evaluate_request(objects=[thing()])
        request.measures.extend(measures)
        with pytest.raises(ContractError) as caught:
            check_evaluate(request, engine.model)
        assert (caught.value.type, caught.value.field) == ("invalid_argument", field)

    def test_a_measure_that_needs_truth_without_it(self, engine: Engine) -> None:
        request = explainer_pb2.EvaluateRequest(explain={"image": IMAGE}, measures=["energy_box"])
        with pytest.raises(ContractError, match="energy_box needs the objects that are really there"):
            check_evaluate(request, engine.model)

    def test_what_is_wrong_with_the_explanation(self, engine: Engine) -> None:
        request = explainer_pb2.EvaluateRequest(explain={"image": IMAGE, "method": "odamm"})
        with pytest.raises(ContractError) as caught:
            check_evaluate(request, engine.model)
        assert (caught.value.type, caught.value.field) == ("unknown_method", "explain.method")
        with pytest.raises(ContractError) as caught:
            check_evaluate(explainer_pb2.EvaluateRequest(), engine.model)
        assert (caught.value.type, caught.value.field) == ("missing_image", "explain.image")

    def test_what_was_missed_is_not_measured(self, engine: Engine) -> None:
        expected = {"box": [0, 0, 40, 30], "label": "beta"}
        explain = {"image": IMAGE, "select": {"expected": expected}}
        with pytest.raises(ContractError, match="no detection") as caught:
            check_evaluate(explainer_pb2.EvaluateRequest(explain=explain), engine.model)
        assert caught.value.field == "explain.select.expected"
        with pytest.raises(ContractError, match="no detection") as caught:
            check_explain(explainer_pb2.ExplainRequest(**explain, evaluate=True), engine.model)
        assert caught.value.field == "select.expected"
        assert caught.value.got == "beta in [0.0, 0.0, 40.0, 30.0]"

    def test_the_description_tells_of_the_measures(self, engine: Engine) -> None:
        described = {measure.name: measure for measure in engine.model.measures}
        assert list(described) == list(MEASURES)
        assert described["odi_mask"].needs == "mask"
        assert described["deletion"].better == "lower"
        assert not described["insertion"].needs
