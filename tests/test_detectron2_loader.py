"""From recipes and checkpoints to detectron2's detectors: what is read, packed and refused.

Where detectron2 is not installed these tests are skipped.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

pytest.importorskip("detectron2", reason="detectron2 is not installed: see docs/detectors/detectron2.md")

import detectron2
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler

from builders import LABELS, STORE, random_image
from detectron2_parts import ARCHITECTURES, config_of, recipe, sections, write
from whybox.archives import build
from whybox.detectors import detectron2_loader as loader
from whybox.detectors.detectron2 import FcosDetector, Pictures, RcnnDetector, wrap
from whybox.detectors.detectron2_config import read_config
from whybox.detectors.registry import load_detector, pack_detector
from whybox.recipe import Recipe, RecipeError, dump_recipe, read_recipe

OWN = sorted(path for path in STORE.glob("*.yaml") if read_recipe(path).family == "detectron2")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_packed_needs_nothing_else(architecture: str, tmp_path: Path) -> None:
    """One file of tensors, and a recipe that can be written and read again."""
    folder = write(architecture, tmp_path / "given", MIN_SIZE_TEST=96, MAX_SIZE_TEST=160)
    raw = load_detector(recipe(architecture), folder)
    (tmp_path / "packed").mkdir()
    packed, weights = pack_detector(recipe(architecture), folder, tmp_path / "packed")
    assert [path.name for path in (tmp_path / "packed").iterdir()] == [weights.name]
    assert weights.suffix == ".safetensors"
    (tmp_path / "recipe.yaml").write_text(dump_recipe(packed))
    again = load_detector(read_recipe(tmp_path / "recipe.yaml"), weights)
    image = random_image(90, 118)
    (before,), (after,) = raw.detect([image]), again.detect([image])
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.class_scores, after.class_scores)
    (tmp_path / "twice").mkdir()
    twice, _ = pack_detector(packed, weights, tmp_path / "twice")
    assert twice == packed


def test_an_archive_is_built(tmp_path: Path) -> None:
    write("retinanet", tmp_path / "weights")
    path = tmp_path / "recipe.yaml"
    said = {"name": "mine", "family": "detectron2", "architecture": "config", "labels": list(LABELS)}
    path.write_text(yaml.safe_dump({**said, "weights": "weights"}))
    with zipfile.ZipFile(build(path, tmp_path)) as archive:
        names = archive.namelist()
    assert "weights.safetensors" in names
    assert not [name for name in names if name.endswith((".pth", ".pkl"))]


LAST_BLOCK = {"2": 2, "3": 3, "4": 5, "5": 2}
"""Of each stage of a ResNet-50."""


def _zoo(model: torch.nn.Module) -> dict[str, Any]:
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    return {"model": arrays, "__author__": "Detectron2 Model Zoo"}


def _caffe2(model: torch.nn.Module) -> dict[str, Any]:
    """The names and order of classes that Detectron's Faster R-CNN with FPN has in Caffe2."""
    blobs = {}
    for name, value in model.state_dict().items():
        if "running_" in name:  # Caffe2's models have them in the norm's weight and bias
            continue
        made = name.removeprefix("backbone.bottom_up.").removeprefix("backbone.")
        norm = ".norm." in made
        made = made.replace(".norm.weight", ".bn.s").replace(".norm.bias", ".bn.b")
        made = re.sub(r"\.weight$", ".w", re.sub(r"\.bias$", ".b", made))
        made = made.replace("stem.conv1", "res.conv1" if norm else "conv1")
        made = made.replace(".shortcut.", ".branch1.")
        for number, letter in enumerate("abc", 1):
            made = re.sub(rf"^(res\d\.\d+)\.conv{number}\.", rf"\1.branch2{letter}.", made)
        made = re.sub(
            r"^fpn_lateral(\d)", lambda m: f"fpn.inner.res{m[1]}.{LAST_BLOCK[m[1]]}.sum.lateral", made
        )
        made = re.sub(r"^fpn_output(\d)", lambda m: f"fpn.res{m[1]}.{LAST_BLOCK[m[1]]}.sum", made)
        made = made.replace("proposal_generator.rpn_head.conv", "conv.rpn.fpn2")
        made = made.replace("proposal_generator.rpn_head.anchor_deltas", "rpn.bbox.pred.fpn2")
        made = made.replace("proposal_generator.rpn_head.objectness_logits", "rpn.cls.logits.fpn2")
        made = made.replace("roi_heads.box_head.fc1", "fc6").replace("roi_heads.box_head.fc2", "fc7")
        made = made.replace("roi_heads.box_predictor.cls_score", "cls_score")
        made = made.replace("roi_heads.box_predictor.bbox_pred", "bbox_pred")
        if "cls_score" in made:
            value = torch.cat([value[-1:], value[:-1]])
        if "bbox_pred" in made:
            value = torch.cat([torch.zeros_like(value[:4]), value])
        blobs[made.replace(".", "_")] = value.numpy()
    return {"blobs": blobs}


