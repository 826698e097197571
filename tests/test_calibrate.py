"""`whybox calibrate`: every layer measured, the best one chosen by a rule, and written into the recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from builders import write_recipe
from whybox.engine import Engine
from whybox.evaluation import calibrate
from whybox.evaluation.calibrate import Options, affordable, changes, choose, layers_of, pairs_of
from whybox.evaluation.table import Results, Variant
from whybox.methods.base import SIDES
from whybox.recipe import read_recipe
from whybox.scenes import render
from whybox_client.cli import main

STORE = Path(__file__).parent.parent / "model_store"


def measured(**layers: tuple[float, float | None, float]) -> Results:
    """Results of twenty maps a layer: faithfulness (with a shared scatter), evidence, milliseconds."""
    results = Results(scenes=20, detections=20)
    scatter = np.random.default_rng(0).normal(0, 0.2, 20)
    own = np.random.default_rng(1)
    for name, (faithfulness, evidence, ms) in layers.items():
        label = f"odam@{name}"
        noise = scatter + own.normal(0, 0.01, 20)
        keys = [(scene, 0, "class") for scene in range(20)]
        results.values[label] = {
            "insertion": dict(zip(keys, faithfulness + noise, strict=True)),
            "deletion": dict.fromkeys(keys, 0.0),
        }
        if evidence is not None:
            results.values[label]["evidence_ratio"] = dict(
                zip(keys, evidence + own.normal(0, 0.01, 20), strict=True)
            )
        results.seconds[label] = [ms / 1000]
    return results


def variants(results: Results) -> list[Variant]:
    return [Variant.parse(label) for label in results.values]


class TestChoosing:
    def test_the_most_faithful_wins_even_by_less_than_the_scatter_between_pictures(self) -> None:
        results = measured(level=(0.5, 2.0, 1), layer2=(0.6, 1.0, 9), layer3=(0.4, 3.0, 1))
        choice = choose(results, variants(results))
        assert choice.variant.request.layer == "layer2"
        assert choice.ties == ("odam@layer2",)
        assert choice.figures["insertion"] == pytest.approx(0.6, abs=0.1)
        assert choice.figures["ms_per_map"] == 9

    def test_among_the_equally_faithful_the_evidence_decides(self) -> None:
        results = measured(level=(0.5, 1.0, 1), layer2=(0.5, 2.0, 9), layer3=(0.3, 3.0, 1))
        assert choose(results, variants(results)).variant.request.layer == "layer2"

    def test_and_then_the_cost(self) -> None:
        results = measured(level=(0.5, 2.0, 1), layer2=(0.5, 2.0, 9))
        choice = choose(results, variants(results))
        assert choice.variant.request.layer == "level"
        assert len(choice.ties) == 2
        assert "cheapest" in choice.why

    def test_without_truth_the_cost_decides_among_the_faithful(self) -> None:
        results = measured(level=(0.5, None, 5), layer2=(0.5, None, 3), layer3=(0.2, None, 1))
        choice = choose(results, variants(results))
        assert choice.variant.request.layer == "layer2"
        assert set(choice.figures) == {"insertion", "deletion", "ms_per_map"}

    def test_a_default_is_one_that_can_be_paid_for(self) -> None:
        results = measured(level=(0.5, 1.0, 2), roi=(0.4, 2.0, 1), layer2=(0.6, 3.0, 9))
        results.forward_seconds.append(0.010)
        cheap = affordable(results, variants(results), 0.3)
        assert [variant.label for variant in cheap] == ["odam@level", "odam@roi"]
        assert choose(results, cheap).variant.request.layer == "level"
        assert [variant.label for variant in affordable(results, variants(results), 0.01)] == ["odam@roi"]
        options = Options(Path("unused"))
        everything = variants(results)
        written = changes(options, choose(results, cheap), choose(results, everything), results)
        assert written["methods"] == {"odam": {"layer": "level"}}
        told = written["calibration"]["odam"]  # type: ignore[index]
        assert told["layer"] == "level"
        assert told["at_any_cost"]["layer"] == "layer2"
        assert told["at_any_cost"]["ms_per_map"] == 9


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("recipe")
    recipe = read_recipe(write_recipe(folder, "retinanet"))
    return Engine.load(recipe, folder / str(recipe.weights))


class TestLayers:
    def test_every_layer_and_each_two_of_some(self, engine: Engine) -> None:
        options = Options(Path("unused"))
        labels = [variant.label for variant in layers_of(engine, options)]
        assert labels == [f"odam@{layer}" for layer in engine.detector.layers]
        pairs = pairs_of(engine, options, ["odam@layer3", "odam@level", "odam@stem"])
        assert {variant.request.layer for variant in pairs} == {"level+stem", "level+layer3", "stem+layer3"}
        assert {variant.request.params["fusion"] for variant in pairs} == {"mean", "product"}
        assert pairs_of(engine, options, labels[:1]) == []

    def test_a_method_that_combines_no_layers_has_no_pairs(self, engine: Engine) -> None:
        options = Options(Path("unused"), method="grad_cam")
        assert pairs_of(engine, options, ["grad_cam@level", "grad_cam@layer2"]) == []

    def test_a_method_without_layers_is_refused(self, engine: Engine) -> None:
        for method in ("mask_out", "no-such-method"):
            with pytest.raises(ValueError, match="odam"):
                layers_of(engine, Options(Path("unused"), method=method))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A demo recipe in a folder of its own, looking at a layer that is not the best."""
    (tmp_path / "weights").mkdir()
    shutil.copy(STORE / "weights" / "retinanet-signs.safetensors", tmp_path / "weights")
    path = tmp_path / "retinanet-signs.yaml"
    text = (STORE / path.name).read_text()
    path.write_text(text.replace("layer: level", "layer: layer4") + "# the end\n")
    return path


