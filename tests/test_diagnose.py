"""`whybox diagnose`: a planted shift is found, recorded, described and warned of; none is made up."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from builders import encoded, random_image, write_recipe
from region_detector import RegionDetector, Thing
from whybox.diagnosis import misleads, shift_warning
from whybox.engine import Engine
from whybox.evaluation import diagnose as work
from whybox.evaluation.bootstrap import median_interval
from whybox.evaluation.cases import Case
from whybox.evaluation.diagnose import Diagnosis, Moved, Options, changes, table, verdict
from whybox.methods.base import Map
from whybox.recipe import Recipe, RecipeError, read_recipe
from whybox_client import models
from whybox_client.cli import main
from whybox_proto.v1 import explainer_pb2, worker_pb2

STORE = Path(__file__).parent.parent / "model_store"
BOX = (4.0, 4.0, 60.0, 44.0)
PICTURE = torch.full((48, 64, 3), 255, dtype=torch.uint8)
OPTIONS = Options(Path("unused"), layers=("level", "cells"), samples=300)
RECIPE = Recipe(name="region", family="toys", architecture="region", labels=("class 0", "class 1"))
SHIFT: dict[str, Any] = {
    "median": 0.5,
    "low": 0.4,
    "high": 0.6,
    "noise": 0.05,
    "limit": 0.25,
    "above": 0.9,
    "x": 0.1,
    "y": -0.2,
    "inward": 0.3,
    "room": 0.4,
    "measured_on": "30 detections",
}


def region_engine(planted: tuple[int, int], recipe: Recipe = RECIPE) -> Engine:
    """A detector that looks at one place, whose level is displaced by pixels, and whose stage is not."""
    return Engine(recipe, RegionDetector(Thing(BOX, (22, 14, 30, 22), other=0.5), shift=planted))


def region_cases(engine: Engine, pictures: int = 3) -> Iterator[Case]:
    for number in range(pictures):
        ((_, batch),) = engine.detector.prepare([PICTURE])
        forward = engine.detector.forward(batch, keep=True)
        found = engine.detector.detections(forward, 0, engine.detector.defaults)[:1]
        yield Case(number, PICTURE, forward, found, (None,), (None,), (0,))


def explain(engine: Engine, picture: torch.Tensor, **asked: object) -> explainer_pb2.ExplainResponse:
    request = explainer_pb2.ExplainRequest(image=encoded(picture), **asked)
    if any(method.name == request.method and method.sampling for method in engine.model.methods):
        request.budget.samples = 8
    (reply,) = engine.answer([worker_pb2.WorkerRequest(explain=request)])
    assert not reply.HasField("error"), reply.error
    return reply.explain


class TestPlantedShift:
    def test_it_is_found_recorded_described_and_warned_of(self) -> None:
        engine = region_engine((20, 0))
        found = work.diagnose(engine, region_cases(engine), OPTIONS)
        level = found.median(found.moved["level"])
        assert level.mean == pytest.approx(20 / 56, abs=0.05)
        assert level.low <= level.mean <= level.high
        assert found.mean(found.moved["level"], "x").mean == pytest.approx(20 / 56, abs=0.05)
        assert found.mean(found.moved["level"], "y").mean == pytest.approx(0, abs=0.05)
        assert found.median(found.moved["cells"]).mean < 0.02
        assert found.median(found.noise).mean < 0.1
        assert found.misleads("level")
        assert not found.misleads("cells")
        assert "level: 0.3" in verdict(found)
        assert "may mislead" in verdict(found).splitlines()[0]
        assert "may mislead" not in verdict(found).splitlines()[1]
        assert "none above the limit can be seen" in verdict(found).splitlines()[2]
        assert found.room == pytest.approx(math.hypot(6 / 56, 6 / 40), abs=0.05)  # (26, 18) against (32, 24)
        assert [line.split(" | ")[0].strip("| ") for line in table(found).splitlines()[2:]] == [
            "level",
            "cells",
            "noise: other masks on the image",
        ]

        recorded = changes(found, "pictures")["diagnosis"]
        again = region_engine((20, 0), replace(RECIPE, diagnosis=recorded))
        level_shift, cells_shift = again.model.spatial_shifts
        assert (level_shift.layer, level_shift.misleads) == ("level", True)
        assert (cells_shift.layer, cells_shift.misleads) == ("cells", False)
        assert level_shift.median == pytest.approx(level.mean, abs=1e-4)
        assert level_shift.measured_on == "3 detections in 3 pictures, 300 masks of 8 cells"
        (warning,) = explain(again, PICTURE, method="d_rise", layer="level").warnings
        assert f"by {level.mean:.2f} of the box between the image and level" in warning
        assert "d_rise on image" in warning
        for layer in ("image", "cells"):
            assert not explain(again, PICTURE, method="d_rise", layer=layer).warnings
        assert not explain(again, PICTURE, method="mask_out").warnings

    def test_a_plan_is_warned_of_too_and_an_answer_without_maps_is_not(self) -> None:
        engine = region_engine((20, 0), replace(RECIPE, diagnosis={"spatial_shift": {"level": SHIFT}}))
        request = explainer_pb2.ExplainRequest(image=encoded(PICTURE), method="d_rise", layer="level")
        (reply,) = engine.answer([worker_pb2.WorkerRequest(plan=request)])
        assert "0.50 of the box" in reply.plan.answer.warnings[0]
        unlikely = {"labels": ["class 1"], "score_threshold": 0.9}
        nothing = explain(engine, PICTURE, method="d_rise", layer="level", select=unlikely)
        assert not nothing.detections
        assert not nothing.warnings

    def test_nothing_is_found_where_nothing_moves(self) -> None:
        engine = region_engine((0, 0))
        found = work.diagnose(engine, region_cases(engine), OPTIONS)
        assert found.median(found.moved["level"]).mean < 0.02
        assert not found.misleads("level")
        assert "0.25" in verdict(found)
        again = region_engine((0, 0), replace(RECIPE, diagnosis=changes(found, "pictures")["diagnosis"]))
        assert not again.model.spatial_shifts[0].misleads
        assert not explain(again, PICTURE, method="d_rise", layer="level").warnings

    def test_one_picture_is_too_few(self) -> None:
        engine = region_engine((0, 0))
        with pytest.raises(ValueError, match=r"two pictures or more; got them in 1"):
            work.diagnose(engine, region_cases(engine, 1), OPTIONS)

    def test_boxes_below_a_cell_of_a_mask_are_left_out(self) -> None:
        engine = region_engine((0, 0))
        small = [
            replace(case, found=replace(case.found, boxes=torch.tensor([[4.0, 4, 60, 9]])))
            for case in region_cases(engine)
        ]
        with pytest.raises(ValueError, match="got them in 0"):
            work.diagnose(engine, iter([*small, None]), OPTIONS)


def spot(x: int, y: int) -> Map:
    values = torch.zeros(10, 10)
    values[y, x] = 1
    return Map(values, (0, 0, 100, 100))


class TestArithmetic:
    def test_inward_is_towards_the_middle_of_the_box(self) -> None:
        box = (5.0, 5.0, 85.0, 45.0)  # its middle is (45, 25), the centre of the cell (4, 2)
        assert Moved.between(spot(0, 2), spot(2, 2), box) == Moved(0.25, 0.0, 0.25, 0.5)
        assert Moved.between(spot(2, 2), spot(0, 2), box) == Moved(-0.25, 0.0, -0.25, 0.25)
        assert Moved.between(spot(0, 2), spot(0, 3), box) == Moved(0.0, 0.25, 0.0, 0.5)
        assert Moved.between(spot(4, 2), spot(6, 2), box) == Moved(0.25, 0.0, 0.0, 0.0)
        assert Moved.between(spot(0, 0), spot(4, 2), box).distance == pytest.approx(math.sqrt(0.5))

    def test_a_median_has_an_interval_over_pictures(self) -> None:
        values, groups = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0, 0, 1, 1, 2, 2]
        low, high = median_interval(values, groups)
        assert (low, high) == pytest.approx((0.15, 0.55))  # a picture drawn three times has its own median
        assert median_interval([0.4] * 6, groups) == (0.4, 0.4)
        assert all(math.isnan(end) for end in median_interval(values, [7] * 6))

    @pytest.mark.parametrize(
        ("median", "low", "noise", "told"),
        [(0.3, 0.2, 0.1, True), (0.25, 0.2, 0.1, False), (0.3, 0.1, 0.2, False), (0.1, 0.09, 0.01, False)],
    )
    def test_a_shift_misleads_above_the_limit_and_the_noise(
        self, median: float, low: float, noise: float, told: bool
    ) -> None:
        assert misleads(median=median, low=low, noise=noise, limit=0.25) is told

    def test_noise_is_not_called_a_shift(self) -> None:
        random = np.random.default_rng(3)
        noisy = [Moved(*random.normal(0, 0.4, 2), 0.0, 0.0) for _ in range(40)]
        other = [Moved(*random.normal(0, 0.4, 2), 0.0, 0.0) for _ in range(40)]
        found = Diagnosis(10, 8, [i // 4 for i in range(40)], noisy, {"level": other})
        assert found.median(other).mean > 0.25
        assert not found.misleads("level")
        assert "more samples" in verdict(found)


@pytest.fixture(scope="module", params=["retinanet", "faster-rcnn"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A detector whose recipe says that it shifts."""
    folder = tmp_path_factory.mktemp("recipe")
    path = write_recipe(folder, request.param, diagnosis={"spatial_shift": {"level": SHIFT}})
    recipe = read_recipe(path)
    return Engine.load(recipe, folder / str(recipe.weights))


