"""The torchvision family against torchvision itself, and the Detector contract."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import detection

from builders import ARCHITECTURE_NAMES, LABELS, random_image, random_model
from whybox.detectors import postprocess
from whybox.detectors.base import Candidates, Detections, Frame, PostProcessing, detections_of
from whybox.detectors.dense import Tower, locate
from whybox.detectors.postprocess import contenders
from whybox.detectors.registry import FAMILIES, load_detector
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.nms import suppress
from whybox.recipe import Recipe, RecipeError

OFFICIAL = (
    "retinanet_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
)


@pytest.fixture(scope="module", params=ARCHITECTURE_NAMES)
def detector(request: pytest.FixtureRequest) -> TorchvisionDetector:
    return wrap(random_model(request.param), LABELS, background=True)


def torchvision_answer(model: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        answer: dict[str, torch.Tensor] = model([image.permute(2, 0, 1).float() / 255])[0]
    return answer


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_detections_equal_torchvisions(architecture: str) -> None:
    """Same boxes, labels and scores as the model's own call."""
    model = random_model(architecture)
    # A one-stage head's first class counts here, so that both see the same candidates.
    first = 1 if "rcnn" in architecture or architecture == "ssd" else 0
    detector = wrap(model, LABELS if first else ("background", *LABELS), background=bool(first))
    image = random_image(150, 200, seed=3)
    ours = detector.detect([image])[0]
    theirs = torchvision_answer(model, image)
    assert len(ours) == len(theirs["scores"]) > 5
    assert torch.allclose(ours.boxes, theirs["boxes"], atol=1e-3)
    assert torch.equal(ours.labels + first, theirs["labels"])
    assert torch.allclose(ours.scores, theirs["scores"], atol=1e-5)


def test_settings_of_postprocessing_act(detector: TorchvisionDetector) -> None:
    image = random_image()
    everything = detector.detect([image], PostProcessing(0.05, 1000, "none"))[0]
    suppressed = detector.detect([image], PostProcessing(0.05, 1000, "iou", 0.1))[0]
    few = detector.detect([image], PostProcessing(0.05, 3, "iou", 0.1))[0]
    assert len(everything) > len(suppressed) > 3 == len(few)
    threshold = float(suppressed.scores[2])
    strict = detector.detect([image], PostProcessing(threshold, 1000, "iou", 0.1))[0]
    assert len(strict) == 2
    assert bool((strict.scores > threshold).all())


def test_large_pictures_are_scaled_and_boxes_come_back(detector: TorchvisionDetector) -> None:
    ((_, batch),) = detector.prepare([random_image(960, 1280)])
    assert (batch.frames[0].network_width, batch.frames[0].network_height) == (640, 480)
    found = detector.detect([random_image(960, 1280)])[0]
    assert float(found.boxes[:, 2].max()) > 640
    assert float(found.boxes[:, 2].max()) <= 1280 + 1e-3


