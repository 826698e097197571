"""How lazy configs take pictures, and their references; a comparison needs OmegaConf, the rest nothing."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from whybox.detectors.detectron2_pictures import LAZY_INPUT, input_of
from whybox.detectors.detectron2_references import ABSENT, look_up, resolve
from whybox.recipe import RecipeError

STEP = {"_target_": "detectron2.data.transforms.ResizeShortestEdge", "short_edge_length": 640}


def config(step: Any = STEP, *, image_format: Any = "RGB", **more: Any) -> dict[str, Any]:
    mapper = {"augmentations": [step], "image_format": image_format}
    return {"dataloader": {"test": {"mapper": mapper}, **more}}


def test_a_reference_to_the_trainings_format_is_followed() -> None:
    """As `LazyConfig.save` writes the zoo's."""
    said = config(image_format="${...train.mapper.image_format}", train={"mapper": {"image_format": "RGB"}})
    assert input_of(said, "x")["format"] == "RGB"
    said["dataloader"]["train"]["mapper"]["image_format"] = "${dataloader.format}"
    said["dataloader"]["format"] = "BGR"
    assert input_of(said, "x")["format"] == "BGR"


def test_references_in_the_resizing_are_followed() -> None:
    step = {**STEP, "short_edge_length": ["${edges[0]}", "${edges.1}"], "max_size": "${.sizes.most}"}
    said = {**config({**step, "max_size": "${size.most}"}), "edges": [480, 480], "size": {"most": 900}}
    assert input_of(said, "x") == {"min_size": 480, "max_size": 900, "format": "RGB"}
    said["dataloader"]["test"]["mapper"]["augmentations"] = "${steps}"
    said["steps"] = ["${resize}"]
    said["resize"] = {**STEP, "max_size": "${.short_edge_length}"}
    assert input_of(said, "x") == {"min_size": 640, "max_size": 640, "format": "RGB"}
    said["dataloader"]["test"] = "${evaluation}"
    said["evaluation"] = {"mapper": "${mine}"}
    said["mine"] = {"augmentations": [{**STEP, "short_edge_length": 5}], "image_format": "BGR"}
    assert input_of(said, "x") == {"min_size": 5, "max_size": sys.maxsize, "format": "BGR"}


@pytest.mark.parametrize(
    "reference",
    [
        "${...train.format}",
        "${.image_format}",
        "${other}",
        "${..........x}",
        "${a[7]}",
        "${a[-1]}",
        "${oc.env:HOME}",
        "${}",
        "${.}",
        "${${a}}",
        "RGB${a}",
        "${a}${a}",
        r"\${a}",
    ],
)
def test_references_to_nothing_are_refused(reference: str) -> None:
    said = {**config(image_format=reference), "a": ["RGB"]}
    with pytest.raises(
        RecipeError,
        match=r"x: dataloader\.test\.mapper\.image_format: expected a reference to another part of",
    ):
        input_of(said, "x")


def test_references_in_a_circle_are_refused() -> None:
    for said in ({"a": "${b}", "b": "${a}"}, {"a": "${a.b.c}"}, {"a": {"b": "${a.b}"}}):
        with pytest.raises(RecipeError, match=r"x: a\.b: expected a reference to another part"):
            look_up(said, ("a", "b"), "x")


def test_references_are_resolved_as_omegaconf_does() -> None:
    omegaconf = pytest.importorskip("omegaconf", reason="comes with detectron2")
    data = {
        "a": {"b": {"c": "${.d}", "d": 1, "e": "${..f}", "g": "${...h}", "i": "${a.b.c}"}, "f": 2},
        "h": [3, "${.0}", {"j": "${..0}", "k": "${...a.f}"}],
        "l": "${a}",
        "m": {"n": "${l.b}"},
    }
    made = omegaconf.OmegaConf.create(data)
    for place in (
        *(("a", "b", name) for name in "cdegi"),
        *(("h", 1), ("h", 2, "j"), ("h", 2, "k")),
        *(("l", "b", "c"), ("l", "b", "e"), ("l", "f"), ("m", "n", "g"), ("m", "n", "i")),
    ):
        value = made
        for name in place:
            value = value[name]
        assert look_up(data, place, "x") == value, place
    whole = omegaconf.OmegaConf.to_container(made, resolve=True)
    for name in data:
        assert resolve(data, (name,), "x") == whole[name], name


@pytest.mark.parametrize(
    "data",
    [
        {"a": {"b": "${a}"}},
        {"a": ["${b}"], "b": ["${a}"]},
        {"a": ["${b}"] * 50, "b": ["${c}"] * 50, "c": ["${d}"] * 50, "d": [1] * 50},
    ],
)
def test_what_references_repeat_has_an_end(data: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"x: [a-d].*: expected at most 100000 values, 100 deep; got more"):
        resolve(data, ("a",), "x")


