"""detectron2's configurations are read as data; none of this needs detectron2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from whybox.detectors.detectron2_config import (
    LAZY_INPUT,
    check_config,
    is_lazy,
    is_target,
    read_config,
)
from whybox.recipe import RecipeError

RCNN = "MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n"
MODEL = {"_target_": "detectron2.modeling.RetinaNet", "num_classes": 3}


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_are_merged_with_those_that_they_are_based_on(tmp_path: Path) -> None:
    write(tmp_path, "VERSION: 2\nMODEL:\n  META_ARCHITECTURE: RetinaNet\n  A: 1\n", "base.yaml")
    write(tmp_path, "_BASE_: ../base.yaml\nMODEL:\n  A: 2\n  B: 3\nINPUT:\n  FORMAT: RGB\n", "one/a.yaml")
    path = write(tmp_path, "_BASE_: a.yaml\nMODEL:\n  B: 4\n", "one/b.yaml")
    assert read_config(path) == {
        "VERSION": 2,
        "MODEL": {"META_ARCHITECTURE": "RetinaNet", "A": 2, "B": 4},
        "INPUT": {"FORMAT": "RGB"},
    }


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("absent.yaml", "cannot be read"),
        ("config.yaml", "at most 10 files"),
        ("detectron2://x.yaml", "_BASE_: expected a file beside this one"),
        ("[1]", "_BASE_: expected a file beside this one"),
    ],
)
def test_bases_that_are_none(base: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        read_config(write(tmp_path, f"_BASE_: {base}\n{RCNN}"))


def test_what_the_zoo_has_of_python_is_read(tmp_path: Path) -> None:
    said = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64 ]]"
    text = f'{RCNN}  SIZES: !!python/object/apply:eval ["{said}"]\n  PAIR: !!python/tuple [1, 2]\n'
    model = read_config(write(tmp_path, text))["MODEL"]
    assert model["SIZES"] == [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64)]
    assert model["PAIR"] == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:eval [\"__import__('os').getcwd()\"]",
        '!!python/object/apply:eval ["[].append"]',
        '!!python/object/apply:eval ["2 ** 100000"]',
        '!!python/object/apply:eval ["9999999999 * 9"]',
        '!!python/object/apply:eval ["[1] * 3"]',
        '!!python/object/apply:eval ["[x for x in [1] if x]"]',
        '!!python/object/apply:eval ["1 / 0"]',
        '!!python/object/apply:eval ["y"]',
        '!!python/object/apply:eval ["1", "2"]',
        "!!python/object/apply:os.getcwd []",
        "!!python/name:os.getcwd",
        "!!python/module:os",
        "!!python/object:pathlib.Path {a: 1}",
        "!!python/object/new:os.system [x]",
    ],
)
def test_code_in_a_file_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read as plain YAML"):
        read_config(write(tmp_path, f"{RCNN}  X: {text}\n"))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            "META_ARCHITECTURE: MyRCNN",
            r"MODEL.META_ARCHITECTURE: expected .*; got 'MyRCNN'; modules of your own",
        ),
        (
            "BACKBONE: {NAME: build_mine}",
            r"MODEL.BACKBONE.NAME: expected 'build_resnet_backbone'.*build_mine",
        ),
        ("ROI_HEADS: {NAME: MyHeads}", r"MODEL.ROI_HEADS.NAME: expected .*; got 'MyHeads'"),
        ("PROPOSAL_GENERATOR: {NAME: RRPN}", r"PROPOSAL_GENERATOR.NAME: expected 'RPN'; got 'RRPN'"),
        ("ROI_BOX_HEAD: {POOLER_TYPE: ROIPool}", r"POOLER_TYPE: expected 'ROIAlignV2' or 'ROIAlign'"),
        ("RESNETS: {DEFORM_ON_PER_STAGE: [0, 1, 1, 1]}", r"DEFORM_ON_PER_STAGE: expected \[False, False"),
        ("LOAD_PROPOSALS: true", r"MODEL.LOAD_PROPOSALS: expected False; got True$"),
        ("ROI_HEADS: 3", r"ROI_HEADS.NAME: expected sections above it; got 3"),
    ],
)
def test_modules_that_are_not_detectron2s_are_refused(section: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        read_config(write(tmp_path, f"MODEL:\n  {section}\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("VERSION: 1\nMODEL: {}\n", "VERSION: expected 2; got 1"),
        ("MODEL: {}\nINPUT: {FORMAT: L}\n", "INPUT.FORMAT: expected 'BGR' or 'RGB'; got 'L'"),
        ("model: 3\n", "expected the section MODEL, or a lazy config's model; got model"),
        ("- 1\n", "expected a mapping of names; got list"),
        ("1: 2\n", "expected a mapping of names; got dict"),
        ("a: [\n", "cannot be read as plain YAML"),
        ("", "expected a mapping of names; got NoneType"),
    ],
)
def test_what_is_no_configuration(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        read_config(write(tmp_path, text))


def lazy(**more: Any) -> str:
    return yaml.safe_dump({"model": MODEL, **more})


def test_a_lazy_config_keeps_its_model_and_how_it_takes_pictures(tmp_path: Path) -> None:
    resize = {"_target_": "detectron2.data.transforms.ResizeShortestEdge", "short_edge_length": 640}
    mapper = {"augmentations": [{**resize, "max_size": 900}], "image_format": "RGB"}
    more: dict[str, Any] = {"dataloader": {"test": {"mapper": mapper}}, "train": {"x": 1}}
    read = read_config(write(tmp_path, lazy(**more)))
    assert read == {"model": MODEL, "input": {"min_size": 640, "max_size": 900, "format": "RGB"}}
    assert is_lazy(read)
    assert check_config(read, "again") == read
    assert read_config(write(tmp_path, lazy()))["input"] == LAZY_INPUT
    edges = {**resize, "short_edge_length": [480, 480]}
    more["dataloader"]["test"]["mapper"] = {"augmentations": [edges], "image_format": "${...train.format}"}
    read = read_config(write(tmp_path, lazy(**more)))
    assert read["input"] == {**LAZY_INPUT, "min_size": 480}
    assert read_config(write(tmp_path, lazy(input={"min_size": 0})))["input"]["min_size"] == 0


def test_objects_and_classes_of_detectron2s_are_data(tmp_path: Path) -> None:
    """As LazyConfig.save writes shapes and classes."""
    shape = "!!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: 256, stride: null}"
    block = "!!python/name:detectron2.modeling.backbone.resnet.BottleneckBlock ''"
    text = f"model:\n  _target_: detectron2.modeling.FCOS\n  shape: {shape}\n  block_class: {block}\n"
    model = read_config(write(tmp_path, text))["model"]
    target = "detectron2.layers.shape_spec.ShapeSpec"
    assert model["shape"] == {"_target_": target, "channels": 256, "stride": None}
    assert model["block_class"] == {"_name_": "detectron2.modeling.backbone.resnet.BottleneckBlock"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model": {**MODEL, "x": [{"_target_": "os.system"}]}}, r"model\.x\[0\]\._target_: .*'os\.system'"),
        ({"model": {**MODEL, "x": {"_target_": "mine.Head"}}}, r"model\.x\._target_: .*modules of your own"),
        ({"model": {**MODEL, "x": {"_name_": "os.system"}}}, r"model\.x\._name_: .*'os\.system'"),
        ({"model": {**MODEL, "x": {"_target_": 3}}}, r"model\.x\._target_: .*got 3"),
        ({"model": {**MODEL, "x": "${oc.env:HOME}"}}, r"model\.x: expected references within the config"),
        ({"model": {**MODEL, 5: 1}}, "model: expected names; got 5"),
        ({"input": {"max_size": -1}}, r"input\.max_size: expected a number of pixels; got -1"),
        ({"input": {"format": "L"}}, r"input\.format: expected BGR or RGB; got 'L'"),
        ({"input": {"other": 1}}, "input: expected min_size, max_size, format"),
        (
            {"dataloader": {"test": {"mapper": {"augmentations": [{"_target_": "mine.Flip"}]}}}},
            "augmentations: expected ResizeShortestEdge alone",
        ),
    ],
)
def test_lazy_configs_that_are_refused(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        read_config(write(tmp_path, lazy(**more)))


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("detectron2.modeling.FPN", True),
        ("detectron2.modeling.meta_arch.fcos.FCOS", True),
        ("detectron2.modeling.ResNet.make_default_stages", True),
        ("detectron2.layers.ShapeSpec", True),
        ("torch.nn.GroupNorm", True),
        ("torch.nn.modules.normalization.GroupNorm", True),
        ("torch.hub.load", False),
        ("torch.load", False),
        ("torch.nn.modules.module.torch.hub.load", False),
        ("detectron2.modeling.mmdet_wrapper.MMDetDetector", False),
        ("detectron2.config.LazyConfig.load", False),
        ("detectron2.modeling.__init__.FPN", False),
        ("mine.detectron2.modeling.FPN", False),
        ("detectron2.modeling_of_mine.FPN", False),
        ("builtins.eval", False),
        ("FPN", False),
        ("", False),
    ],
)
def test_what_may_be_instantiated(name: str, allowed: bool) -> None:
    assert is_target(name) is allowed