def test_the_choice_is_written_into_the_recipe(copied: Path) -> None:
    told: list[str] = []
    options = Options(copied, scenes=2, pairs=0)
    choice = calibrate.run(options, say=told.append)
    recipe = read_recipe(copied)
    assert recipe.methods["odam"]["layer"] == choice.variant.request.layer
    assert recipe.methods["odam"]["smoothing"] == 0.05
    written = recipe.calibration["odam"]
    assert written["measured_on"].endswith("in 2 scenes")
    assert written["insertion"] == choice.figures["insertion"]
    assert copied.read_text().startswith("# A demo detector")
    assert all(f"odam@{layer}" in told[0] for layer in ("level", "stem", "layer4"))
    rows = {line.split(" | ")[0]: line.split(" | ")[1:] for line in told[0].splitlines()}
    assert {"| energy_box ↑", "| evidence_ratio ↑", "| own_half ↑", "| ms a map"} <= set(rows)
    for side in SIDES:
        shares = [int(cell.rstrip(" |").removesuffix("%")) for cell in rows[f"| {side}"]]
        assert len(shares) == len(rows["| ms a map"])
        assert max(shares) > 50


def test_own_pictures_need_no_truth(copied: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(render("plain", seed=77, index=index).image).save(folder / f"{index}.png")
    before = copied.read_bytes()
    arguments = ["calibrate", str(copied), "--images", str(folder), "--pairs", "0", "--no-write"]
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 0, answer.output
    assert "detections in 2 pictures" in answer.output
    assert "insertion" in answer.output
    assert "evidence" not in answer.output
    assert "own_half" not in answer.output
    assert "x1" not in answer.output
    assert copied.read_bytes() == before


def test_bad_input_is_told_of(copied: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        answer = CliRunner().invoke(main, ["calibrate", *arguments])
        assert answer.exit_code in (1, 2), answer.output
        return answer.output

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images" in refused(str(copied), "--images", str(empty))
    (empty / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in refused(str(copied), "--images", str(empty))
    assert "mask_out" in refused(str(copied), "--method", "mask_out", "--scenes", "1")
    other = tmp_path / "other"
    other.mkdir()
    assert "labels" in refused(str(write_recipe(other, "fcos")), "--scenes", "1")
    assert "not there" in refused(str(STORE / "fcos-resnet50-fpn.yaml")) or "labels" in refused(
        str(STORE / "fcos-resnet50-fpn.yaml")
    )
