"""The studies of `examples/studies`: their arithmetic, and each of them, short, over the API."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Live, serving
from studies import __main__ as command
from studies import context
from studies.pages import Page
from studies.running import Service, ap50, scenes
from whybox.archives import build
from whybox.scenes import CONTEXT
from whybox_client import Detection, Layout, LayoutObject

STORE = Path(__file__).parent.parent / "model_store"
MASKED = "mask-rcnn-signs"
MODELS = ("retinanet-signs", "retinanet-signs-context", MASKED)
LAYOUT = Layout(
    100, 100, [LayoutObject("climb", (10, 10, 50, 50)), LayoutObject("descent", (60, 60, 90, 90))]
)


def detection(label: str, box: tuple[float, float, float, float], score: float = 0.9) -> Detection:
    return Detection(0, box, label, 0, score)


def width_of(path: Path) -> int:
    with Image.open(path) as image:
        return image.width


def test_average_precision_is_cocos() -> None:
    right = [detection("climb", (10, 10, 50, 50)), detection("descent", (60, 60, 90, 90))]
    assert ap50([(LAYOUT, right)]) == pytest.approx(1)
    assert ap50([(LAYOUT, right[:1])]) == pytest.approx(0.5)  # the mean over the classes
    wrong = detection("climb", (60, 10, 90, 40), 0.99)  # before the right one: precision 1/2
    assert ap50([(LAYOUT, [wrong, *right])]) == pytest.approx(0.75)
    assert ap50([(LAYOUT, [])]) == 0


def test_a_companion_counts_where_the_habit_has_it() -> None:
    middle = context.SIDE / 2
    for habit in CONTEXT:
        x, y = {"below": (middle, middle - 60), "right": (middle - 60, middle)}[habit.place]
        box = (x - 20, y - 20, x + 20, y + 20)
        opposite = tuple(context.SIDE - value for value in (box[2], box[3], box[0], box[1]))
        assert context._is_companion_in_place(habit, detection(habit.anchor, box))
        assert not context._is_companion_in_place(habit, detection(habit.anchor, opposite))  # type: ignore[arg-type]
        assert not context._is_companion_in_place(habit, detection(habit.label, box))
        assert context._is_in_place(habit, detection(habit.label, box))
        asked = detection(habit.anchor, (middle - 24, middle - 30, middle + 24, middle + 18))
        assert not context._is_in_place(habit, asked)  # the asked one itself, a little off


def test_fishers_test_against_the_hypergeometric_sum() -> None:
    # Of 4 + 1 pictures with a companion among 5 + 5, 4 or more are in the first row by chance alone:
    ways = math.comb(5, 4) * math.comb(5, 1) + math.comb(5, 5) * math.comb(5, 0)
    assert context._p(4, 1, 5) == pytest.approx(ways / math.comb(10, 5))


def test_a_page_has_its_command_its_table_and_its_pictures(tmp_path: Path) -> None:
    page = Page(tmp_path, "study", "A study", "make it")
    page.table(["a", "b"], [[1, "x"]])
    page.picture(Image.new("RGB", (4, 4)), "black")
    text = page.write().read_text()
    assert text.startswith("# A study\n\nMade by `make it`.\n")
    assert "| a | b |\n| --- | --- |\n| 1 | x |" in text
    assert width_of(tmp_path / "images" / "study-1.png") == 4


def test_layouts_are_held_out_and_the_same_each_time() -> None:
    first, again = scenes(3), scenes(3)
    assert first == again
    assert all(1 <= len(layout.objects) <= 4 for layout in first)
    assert not any(thing.mask is not None for layout in first for thing in layout.objects)
    for layout in scenes(3, masks=True):
        for thing in layout.objects:
            assert isinstance(thing.mask, np.ndarray)
            assert thing.box is not None
            rows, columns = np.nonzero(thing.mask)
            assert (columns.min(), rows.min()) == pytest.approx(thing.box[:2], abs=1)
            assert (columns.max() + 1, rows.max() + 1) == pytest.approx(thing.box[2:], abs=1)


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    store = tmp_path_factory.mktemp("store")
    for name in MODELS:
        build(STORE / f"{name}.yaml", store)
    with serving(store, tmp_path_factory.mktemp("serving")) as running:
        yield running


@pytest.mark.parametrize("study", list(command.STUDIES))
def test_each_study_writes_its_page(
    study: str, signs: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--url", signs.rest, "--layouts", "1", "--seeds", "1", "--iterations", "2"]
    monkeypatch.setattr(sys, "argv", ["studies", study, *options, "--out", str(tmp_path)])
    assert command.main() == 0
    text = (tmp_path / f"{study}.md").read_text()
    asked = MODELS[:2] if study == "context" else MODELS
    for model in asked:
        assert re.search(rf"^\|.*{model}.*\|$", text, re.MULTILINE), text
    by_masks = re.findall(r"^\| (\S+) \| `(?:mask|cls\+reg\+mask)` \|", text, re.MULTILINE)
    assert by_masks == ([MASKED] * 2 if study == "losses" else [])
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert pictures
    assert all(width_of(tmp_path / picture) > 100 for picture in pictures)


def test_a_study_of_a_model_that_is_not_there_says_which_are(signs: Live) -> None:
    with pytest.raises(
        ValueError, match=rf"expected models that can be inverted: .*{MODELS[0]}.*; got nothing"
    ):
        Service(signs.rest).models("nothing")
