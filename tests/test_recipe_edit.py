"""Recipes that a command changes keep their author's comments and stay recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import write_recipe
from whybox.evaluation.recipe_edit import edit_recipe
from whybox.recipe import RecipeError, read_recipe

STORE = Path(__file__).parent.parent / "model_store"


@pytest.mark.parametrize("path", sorted(STORE.glob("*.yaml")), ids=lambda path: path.stem)
def test_nothing_but_the_changed_field_changes(path: Path, tmp_path: Path) -> None:
    for beside in [path, *STORE.glob("*.txt")]:
        (tmp_path / beside.name).write_text(beside.read_text())
    copy = tmp_path / path.name
    edit_recipe(copy, {"methods": {"odam": {"layer": "layer2"}}})
    layer = read_recipe(path).methods["odam"]["layer"]
    assert copy.read_text() == path.read_text().replace(f"odam: {{layer: {layer}", "odam: {layer: layer2")
    assert read_recipe(copy).methods["odam"]["layer"] == "layer2" != layer


def test_a_field_that_was_not_there_is_added(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "retinanet")
    edit_recipe(path, {"methods": {"odam": {"smoothing": 0.1}}, "description": "a: b"})
    recipe = read_recipe(path)
    assert (recipe.methods, recipe.description) == ({"odam": {"smoothing": 0.1}}, "a: b")


def test_what_would_be_no_recipe_is_not_written(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "retinanet")
    before = path.read_bytes()
    with pytest.raises(RecipeError, match="score_threshold"):
        edit_recipe(path, {"score_threshold": 7})
    assert path.read_bytes() == before