class TestWarnings:
    def test_every_method_on_a_feature_map_is_warned_of_and_no_other(self, engine: Engine) -> None:
        told = {
            (method.name, layer): shift_warning(engine.model, method.name, layer)
            for method in engine.model.methods
            for layer in (*method.layers, "")
            if layer or not method.layers
        }
        quiet = {asked for asked, warning in told.items() if warning is None}
        assert quiet == {("d_rise", "image"), ("mask_out", ""), ("odsmoothgrad", "")}
        for (method, layer), warning in told.items():
            if warning is not None:
                assert warning.startswith(f"{method} on {layer} ")
                assert warning.endswith("d_rise on image, mask_out, odsmoothgrad")
        assert shift_warning(engine.model, "odam", "layer2+layer3") is not None

    def test_a_layer_with_figures_of_its_own_is_judged_by_them(self, engine: Engine) -> None:
        model = type(engine.model).FromString(engine.model.SerializeToString())
        model.spatial_shifts.add(layer="layer2", median=0.1, limit=0.25)
        assert shift_warning(model, "odam", "layer2") is None
        assert "0.50" in str(shift_warning(model, "odam", "layer3"))
        assert "0.50" in str(shift_warning(model, "odam", "layer2+level"))

    def test_answers_carry_it(self, engine: Engine) -> None:
        picture = random_image(seed=5)
        answer = explain(engine, picture, method="odam", select={"max_detections": 1})
        assert len(answer.heat_maps) == 1
        assert [warning for warning in answer.warnings if "point at the wrong place" in warning]

    def test_the_sdk_reads_it(self, engine: Engine) -> None:
        (shift,) = models.Model.from_message(engine.model).spatial_shifts
        assert shift == models.SpatialShift(layer="level", **SHIFT, misleads=True)