def test_what_is_not_there_is_absent() -> None:
    for place in (("b",), ("a", "c"), ("a", "b", "c"), ("d", 1), ("d", "x"), ("d", "9" * 5000)):
        assert look_up({"a": {"b": 1}, "d": [1]}, place, "x") is ABSENT
        with pytest.raises(RecipeError, match="expected a value; got nothing"):
            resolve({"a": {"b": 1}, "d": [1]}, place, "x")


def test_where_nothing_is_said_the_values_are_those_of_detectron2s_coco_models() -> None:
    for said in ({}, {"dataloader": {}}, {"dataloader": {"train": 1}}, {"dataloader": {"test": {}}}):
        assert input_of(said, "x") == LAZY_INPUT
    assert input_of({"input": {"min_size": 5}}, "x") == {**LAZY_INPUT, "min_size": 5}


@pytest.mark.parametrize(
    ("step", "edges"),
    [
        ({}, (640, sys.maxsize)),
        ({"max_size": 900}, (640, 900)),
        ({"interp": 2}, (640, sys.maxsize)),
        ({"short_edge_length": [480, 480]}, (480, sys.maxsize)),
        ({"short_edge_length": 0}, (0, sys.maxsize)),
        ({"short_edge_length": [480], "sample_style": "choice"}, (480, sys.maxsize)),
        ({"short_edge_length": 480, "sample_style": "choice"}, (480, sys.maxsize)),
    ],
)
def test_the_resizing_is_detectron2s(step: dict[str, Any], edges: tuple[int, int]) -> None:
    assert input_of(config({**STEP, **step}), "x") == {
        "min_size": edges[0],
        "max_size": edges[1],
        "format": "RGB",
    }


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"interp": 3}, r"augmentations\[0\]\.interp: expected 2, bilinear; got 3"),
        ({"interp": None}, r"\.interp: expected 2, bilinear; got None"),
        ({"interpolation": 2}, r"augmentations\[0\]: expected short_edge_length, .*; got interpolation"),
        ({"max_size": 0}, r"\.max_size: expected a number of pixels; got 0"),
        ({"max_size": None}, r"\.max_size: expected a number of pixels; got None"),
        ({"max_size": True}, r"\.max_size: expected a number of pixels; got True"),
        ({"short_edge_length": [[1]]}, r"\.short_edge_length: expected a number .*; got \[\[1\]\]"),
        ({"short_edge_length": [[1], [1]]}, r"\.short_edge_length: expected a number of pixels"),
        ({"short_edge_length": [480, 640]}, r"\.short_edge_length: .*; got \[480, 640\]"),
        ({"short_edge_length": [480]}, r"\.short_edge_length: .*; got \[480\]"),
        ({"short_edge_length": [], "sample_style": "choice"}, r"\.short_edge_length: .*; got \[\]"),
        ({"short_edge_length": -1}, r"\.short_edge_length: .*; got -1"),
        ({"short_edge_length": "a"}, r"\.short_edge_length: .*; got 'a'"),
        ({"sample_style": "any"}, r"\.sample_style: expected range or choice; got 'any'"),
        ({"_target_": "mine.Flip"}, "augmentations: expected ResizeShortestEdge alone"),
    ],
)
def test_another_resizing_is_refused(step: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        input_of(config({**STEP, **step}), "x")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (config({"_target_": STEP["_target_"]}), r"\.short_edge_length: .*; got nothing"),
        (config("mine"), "augmentations: expected ResizeShortestEdge alone; got"),
        (config(image_format="L"), r"mapper\.image_format: expected BGR or RGB; got 'L'"),
        (config(image_format=["RGB"]), r"mapper\.image_format: expected BGR or RGB; got \['RGB'\]"),
        (
            {"dataloader": {"test": {"mapper": {"augmentations": [STEP]}}}},
            r"mapper\.image_format: expected BGR or RGB; got nothing",
        ),
        ({"dataloader": {"test": {"mapper": {}}}}, "ResizeShortestEdge alone; got nothing"),
        ({"dataloader": {"test": {"mapper": {"augmentations": []}}}}, r"alone; got \[\]"),
        ({"dataloader": {"test": {"mapper": {"augmentations": [STEP, STEP]}}}}, "ResizeShortestEdge alone"),
        ({"dataloader": {"test": {"mapper": 5}}}, r"x: dataloader\.test\.mapper: expected a mapping; got 5"),
        (
            {"dataloader": {"test": {"mapper": "${dataloader.x}"}, "x": [1]}},
            r"x: dataloader\.test\.mapper: expected a mapping; got \[1\]",
        ),
        (
            {"dataloader": {"test": {"mapper": "${dataloader.x}"}}},
            r"x: dataloader\.test\.mapper: expected a reference to another part of the config",
        ),
        ({"dataloader": {"test": [1]}}, r"x: dataloader\.test: expected a mapping; got \[1\]"),
        ({"dataloader": 3}, "x: dataloader: expected a mapping; got 3"),
        ({"input": 5}, "x: input: expected min_size, max_size, format; got 5"),
    ],
)
def test_what_says_nothing_of_pictures_is_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        input_of(data, "x")
