"""detectron2's checkpoints are read as arrays; none of this needs detectron2."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from whybox.detectors.detectron2_checkpoint import find_checkpoint, read_checkpoint
from whybox.detectors.registry import FAMILIES, load_detector
from whybox.recipe import Recipe, RecipeError

W = np.arange(6, dtype=np.float32).reshape(2, 3)


def pickled(path: Path, value: Any) -> Path:
    path.write_bytes(pickle.dumps(value))
    return path


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def test_a_zoo_checkpoint(tmp_path: Path) -> None:
    model = {"a.weight": W, "b": W.astype(">f4"), "pixel_mean": W, "x.anchor_generator.cell_anchors.0": W}
    read = read_checkpoint(pickled(tmp_path / "m.pkl", {"model": model, "__author__": "zoo"}))
    assert sorted(read.weights) == ["a.weight", "b"]
    for value in read.weights.values():
        assert torch.equal(value, torch.from_numpy(W))
    assert (read.by_suffix, read.caffe2) == (False, False)


def test_heuristics_are_asked_for_by_the_file(tmp_path: Path) -> None:
    said = {"model": {"a": W}, "__author__": "torchvision", "matching_heuristics": True}
    read = read_checkpoint(pickled(tmp_path / "m.pkl", said))
    assert (read.by_suffix, read.caffe2) == (True, False)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_caffe2_checkpoint(wrapped: bool, tmp_path: Path) -> None:
    blobs = {"conv1_w": W, "conv1_w_momentum": W}
    read = read_checkpoint(
        pickled(tmp_path / "m.pkl", {"blobs": blobs, "cfg": "TRAIN: {}"} if wrapped else blobs)
    )
    assert list(read.weights) == ["conv1_w"]
    assert (read.by_suffix, read.caffe2) == (True, True)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("trained", [True, False])
def test_a_checkpoint_of_ones_own(prefix: str, trained: bool, tmp_path: Path) -> None:
    model = {f"{prefix}a": torch.ones(2), f"{prefix}b": torch.zeros(3)}
    said: Any = {"model": model, "optimizer": {"state": {}}, "iteration": 9} if trained else model
    read = read_checkpoint(saved(tmp_path / "m.pth", said))
    assert sorted(read.weights) == ["a", "b"]
    assert not read.by_suffix


def test_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "w.safetensors").weights["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("m.pkl", {"model": {"a": Path("x")}, "__author__": "x"}, "cannot be read: it names pathlib"),
        ("m.pkl", [W], "expected weights by name; got list"),
        ("m.pkl", {"model": {"a": 3}, "__author__": "x"}, "a: expected an array; got int"),
        (
            "m.pkl",
            {"model": {"a": W.astype(np.longdouble)}, "__author__": "x"},
            r"a: expected numbers of a type that torch has; got (float128|longdouble)",
        ),
        ("m.pkl", {"blobs": {}}, "expected weights by name"),
        ("m.pkl", {"blobs": {3: W}}, "expected names of weights; got 3"),
        ("m.pth", {"model": Path("x")}, "cannot be read"),
        ("m.pth", {"model": {}}, "expected weights by name"),
        ("m.pth", 5, "expected weights by name; got int"),
        ("m.onnx", 5, r"expected a checkpoint \(.safetensors, .pth, .pkl\); got 'm.onnx'"),
    ],
)
def test_other_files_are_refused(name: str, value: Any, words: str, tmp_path: Path) -> None:
    write = saved if name.endswith(".pth") else pickled
    with pytest.raises(RecipeError, match=words):
        read_checkpoint(write(tmp_path / name, value))


@pytest.mark.parametrize("name", ["m.pkl", "m.pth", "m.safetensors"])
def test_files_that_are_missing_or_damaged(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_checkpoint(tmp_path / name)
    for damaged in (b"damaged", b"\x80\x02]q\x00K", b"", b"\x80\x02h\x05."):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(RecipeError, match="cannot be read"):
            read_checkpoint(tmp_path / name)


def test_the_checkpoint_in_a_folder(tmp_path: Path) -> None:
    """The one that `last_checkpoint` names, else the final one, else the only one."""
    only = tmp_path / "model_0004999.pth"
    only.touch()
    (tmp_path / "config.yaml").touch()
    assert find_checkpoint(tmp_path) == only
    final = tmp_path / "model_final.pth"
    final.touch()
    assert find_checkpoint(tmp_path) == final
    (tmp_path / "last_checkpoint").write_text("model_0004999.pth\n")
    assert find_checkpoint(tmp_path) == only
    assert find_checkpoint(final) == final


@pytest.mark.parametrize(
    ("files", "last", "words"),
    [
        ([], None, "expected one checkpoint .*; got none"),
        (["a.pth", "b.pkl"], None, "expected one checkpoint .*; got a.pth, b.pkl"),
        (["a.pth"], "b.pth", "last_checkpoint names 'b.pth', which is not there"),
        (["a.pth"], "../a.pth", "last_checkpoint names 'a.pth', which is not there"),
    ],
)
def test_folders_without_a_checkpoint(files: list[str], last: str | None, words: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    if last is not None:
        (tmp_path / "last_checkpoint").write_text(last)
    with pytest.raises(RecipeError, match=words):
        find_checkpoint(tmp_path)


def test_without_detectron2_the_family_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.delitem(sys.modules, FAMILIES["detectron2"], raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    recipe = Recipe("mine", "detectron2", "faster_rcnn_R_50_FPN_3x", ("a",))
    with pytest.raises(RecipeError, match=r"detectron2 needs detectron2, which is not installed: see docs/"):
        load_detector(recipe, tmp_path)