@pytest.mark.parametrize("convert", [_zoo, _caffe2])
def test_pickles_are_read_as_detectron2s_own_checkpointer_does(
    convert: Callable[[torch.nn.Module], dict[str, Any]], tmp_path: Path
) -> None:
    folder = write("faster-rcnn", tmp_path)
    cfg = config_of(sections("faster-rcnn"))
    trained = build_model(cfg)
    trained.load_state_dict(torch.load(folder / "model_final.pth", weights_only=True)["model"])
    (folder / "model_final.pth").unlink()
    path = folder / "model_final.pkl"
    path.write_bytes(pickle.dumps(convert(trained)))
    theirs = build_model(cfg)
    DetectionCheckpointer(theirs).load(str(path))
    ours = load_detector(recipe("pickled"), path)
    expected: dict[str, Tensor] = theirs.state_dict()
    for name, value in ours.model.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(value, expected[name]), name
        if "running_" not in name:
            assert torch.equal(value, trained.state_dict()[name]), name


def test_the_labels_of_the_store_are_detectron2s() -> None:
    names = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    assert len(OWN) == 5
    for path in OWN:
        assert list(read_recipe(path).labels) == names


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_the_recipes_of_the_store_name_the_zoos_models(path: Path) -> None:
    made = read_recipe(path)
    config = loader.zoo_config(made)
    alone = replace(made, architecture=made.architecture.partition("/")[2].upper())
    assert loader.zoo_config(alone) == config
    assert f"/{made.architecture}/" in made.source
    cfg = config_of(config)
    assert len(made.labels) in (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES)


@pytest.mark.parametrize(
    ("name", "kind", "channels"),
    [
        ("COCO-Detection/fcos_R_50_FPN_1x.py", FcosDetector, 256),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py", RcnnDetector, 1024),
    ],
)
def test_lazy_models_of_the_zoo_are_built_and_read_back(
    name: str, kind: type, channels: int, tmp_path: Path
) -> None:
    """By name from the package; and as `LazyConfig.save` writes it."""
    config = loader.zoo_config(Recipe("x", "detectron2", name.lower(), LABELS))
    assert config["input"] == {"min_size": 800, "max_size": 1333, "format": "BGR"}
    zoo = Path(str(detectron2.__file__)).parent / "model_zoo" / "configs"
    LazyConfig.save(LazyConfig.load(str(zoo / name)), str(tmp_path / "saved.yaml"))
    saved = read_config(tmp_path / "saved.yaml", tmp_path)
    model, whole, pictures = loader._build_lazy(saved, "saved")
    text = json.dumps(whole).replace("layers.shape_spec.", "layers.").replace("resnet.Bottle", "Bottle")
    assert json.loads(text) == config
    detector = wrap(model, [f"class {i}" for i in range(80)], pictures)
    assert isinstance(detector, kind)
    assert detector.layers["level"].channels == channels


def test_a_saved_config_whose_format_is_a_reference_keeps_it(tmp_path: Path) -> None:
    """The zoo's test set refers to the training set's format."""
    zoo = Path(str(detectron2.__file__)).parent / "model_zoo" / "configs"
    config = LazyConfig.load(str(zoo / "COCO-Detection" / "fcos_R_50_FPN_1x.py"))
    config.dataloader.train.mapper.image_format = "RGB"
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    assert "${...train.mapper.image_format}" in (tmp_path / "config.yaml").read_text()
    assert read_config(tmp_path / "config.yaml", tmp_path)["input"]["format"] == "RGB"


