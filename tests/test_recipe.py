"""Recipes: what is there can be read, what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from builders import ARCHITECTURE_NAMES, random_image, write_recipe
from whybox.archives import build
from whybox.describe import describe
from whybox.detectors.registry import load_detector
from whybox.engine import Engine
from whybox.recipe import RecipeError, dump_recipe, read_recipe

STORE = Path(__file__).parent.parent / "model_store"
GOOD = {"name": "a", "family": "torchvision", "architecture": "small/fcos", "labels": ["x", "y"]}


def write(folder: Path, **fields: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **fields}))
    return path


@pytest.mark.parametrize("path", sorted(STORE.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_store_can_be_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert len(recipe.labels) in (10, 80, 90)


def test_writing_is_the_inverse_of_reading(tmp_path: Path) -> None:
    first = read_recipe(
        write(
            tmp_path,
            workers={"count": 2},
            input={"max_side": 99},
            score_threshold=1,
            methods={"odam": {"layer": "l"}},
        )
    )
    (tmp_path / "again.yaml").write_text(dump_recipe(first))
    assert read_recipe(tmp_path / "again.yaml") == first
    assert first.workers.count == 2
    assert first.score_threshold == 1.0


def test_labels_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\n\ndog\n")
    assert read_recipe(write(tmp_path, labels="labels.txt")).labels == ("cat", "dog")
    with pytest.raises(RecipeError, match=r"labels: absent\.txt cannot be read"):
        read_recipe(write(tmp_path, labels="absent.txt"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "Bad Name"}, "name: expected lower case"),
        ({"name": "../up"}, "name: expected lower case"),
        ({"labels": []}, "labels: expected one or more different names"),
        ({"labels": ["x", "x"]}, "labels: expected one or more different names"),
        ({"labels": [1]}, "labels: expected tuple"),
        ({"archtecture": "x"}, "did you mean 'architecture'"),
        ({"score_threshold": "high"}, "score_threshold: expected float; got 'high'"),
        ({"background": 1}, "background: expected bool; got '1'"),
        ({"workers": {"counts": 1}}, "workers: there is no field 'counts'; did you mean 'count'"),
        ({"workers": {"count": 0}}, "workers.count: expected at least 1; got 0"),
        ({"score_threshold": 5.0}, "score_threshold: expected a number from 0 to 1; got 5"),
        ({"workers": 3}, "workers: expected a mapping; got int"),
        ({"workers": {"count": True}}, "workers: count: expected int; got 'True'"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, fields: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_recipe(write(tmp_path, **fields))


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x00"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError):
        read_recipe(path)
    path.write_text(yaml.safe_dump({"name": "a"}))
    with pytest.raises(RecipeError, match="expected the fields family, architecture, labels"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({"odamm": {}}, "methods: expected one of odam, .*; got 'odamm'"),
        ({"odam": {"layer": "layer9"}}, r"methods\.odam\.layer: expected one of level"),
        ({"odam": {"smothing": 1}}, r"methods\.odam: expected layer, smoothing, .*; got 'smothing'"),
        ({"odam": None}, r"methods\.odam: expected a mapping; got None"),
        ({"odam": {"smoothing": 7.0}}, r"methods\.odam\.smoothing: expected a number from 0 to 1; got 7"),
        ({"odam": {"sign": "both"}}, r"methods\.odam\.sign: expected one of relu, negated, signed, abs; got"),
        ({"odam": {"smoothing": "a"}}, r"methods\.odam\.smoothing: expected number; got 'a'"),
    ],
)
def test_methods_that_do_not_fit_are_refused_when_building(
    tmp_path: Path, methods: dict[str, object], words: str
) -> None:
    path = write_recipe(tmp_path, "retinanet", methods=methods)
    recipe = read_recipe(path)
    detector = load_detector(recipe, tmp_path / str(recipe.weights))
    with pytest.raises(RecipeError, match=words):
        describe(recipe, detector)
    with pytest.raises(RecipeError, match=words):
        build(path, tmp_path)


def test_pictures_that_would_vanish_are_refused_when_building(tmp_path: Path) -> None:
    # The demo networks' input is 640 px at most: 1 x 5000 would have no row left.
    thin = {"input": {"max_aspect": 5000}}
    with pytest.raises(RecipeError, match=r"input\.max_aspect: expected at most 639, .*; got 5000"):
        build(write_recipe(tmp_path, "retinanet", **thin), tmp_path)
    thin["input"]["max_side"] = 639  # so that no picture is thinner
    assert build(write_recipe(tmp_path, "retinanet", **thin), tmp_path).is_file()


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_the_thinnest_pictures_that_may_come_can_be_taken(tmp_path: Path, architecture: str) -> None:
    path = write_recipe(tmp_path, architecture, input={"max_aspect": 639})
    engine = Engine.load(read_recipe(path), tmp_path / f"{architecture}-random.safetensors")
    thinnest = [
        random_image(*size) for side in (1, 7, 10) for size in [(side, 639 * side), (639 * side, side)]
    ]
    assert [found.boxes.isfinite().all() for found in engine.detector.detect(thinnest)]


def test_building_needs_weights(tmp_path: Path) -> None:
    path = write(tmp_path, source="https://example.org/weights")
    with pytest.raises(
        RecipeError,
        match=r"weights: expected a file or folder; .* They come from https://example\.org/weights",
    ):
        build(path, tmp_path)
    with pytest.raises(RecipeError, match="there is no file or folder"):
        build(path, tmp_path, tmp_path / "absent.pth")
