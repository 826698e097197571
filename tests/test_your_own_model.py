"""docs/your-own-model.md: each of its recipes, beside a checkpoint of its library, becomes an archive."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchvision.models import detection

from whybox.archives import build
from whybox.recipe import RecipeError

PAGE = Path(__file__).parent.parent / "docs" / "your-own-model.md"
RECIPES: dict[str, dict[str, Any]] = {
    recipe["family"]: recipe
    for recipe in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL))
}


def _torchvision(folder: Path, recipe: dict[str, Any]) -> None:
    torch.manual_seed(0)
    make = getattr(detection, recipe["architecture"])
    model = make(weights=None, weights_backbone=None, num_classes=len(recipe["labels"]) + 1)
    torch.save(model.state_dict(), folder / recipe["weights"])


def _transformers(folder: Path, recipe: dict[str, Any]) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from query_models import processor_of, random_query_model

    model = random_query_model(recipe["architecture"], classes=len(recipe["labels"]))
    for part in (model, processor_of(model)):
        part.save_pretrained(folder / recipe["weights"])


def _detectron2(folder: Path, recipe: dict[str, Any]) -> None:
    pytest.importorskip("detectron2", reason="detectron2 is not installed: see docs/detectors/detectron2.md")
    from detectron2.modeling import build_model

    from detectron2_parts import config_of, sections

    config = config_of(sections("faster-rcnn"))
    config.MODEL.ROI_HEADS.NUM_CLASSES = len(recipe["labels"])
    (folder / recipe["weights"]).mkdir()
    (folder / recipe["weights"] / "config.yaml").write_text(config.dump())
    torch.save({"model": build_model(config).state_dict()}, folder / recipe["weights"] / "model_final.pth")


TRAINED: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "torchvision": _torchvision,
    "detectron2": _detectron2,
    "transformers": _transformers,
}


def test_the_page_has_a_recipe_of_each_family() -> None:
    assert RECIPES.keys() == TRAINED.keys()


@pytest.mark.parametrize("family", list(TRAINED))
def test_a_trained_checkpoint_becomes_an_archive(family: str, tmp_path: Path) -> None:
    recipe = RECIPES[family]
    TRAINED[family](tmp_path, recipe)
    path = tmp_path / "my-signs.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with zipfile.ZipFile(build(path, tmp_path / "models")) as archive:
        names = archive.namelist()
    assert "weights.safetensors" in names
    assert not [name for name in names if name.endswith((".pth", ".pkl", ".bin"))]
    path.write_text(yaml.safe_dump({**recipe, "labels": ["stop", "yield"]}))
    with pytest.raises(RecipeError, match=r"labels|of another shape"):
        build(path, tmp_path / "models")
