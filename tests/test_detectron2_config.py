"""detectron2's configurations are read as data; none of this needs detectron2."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from whybox.detectors import detectron2_config
from whybox.detectors.detectron2_config import check_config, is_lazy, is_target
from whybox.detectors.detectron2_pictures import LAZY_INPUT
from whybox.recipe import RecipeError

RCNN = "MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n"
MODEL = {"_target_": "detectron2.modeling.RetinaNet", "num_classes": 3}


def read_config(path: Path, root: Path | None = None) -> dict[str, Any]:
    """Of a file in the folder of the weights."""
    return detectron2_config.read_config(path, root or path.parent)


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_are_merged_with_those_that_they_are_based_on(tmp_path: Path) -> None:
    write(tmp_path, "VERSION: 2\nMODEL:\n  META_ARCHITECTURE: RetinaNet\n  A: 1\n", "base.yaml")
    write(tmp_path, "_BASE_: ../base.yaml\nMODEL:\n  A: 2\n  B: 3\nINPUT:\n  FORMAT: RGB\n", "one/a.yaml")
    path = write(tmp_path, "_BASE_: a.yaml\nMODEL:\n  B: 4\n", "one/b.yaml")
    assert read_config(path, tmp_path) == {
        "VERSION": 2,
        "MODEL": {"META_ARCHITECTURE": "RetinaNet", "A": 2, "B": 4},
        "INPUT": {"FORMAT": "RGB"},
    }


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("absent.yaml", "cannot be read"),
        ("config.yaml", "at most 10 files"),
        ("detectron2://x.yaml", "_BASE_: expected a file in the folder of the weights or below"),
        ("[1]", "_BASE_: expected a file in the folder of the weights or below"),
        ("../outside.yaml", r"folder of the weights or below; got '\.\./outside.yaml'"),
        ("/dev/null", "folder of the weights or below; got '/dev/null'"),
        ("link.yaml", "folder of the weights or below; got 'link.yaml'"),
        ('"a\\0b"', "folder of the weights or below"),
        ("below", "below: cannot be read: expected a regular file"),
    ],
)
def test_bases_that_are_none(base: str, words: str, tmp_path: Path) -> None:
    write(tmp_path, RCNN, "outside.yaml")
    folder = tmp_path / "weights"
    (folder / "below").mkdir(parents=True)
    (folder / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    with pytest.raises(RecipeError, match=words):
        read_config(write(folder, f"_BASE_: {base}\n{RCNN}"))


def test_a_folder_of_weights_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path, RCNN, "real/base.yaml")
    write(tmp_path, "_BASE_: base.yaml\n", "real/config.yaml")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert "MODEL" in read_config(tmp_path / "link" / "config.yaml")


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    # If it were opened, it would be read to its end: this says a configuration, and closes it.
    writer = Thread(target=(tmp_path / "pipe.yaml").write_text, args=(RCNN,), daemon=True)
    writer.start()
    (tmp_path / "device.yaml").symlink_to(os.devnull)
    try:
        for name in ("pipe.yaml", "device.yaml"):
            with pytest.raises(RecipeError, match="cannot be read: expected a regular file"):
                read_config(tmp_path / name)
        with pytest.raises(RecipeError, match=r"pipe.yaml: cannot be read: expected a regular file"):
            read_config(write(tmp_path, "_BASE_: pipe.yaml\n"))
    finally:
        with os.fdopen(os.open(tmp_path / "pipe.yaml", os.O_RDONLY | os.O_NONBLOCK)):
            writer.join()  # what it says fits into the pipe


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in itertools.pairwise("abcdefghi")),
    ],
)
def test_aliases_have_an_end(text: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected at most 100000 values; got more"):
        read_config(write(tmp_path, f"{RCNN}{text}\n"))
    with pytest.raises(RecipeError, match="x: expected at most 100000 values; got more"):
        check_config(yaml.safe_load(f"{RCNN}{text}\n"), "x")


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
        "!!python/object/apply:eval []",
        "!!python/object/apply:eval [3]",
        f"!!python/object/apply:eval ['{'-' * 999}1']",
        f"!!python/object/apply:eval ['{'(' * 499}1{')' * 499}']",
        "2001-13-45",
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
        ("ROI_MASK_HEAD: {POOLER_TYPE: ROIPool}", r"ROI_MASK_HEAD.POOLER_TYPE: .*got 'ROIPool'"),
        (
            "ROI_MASK_HEAD: {POOLER_TYPE: ROIAlignRotated}",
            r"ROI_MASK_HEAD.POOLER_TYPE: expected 'ROIAlignV2'",
        ),
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
    return yaml.safe_dump({"model": MODEL, **more}, sort_keys=False)


def test_a_lazy_config_keeps_its_model_and_how_it_takes_pictures(tmp_path: Path) -> None:
    resize = {"_target_": "detectron2.data.transforms.ResizeShortestEdge", "short_edge_length": 640}
    mapper = {"augmentations": [{**resize, "max_size": 900}], "image_format": "RGB"}
    more: dict[str, Any] = {"dataloader": {"test": {"mapper": mapper}}, "train": {"x": 1}}
    read = read_config(write(tmp_path, lazy(**more)))
    assert read == {"model": MODEL, "input": {"min_size": 640, "max_size": 900, "format": "RGB"}}
    assert is_lazy(read)
    assert check_config(read, "again") == read
    assert read_config(write(tmp_path, lazy()))["input"] == LAZY_INPUT
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
        ({"model": {**MODEL, "x": "${oc.env:HOME}"}}, r"model\.x: expected a reference to another part"),
        ({"model": {**MODEL, "x": "${train.y}"}}, r"model\.x: expected a reference .*; got '\${train\.y}'"),
        ({"model": {**MODEL, 5: 1}}, "model: expected names; got 5"),
        ({"input": {"max_size": -1}}, r"input\.max_size: expected a number of pixels; got -1"),
        ({"input": {"format": "L"}}, r"input\.format: expected BGR or RGB; got 'L'"),
        ({"input": {"min_size": 5, "max_size": 0}}, r"input\.max_size: expected a number of pixels; got 0"),
        ({"input": {"other": 1}}, "input: expected min_size, max_size, format"),
        ({"input": 5}, "input: expected min_size, max_size, format; got 5"),
    ],
)
def test_lazy_configs_that_are_refused(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        read_config(write(tmp_path, lazy(**more)))


def test_references_out_of_the_model_are_resolved(tmp_path: Path) -> None:
    model = {**MODEL, "num_classes": "${classes}", "head": ["${..num_classes}", "${..norm}"], "norm": "GN"}
    read = read_config(write(tmp_path, lazy(model=model, classes=7)))
    assert read["model"] == {**MODEL, "num_classes": 7, "head": [7, "GN"], "norm": "GN"}


@pytest.mark.parametrize("given", [{}, {"input": 5}, {"input": None}, {"input": {"min_size": 5}}])
def test_a_packed_lazy_config_says_how_it_takes_pictures(given: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="mine: input: expected min_size, max_size, format; got"):
        check_config({"model": MODEL, **given}, "mine")


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