@pytest.mark.parametrize("kind", ["different", "ties", "all the same"])
def test_the_best_are_the_same_however_many_there_are(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many the best are looked for first; of equal scores the first stay."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(500, 20, generator=generator)
    if kind != "different":
        scores = (scores * 20).round() / 20 if kind == "ties" else torch.ones(500, 20)
    boxes = torch.rand(500, 4, generator=generator) * 50
    boxes[:, 2:] += boxes[:, :2]
    candidates = Candidates(boxes, scores, torch.randint(0, 3, (500,), generator=generator))
    frame, settings = Frame(100, 100, 100, 100), PostProcessing(0.3, 10)
    for limits in ({"group_limit": 40}, {"class_limit": 40}, {"group_limit": 400, "class_limit": 15}):
        monkeypatch.setattr(postprocess, "MANY", 10**9)
        expected = contenders(candidates, frame, settings, **limits)
        assert 100 < len(expected.scores) < 10_000
        monkeypatch.setattr(postprocess, "MANY", 1)
        found = contenders(candidates, frame, settings, **limits)
        for name in ("boxes", "labels", "scores", "candidates"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_boxes_can_be_cut_to_the_picture_after_suppression() -> None:
    """What lies outside takes part, and is dropped in the end; in torchvision's order it is not compared."""
    boxes = torch.tensor([[-60.0, 0, -2, 40], [-60, 0, 4, 40], [10, 10, 30, 30]])
    candidates = Candidates(boxes, torch.tensor([[0.9], [0.8], [0.7]]), torch.zeros(3, dtype=torch.int64))
    frame, settings = Frame(200, 100, 100, 50), PostProcessing(0.5, 10, "iou", 0.5)

    def found(**order: bool) -> Detections:
        entered = contenders(candidates, frame, settings, **order)
        verdict = suppress(entered.boxes, entered.scores, entered.labels, settings)
        return detections_of(candidates, entered, verdict, frame, settings)

    assert found(clip=False, trim=True).boxes.tolist() == [[20, 20, 60, 60]]
    assert found(trim=True).boxes.tolist() == [[0, 0, 8, 80], [20, 20, 60, 60]]
    assert found().boxes.tolist() == [[0, 0, 0, 80], [0, 0, 8, 80], [20, 20, 60, 60]]


def test_candidates_are_located_level_by_level() -> None:
    places = locate(torch.tensor([0, 1, 23, 24, 29]), [(3, 4), (1, 3)], anchors=2)
    assert places.levels.tolist() == [0, 0, 0, 1, 1]
    assert places.rows.tolist() == [0, 0, 2, 0, 0]
    assert places.columns.tolist() == [0, 0, 3, 0, 2]
    assert places.anchors.tolist() == [0, 1, 1, 0, 1]


def test_a_tower_that_cannot_be_pulled_back_is_refused() -> None:
    out = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(TypeError, match="got Sigmoid"):
        Tower.of(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sigmoid()), out=out)
    with pytest.raises(TypeError, match="one after the other"):
        Tower.of(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ModuleList([nn.ReLU()])), out=out)
    with pytest.raises(TypeError, match="a ReLU after each convolution"):
        Tower.of(nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)), nn.ReLU()), out=out)
    with pytest.raises(TypeError, match="keep the level's size"):
        Tower.of(nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU()), out=out)


def test_wrap_refuses_other_models_and_wrong_labels() -> None:
    with pytest.raises(TypeError, match="got Linear"):
        wrap(nn.Linear(1, 1), LABELS)
    with pytest.raises(ValueError, match="expected 4 names for this head; got 3"):
        wrap(random_model("fcos"), LABELS[:3], background=True)


@pytest.mark.parametrize("architecture", OFFICIAL)
def test_official_models_load_from_a_file(architecture: str, tmp_path: Path) -> None:
    """Torchvision's COCO builders, from a state dict as they are downloaded."""
    torch.manual_seed(0)
    model = getattr(detection, architecture)(weights=None, weights_backbone=None, num_classes=91)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    labels = tuple(f"class {i}" for i in range(90))
    recipe = Recipe("coco", "torchvision", architecture, labels, background=True)
    detector = load_detector(recipe, tmp_path / "weights.pth")
    assert isinstance(detector, TorchvisionDetector)
    assert detector.labels == labels
    for key, value in model.state_dict().items():
        assert torch.equal(detector.model.state_dict()[key], value)