def test_a_lazy_model_with_functions_of_its_own_is_refused() -> None:
    """The zoo's models with norms that a lambda makes, as if they were in a folder that is looked in."""
    zoo = Path(str(detectron2.__file__)).parent / "model_zoo" / "configs"
    with pytest.raises(RecipeError, match=r"conv_norm\._name_: expected a module of detectron2's"):
        loader._lazy_zoo(zoo / "new_baselines" / "mask_rcnn_R_50_FPN_100ep_LSJ.py")


class TestBadInput:
    """What does not fit is told when the archive is built."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write("faster-rcnn", tmp_path / "mine")

    def change(self, folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
        path = folder / "model_final.pth"
        saved = torch.load(path, weights_only=True)
        change(saved["model"])
        torch.save(saved, path)

    def test_another_architectures_checkpoint(self, folder: Path, tmp_path: Path) -> None:
        other = write("retinanet", tmp_path / "other")
        (other / "model_final.pth").rename(folder / "model_final.pth")
        with pytest.raises(RecipeError, match=r"do not fit the architecture; missing: .*in all\)"):
            load_detector(recipe("mine"), folder)

    def test_a_missing_key(self, folder: Path) -> None:
        name = "roi_heads.box_predictor.cls_score.bias"
        self.change(folder, lambda model: model.pop(name))
        with pytest.raises(RecipeError, match=f"missing: {re.escape(name)}$"):
            load_detector(recipe("mine"), folder)

    def test_missing_statistics_are_no_caffe2(self, folder: Path) -> None:
        name = "backbone.bottom_up.stem.conv1.norm.running_var"
        self.change(folder, lambda model: model.pop(name))
        with pytest.raises(RecipeError, match=f"missing: {re.escape(name)}$"):
            load_detector(recipe("mine"), folder)

    def test_a_key_too_many(self, folder: Path) -> None:
        self.change(folder, lambda model: model.update(odd=torch.zeros(1)))
        with pytest.raises(RecipeError, match=r"not in the model: odd$"):
            load_detector(recipe("mine"), folder)

    def test_another_number_of_classes(self, folder: Path) -> None:
        name = "roi_heads.box_predictor.cls_score.bias"
        self.change(folder, lambda model: model.update({name: torch.zeros(9)}))
        with pytest.raises(RecipeError, match=r"of another shape: .*bias \(9,\), expected \(5,\)"):
            load_detector(recipe("mine"), folder)

    def test_labels_of_another_number(self, folder: Path) -> None:
        with pytest.raises(RecipeError, match="labels: expected 4 names for this head; got 3"):
            load_detector(replace(recipe("mine"), labels=LABELS[:3]), folder)

    def test_code_in_the_checkpoint(self, folder: Path) -> None:
        torch.save({"model": Path("x")}, folder / "model_final.pth")
        with pytest.raises(RecipeError, match="the weights cannot be read"):
            load_detector(recipe("mine"), folder)
        (folder / "model_final.pth").unlink()
        (folder / "model_final.pkl").write_bytes(pickle.dumps({"model": Path("x")}))
        with pytest.raises(RecipeError, match="it names pathlib"):
            load_detector(recipe("mine"), folder)

    def test_a_folder_without_weights(self, folder: Path) -> None:
        (folder / "model_final.pth").unlink()
        with pytest.raises(RecipeError, match=r"expected one checkpoint .*; got none"):
            load_detector(recipe("mine"), folder)

    def test_a_folder_without_a_configuration(self, folder: Path) -> None:
        (folder / "config.yaml").unlink()
        with pytest.raises(RecipeError, match=r"config.yaml: cannot be read"):
            load_detector(recipe("mine"), folder)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                {"META_ARCHITECTURE": "MyRCNN"},
                "expected .*; got 'MyRCNN'; modules of your own are not",
            ),
            ({"MINE": {"X": 1}}, "detectron2 cannot build it: KeyError: .*MINE"),
            ({"RESNETS": {"DEPTH": 51}}, "detectron2 cannot build it: KeyError: 51"),
            ({"MASK_ON": "perhaps"}, "detectron2 cannot build it: ValueError"),
            ({"ROI_HEADS": {"IN_FEATURES": ["p9"]}}, "detectron2 cannot build it"),
        ],
    )
    def test_a_configuration_that_is_none(self, folder: Path, change: dict[str, Any], words: str) -> None:
        path = folder / "config.yaml"
        config = yaml.safe_load(path.read_text())
        for name, value in change.items():
            own = config["MODEL"].get(name)
            config["MODEL"][name] = {**own, **value} if isinstance(own, dict) else value
        path.write_text(yaml.safe_dump(config))
        with pytest.raises(RecipeError, match=words):
            load_detector(recipe("mine"), folder)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (
                {"options": {"config": "lazy.py"}},
                "config: expected YAML, as LazyConfig.save writes it",
            ),
            ({"options": {"config": 3}}, "options.config: expected a file; got 3"),
            ({"options": {"x": 3}}, "options: expected config; got x"),
            ({"options": {"config": {"MODEL": {"MASK_ON": "x"}}}}, "detectron2 cannot build it"),
            (
                {"architecture": "faster_rcnn_R_50_FPN_4x"},
                "architecture: expected config, or a name of detectron2's model zoo such as faster_rcnn_R_50",
            ),
            ({"architecture": "../secrets"}, "architecture: expected config"),
            ({"background": True}, "mine: background: expected false, .*no unused first class; got true"),
            (
                {"options": {"config": {"model": {"_target_": "detectron2.modeling.FCOS"}}}},
                "options.config: input: expected min_size, max_size, format; got None",
            ),
        ],
    )
    def test_recipes(self, folder: Path, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(RecipeError, match=words):
            load_detector(replace(recipe("mine"), **changes), folder)

    @pytest.mark.parametrize("key", ["_target_", "_name_"])
    @pytest.mark.parametrize(
        "name", ["detectron2.modeling.nothing.FPN", "detectron2.modeling.backbone.FCOSHead"]
    )
    def test_modules_that_detectron2_does_not_have(self, key: str, name: str, folder: Path) -> None:
        backbone = {"_target_": "detectron2.modeling.FPN", "bottom_up": [{key: name}]}
        model = {"_target_": "detectron2.modeling.FCOS", "backbone": backbone}
        config = {"model": model, "input": {"min_size": 0, "max_size": 0, "format": "BGR"}}
        with pytest.raises(
            RecipeError,
            match=rf"config: model\.backbone\.bottom_up\[0\]\.{key}: .* has no {re.escape(name)}$",
        ):
            load_detector(replace(recipe("mine"), options={"config": config}), folder)

    def test_bases_outside_of_the_folder(self, folder: Path) -> None:
        (folder / "config.yaml").rename(folder.parent / "base.yaml")
        (folder / "config.yaml").write_text("_BASE_: ../base.yaml\n")
        with pytest.raises(RecipeError, match=r"_BASE_: expected a file in the folder of the weights"):
            load_detector(recipe("mine"), folder)

    @pytest.mark.parametrize("kind", ["ROIPool", "ROIAlignRotated"])
    def test_masks_pooled_otherwise(self, kind: str) -> None:
        """In a lazy config, whose poolers are modules."""
        model = build_model(config_of(sections("mask-rcnn")))
        old = model.roi_heads.mask_pooler
        model.roi_heads.mask_pooler = ROIPooler(old.output_size, (0.25, 0.125), 0, kind)
        with pytest.raises(TypeError, match="roi_heads: expected RoIAlign; got R"):
            wrap(model, LABELS, Pictures(0, 0, "BGR"))
        model.roi_heads.mask_pooler = old
        wrap(model, LABELS, Pictures(0, 0, "BGR"))

    def test_heads_that_cannot_be_looked_into(self, tmp_path: Path) -> None:
        """RetinaNet's norms of their own for each level."""
        folder = tmp_path / "mine"
        folder.mkdir()
        data = sections("retinanet")
        data["MODEL"]["RETINANET"]["NORM"] = "BN"
        (folder / "config.yaml").write_text(yaml.safe_dump(data))
        torch.save(build_model(config_of(data)).state_dict(), folder / "model_final.pth")
        with pytest.raises(RecipeError, match="one after the other in a tower"):
            load_detector(recipe("mine"), folder)