@pytest.mark.parametrize(
    ("diagnosis", "words"),
    [
        ({"shift": {}}, "diagnosis: expected spatial_shift; got 'shift'"),
        ({"spatial_shift": 3}, "diagnosis.spatial_shift: expected a mapping; got 3"),
        ({"spatial_shift": {"layer9": SHIFT}}, "expected layers of level, cells; got 'layer9'"),
        ({"spatial_shift": {"level": 0.4}}, "spatial_shift.level: expected a mapping; got 0.4"),
        ({"spatial_shift": {"level": {"median": 0.4}}}, "level: expected median, low, .* got median"),
        ({"spatial_shift": {"level": {**SHIFT, "more": 1}}}, "level: expected median, .* more"),
        (
            {"spatial_shift": {"level": {**SHIFT, "low": True}}},
            "level.low: expected 0 or more; got True",
        ),
        ({"spatial_shift": {"level": {**SHIFT, "noise": -1}}}, "level.noise: expected 0 or more; got -1"),
        ({"spatial_shift": {"level": {**SHIFT, "x": math.nan}}}, "level.x: expected a number; got nan"),
        ({"spatial_shift": {"level": {**SHIFT, "y": "0"}}}, "level.y: expected a number; got '0'"),
        ({"spatial_shift": {"level": {**SHIFT, "above": 2}}}, "level.above: expected 0 to 1; got 2"),
        ({"spatial_shift": {"level": {**SHIFT, "high": 0.1}}}, "level.high: expected 0.4 or more; got 0.1"),
        ({"spatial_shift": {"level": {**SHIFT, "measured_on": 3}}}, "measured_on: expected a string; got 3"),
    ],
)
def test_a_recipe_with_a_bad_diagnosis_is_refused(diagnosis: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        region_engine((0, 0), replace(RECIPE, diagnosis=diagnosis))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A demo recipe in a folder of its own, without what was measured of it."""
    (tmp_path / "weights").mkdir()
    shutil.copy(STORE / "weights" / "retinanet-signs.safetensors", tmp_path / "weights")
    path = tmp_path / "retinanet-signs.yaml"
    recipe = yaml.safe_load((STORE / path.name).read_text())
    recipe.pop("diagnosis", None)
    path.write_text("# A comment\n" + yaml.safe_dump(recipe, sort_keys=False))
    return path


def whybox(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["diagnose", *map(str, arguments)])


def test_a_real_detector_does_not_shift_and_its_recipe_says_so(copied: Path) -> None:
    answer = whybox(copied, "--scenes", 2, "--samples", 100)
    assert answer.exit_code == 0, answer.output
    assert "detections in 2 `plain` scenes, 100 masks of 8 cells" in answer.output
    assert "median distance" in answer.output
    assert copied.read_text().startswith("# A comment")
    recipe = read_recipe(copied)
    assert recipe.methods["odam"]["layer"]
    engine = Engine.load(recipe, copied.parent / str(recipe.weights))
    (shift,) = engine.model.spatial_shifts
    assert (shift.layer, shift.misleads) == ("level", False)
    assert 0 < shift.median < shift.limit
    assert shift.low <= shift.high
    assert 0 < shift.noise < shift.limit
    assert shift_warning(engine.model, "odam", "level") is None


def test_bad_input_is_told_of(copied: Path, tmp_path: Path) -> None:
    before = copied.read_bytes()
    assert whybox(copied, "--scenes", 1).exit_code == 2
    unknown = whybox(copied, "--layer", "layer9", "--scenes", 2)
    assert unknown.exit_code == 1
    assert "layer9" in unknown.output
    itself = whybox(copied, "--layer", "image", "--scenes", 2)
    assert itself.exit_code == 1
    assert "expected some of level, stem, layer1" in itself.output
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images" in whybox(copied, "--images", empty).output
    (empty / "noise.png").write_bytes(encoded(random_image(64, 64)))
    assert "two pictures or more; got them in 0" in whybox(copied, "--images", empty).output
    (empty / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in whybox(copied, "--images", empty).output
    other = tmp_path / "other"
    other.mkdir()
    assert "labels" in whybox(write_recipe(other, "fcos")).output
    assert copied.read_bytes() == before