class TestWeights:
    """Weights that do not fit say what is wrong."""

    @pytest.fixture
    def recipe(self) -> Recipe:
        return Recipe("tiny", "torchvision", "small/fcos", LABELS, background=True)

    def state(self) -> dict[str, torch.Tensor]:
        return dict(random_model("fcos").state_dict())

    def test_missing_key(self, recipe: Recipe, tmp_path: Path) -> None:
        state = self.state()
        del state["head.classification_head.cls_logits.bias"]
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(RecipeError, match=r"missing: head\.classification_head\.cls_logits\.bias"):
            load_detector(recipe, tmp_path / "w.pth")

    def test_left_over_key(self, recipe: Recipe, tmp_path: Path) -> None:
        torch.save({**self.state(), "odd": torch.zeros(1)}, tmp_path / "w.pth")
        with pytest.raises(RecipeError, match="not in the model: odd"):
            load_detector(recipe, tmp_path / "w.pth")

    def test_another_shape(self, recipe: Recipe, tmp_path: Path) -> None:
        torch.save(
            {**self.state(), "head.classification_head.cls_logits.bias": torch.zeros(9)}, tmp_path / "w.pth"
        )
        with pytest.raises(RecipeError, match=r"of another shape: .*bias \(9,\), expected \(5,\)"):
            load_detector(recipe, tmp_path / "w.pth")

    def test_a_checkpoint_of_the_reference_training_script(self, recipe: Recipe, tmp_path: Path) -> None:
        state = self.state()
        told = {"model": state, "optimizer": {"state": {0: {"step": 3}}}, "epoch": 25}
        torch.save({**told, "args": argparse.Namespace(lr=0.02, data_path="coco")}, tmp_path / "w.pth")
        detector = load_detector(recipe, tmp_path / "w.pth")
        assert isinstance(detector, TorchvisionDetector)
        loaded = detector.model.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in state.items())

    @pytest.mark.parametrize(
        ("what", "name"),
        [(Path, r"pathlib\.Path"), (os.system, r"posix\.system"), (nn.Linear(1, 1), "Linear")],
    )
    def test_code_in_a_pickle_is_refused(
        self, recipe: Recipe, tmp_path: Path, what: object, name: str
    ) -> None:
        """And nobody is told to read it all the same."""
        torch.save({"model": what}, tmp_path / "w.pth")
        with pytest.raises(RecipeError, match=rf"it holds code \(.*{name}\); save a state dict") as refused:
            load_detector(recipe, tmp_path / "w.pth")
        assert "weights_only" not in str(refused.value)

    @pytest.mark.parametrize("data", [b"https://dl", b"hello", b"\x80\x02.", b""])
    def test_a_file_that_is_no_pickle_is_refused(self, recipe: Recipe, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "w.pth").write_bytes(data)
        with pytest.raises(RecipeError, match=r"not a file of torch\.save"):
            load_detector(recipe, tmp_path / "w.pth")

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    def test_no_weights_at_all(self, recipe: Recipe, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(RecipeError, match="cannot be read"):
            load_detector(recipe, tmp_path / name)
        with pytest.raises(RecipeError, match="cannot be read"):
            load_detector(recipe, tmp_path / f"absent-{name}")

    def test_a_family_whose_library_is_absent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "absent_family.py").write_text("import a_library_of_nobody\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(FAMILIES, "grid", "absent_family")
        with pytest.raises(
            RecipeError,
            match=r"grid needs a_library_of_nobody, which is not installed: see docs/detectors/grid\.md",
        ):
            load_detector(Recipe("x", "grid", "y", LABELS), tmp_path)

    def test_a_family_whose_library_is_broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "broken_family.py").write_text("raise ImportError('_C.so: undefined symbol: _ZN3c10')\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(FAMILIES, "grid", "broken_family")
        with pytest.raises(RecipeError, match=r"grid's library cannot be imported.*undefined symbol"):
            load_detector(Recipe("x", "grid", "y", LABELS), tmp_path)

    def test_unknown_family_and_architecture(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match=r"family: expected one of torchvision, .*; got 'yolo'"):
            load_detector(Recipe("x", "yolo", "y", LABELS), tmp_path)
        with pytest.raises(RecipeError, match=r"architecture: expected one of .*; got 'ssd'"):
            load_detector(Recipe("x", "torchvision", "ssd", LABELS), tmp_path)
