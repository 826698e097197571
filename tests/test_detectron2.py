"""The detectron2 family against detectron2 itself, on tiny models of every architecture.

Where detectron2 is not installed these tests are skipped; what needs no detectron2 is tested in
`test_array_pickle.py` and the other `test_detectron2_….py` but the loader's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("detectron2", reason="detectron2 is not installed: see docs/detectors/detectron2.md")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from omegaconf import OmegaConf

from builders import LABELS, encoded, random_image
from detectron2_parts import ARCHITECTURES, LAZY, config_of, load, sections
from detectron2_reference import SeenDetectron2, levels_above
from reference_parts import Case, compare_odam, double_precision
from whybox.detectors.base import PostProcessing, WhiteBoxDetector
from whybox.detectors.detectron2 import CascadeDetector, Detectron2Detector, FcosDetector, by_stride
from whybox.engine import Engine
from whybox.finding import find
from whybox.inversion.inverter import Inverter
from whybox.inversion.layout import Layout
from whybox.inversion.settings import settings_of
from whybox.methods.base import scalar
from whybox.methods.odam import odam_maps
from whybox.recipe import Recipe
from whybox_proto.v1 import explainer_pb2, worker_pb2

STAGES = ("res2", "res3", "res4", "res5")
SIZES = {"MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 128}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("detectron2")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def detector(architecture: str, folders: Path) -> Detectron2Detector:
    return load(architecture, folders / architecture)


@pytest.fixture(scope="module")
def case(architecture: str, folders: Path) -> Iterator[Case]:
    detector = load(architecture, folders / f"{architecture}-double")
    with double_precision():
        yield Case(SeenDetectron2(detector))


def predicted(architecture: str, folder: Path, image: Tensor, **input_: object) -> tuple[Tensor, ...]:
    """Boxes, scores and classes by `DefaultPredictor`, or by what it does where it takes no lazy config."""
    bgr = image.numpy()[:, :, ::-1]
    if architecture != "fcos":
        cfg = config_of(sections(architecture, **input_))
        cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
        found = DefaultPredictor(cfg)(bgr)["instances"]
    else:
        model = instantiate(OmegaConf.create(LAZY["model"])).eval()
        DetectionCheckpointer(model).load(str(folder / "model_final.pth"))
        if input_:
            edge = input_["MIN_SIZE_TEST"]
            resized = ResizeShortestEdge([edge, edge], input_["MAX_SIZE_TEST"]).get_transform(bgr)
            bgr = resized.apply_image(bgr)
        pixels = torch.as_tensor(bgr.astype("float32").transpose(2, 0, 1))
        with torch.no_grad():
            height, width = image.shape[:2]
            found = model([{"image": pixels, "height": height, "width": width}])[0]["instances"]
    return found.pred_boxes.tensor, found.scores, found.pred_classes


def test_levels_of_equal_strides_are_in_one_order() -> None:
    """As res4 and a dilated res5; a set of names has another order in every process."""
    strides = {"res5": 16, "res3": 8, "res4": 16}
    for names in (["res5", "res3", "res4"], ["res4", "res5", "res3"]):
        assert by_stride(names, strides) == ["res3", "res4", "res5"]


@pytest.mark.parametrize("shape", [(90, 118), (64, 200), (200, 64), (120, 120)])
@pytest.mark.parametrize("resized", [False, True])
def test_detections_equal_default_predictors(
    architecture: str, folders: Path, shape: tuple[int, int], resized: bool
) -> None:
    input_ = SIZES if resized else {}
    folder = folders / f"{architecture}-{resized}"
    ours_ = load(architecture, folder, **input_)
    image = random_image(*shape, seed=3)
    found = ours_.detect([image])[0]
    boxes, scores, classes = predicted(architecture, folder, image, **input_)
    assert len(found) == len(scores) > 5
    assert torch.equal(found.labels, classes)
    torch.testing.assert_close(found.boxes, boxes, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.scores, scores, atol=1e-4, rtol=0)


def test_the_pass_finds_what_detect_finds(detector: Detectron2Detector) -> None:
    """`detections` leaves most candidates out; so does `find`, which is what requests go through."""
    ((_, batch),) = detector.prepare([random_image(90, 118)])
    forward = detector.forward(batch)
    (alone,) = detector.detect([random_image(90, 118)])
    for found in (
        detector.detections(forward, 0, detector.defaults),
        find(detector, forward, 0, detector.defaults).detections,
    ):
        for name in found.__dataclass_fields__:
            torch.testing.assert_close(getattr(found, name), getattr(alone, name))
    candidates = detector.candidates(forward, 0)
    rows = torch.arange(len(alone))
    assert torch.equal(candidates.scores[alone.candidates], alone.class_scores)
    assert torch.equal(alone.class_scores[rows, alone.labels], alone.scores)


def test_a_batch_of_mixed_sizes_answers_as_each_alone(detector: Detectron2Detector) -> None:
    images = [random_image(96, 128, seed=1), random_image(80, 140, seed=2), random_image(96, 128, seed=3)]
    assert [positions for positions, _ in detector.prepare(images)] == [[0, 2], [1]]
    for image, found in zip(images, detector.detect(images), strict=True):
        (alone,) = detector.detect([image])
        assert torch.equal(alone.labels, found.labels)
        torch.testing.assert_close(alone.boxes, found.boxes, atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(alone.scores, found.scores, atol=1e-4, rtol=1e-4)


def test_two_runs_agree(detector: Detectron2Detector) -> None:
    first, second = (detector.detect([random_image(90, 118)])[0] for _ in range(2))
    assert torch.equal(first.boxes, second.boxes)
    assert torch.equal(first.scores, second.scores)


def test_boxes_come_back_to_the_picture(folders: Path) -> None:
    detector = load("faster-rcnn", folders / "sizes", **SIZES)
    image = random_image(480, 512, seed=1)
    ((_, batch),) = detector.prepare([image])
    assert (batch.frames[0].network_width, batch.frames[0].network_height) == (102, 96)
    assert tuple(batch.pixels.shape[2:]) == (96, 128)
    (found,) = detector.detect([image])
    assert 128 < float(found.boxes[:, 2].max()) <= 512 + 1e-3
    assert detector.max_aspect == 255


@pytest.mark.parametrize("layer", ["level", "roi", *STAGES])
@pytest.mark.parametrize("smoothing", [0.0, 0.08])
def test_maps_equal_the_slow_reference(case: Case, layer: str, smoothing: float) -> None:
    if layer not in case.detector.layers:
        assert layer in ("roi", "res5"), "region features of one stage, and the stage in C4's head"
        return
    if isinstance(case.detector, FcosDetector) and layer in ("res2", "res4"):
        return  # its backbone is the largest here; these are compared together below
    with double_precision():
        compare_odam(case, [layer], smoothing)


def test_layers_together_equal_the_slow_reference(case: Case) -> None:
    layers = ["res4", "level", "res2", *(["roi"] if "roi" in case.detector.layers else [])]
    with double_precision():
        compare_odam(case, layers, 0.08)


def test_group_norm_is_differentiated_where_asked(folders: Path) -> None:
    detector = load("fcos", folders / "fcos-exact")
    with double_precision():
        compare_odam(Case(SeenDetectron2(detector)), ["level"], 0.08, exact=True)


def test_another_class_has_another_map(detector: Detectron2Detector) -> None:
    ((_, batch),) = detector.prepare([random_image(90, 118)])
    forward = detector.forward(batch, keep=True)
    found = detector.detections(forward, 0, detector.defaults)[:3]
    taps = detector.taps(forward, 0, ["level"], found.candidates, found.labels)
    targets = [scalar(f"class:{label}", LABELS) for label in LABELS]
    for row in odam_maps(taps, targets, batch.frames[0], smoothing=0.0)[0]:
        assert not torch.equal(row[0].values, row[1].values)


def test_explaining_leaves_no_trace(detector: Detectron2Detector) -> None:
    image = random_image(90, 118)
    (before,) = detector.detect([image])
    ((_, batch),) = detector.prepare([image])
    forward = detector.forward(batch, keep=True)
    taps = detector.taps(forward, 0, ["level", "res3"], before.candidates[:2], before.labels[:2])
    target = scalar("class", LABELS)
    odam_maps(taps, [target], batch.frames[0], smoothing=0.0)

    def failing(_outputs: object) -> Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        odam_maps(taps, [failing], batch.frames[0], smoothing=0.0)
    for module in detector.model.modules():
        assert not [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks]
    assert not any(p.requires_grad or p.grad is not None for p in detector.model.parameters())
    (after,) = detector.detect([image])
    assert torch.equal(before.class_scores, after.class_scores)
    assert torch.equal(before.boxes, after.boxes)


def test_running_on_from_a_layer_gives_what_the_model_gives(detector: Detectron2Detector) -> None:
    ((_, batch),) = detector.prepare([random_image(90, 118)])
    forward = detector.forward(batch, keep=True)
    expected = detector.candidates(forward, 0)
    for layer in ["level", *forward.stages]:
        maps = list(forward.levels.values()) if layer == "level" else [forward.stages[layer]]
        again = detector.candidates(detector.resume(forward, 0, layer, [m * 1.0 for m in maps]), 0)
        assert torch.equal(again.boxes, expected.boxes), layer
        assert torch.equal(again.scores, expected.scores), layer
        changed = [m * torch.linspace(0.5, 1, m.shape[3]) for m in maps]
        resumed = detector.resume(forward, 0, layer, changed)
        if layer != "level":
            wanted = levels_above(detector.model, batch.pixels, layer, changed[0])
            for name, level in resumed.levels.items():
                torch.testing.assert_close(level, wanted[name], atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="layer is one of level"):
        detector.resume(forward, 0, "stem", maps)


def test_class_maps_are_those_of_the_candidates(detector: Detectron2Detector) -> None:
    ((_, batch),) = detector.prepare([random_image(90, 118)])
    forward = detector.forward(batch)
    if not detector.dense:
        with pytest.raises(NotImplementedError):
            detector.class_maps(forward, 0)
        return
    scores = detector.candidates(forward, 0).scores
    laid = detector.class_maps(forward, 0, score=True)
    again = torch.cat([level.permute(2, 3, 0, 1).flatten(0, 2) for level in laid])
    assert torch.equal(again, scores)


def test_a_trace_has_the_same_candidates_and_a_way_to_the_pixels(detector: Detectron2Detector) -> None:
    ((_, batch),) = detector.prepare([random_image(90, 118)])
    forward = detector.forward(batch, keep=True)
    expected = detector.candidates(forward, 0)
    chosen = torch.tensor([len(expected.scores) - 1, 0, 3])
    held = detector.hold(forward, 0, chosen)
    trace = detector.trace(batch, held)
    found = detector.candidates(trace.forward, 0)
    torch.testing.assert_close(
        found.scores[held["candidates"]], expected.scores[chosen], atol=1e-4, rtol=1e-3
    )
    torch.testing.assert_close(found.boxes[held["candidates"]], expected.boxes[chosen], atol=1e-2, rtol=1e-3)
    (gradient,) = torch.autograd.grad(trace.levels[0].sum(), trace.pixels)
    assert float(gradient.abs().sum()) > 0


def test_stages_say_what_the_detector_finds(detector: Detectron2Detector) -> None:
    """And differentiably down to the picture."""
    image = random_image(96, 128)
    ((_, batch),) = detector.prepare([image])
    embedded = detector.embed(image.permute(2, 0, 1).float() / 255)
    torch.testing.assert_close(embedded.pixels, batch.pixels, atol=1e-5, rtol=1e-5)
    assert embedded.frames == batch.frames
    candidates = detector.candidates(detector.forward(batch), 0)
    said = detector.stage_outputs(batch)
    assert [stage.stage for stage in said] == list(detector.stages)
    torch.testing.assert_close(said[-1].scores(), candidates.scores)
    torch.testing.assert_close(said[-1].boxes.detach(), candidates.boxes)
    picture = (image.permute(2, 0, 1).float() / 255).requires_grad_()
    for stage in detector.stage_outputs(detector.embed(picture)):
        for output in (stage.logits, stage.boxes):
            (gradient,) = torch.autograd.grad(output.sum(), picture, retain_graph=True)
            assert float(gradient.abs().sum()) > 0
    assert (stage.masks is not None) == detector.masks
    if stage.masks is not None:
        labels = torch.tensor([1, 2])
        logits = stage.masks(candidates.boxes_of(torch.tensor([0, 1]), labels), labels)
        assert logits.shape[0] == 2
        assert logits.shape[1] == logits.shape[2] >= 6
        (gradient,) = torch.autograd.grad(logits.sum(), picture)
        assert float(gradient.abs().sum()) > 0


def test_resizing_is_differentiable_and_near_pillows(folders: Path) -> None:
    """Pillow rounds to whole levels."""
    detector = load("retinanet", folders / "embed", **SIZES)
    image = random_image(120, 150)
    ((_, batch),) = detector.prepare([image])
    embedded = detector.embed(image.permute(2, 0, 1).float() / 255)
    assert embedded.frames == batch.frames
    assert float((embedded.pixels - batch.pixels).abs().max()) < 1.2 / 57


def test_regions_replace_the_proposals(folders: Path) -> None:
    regions = torch.tensor([[8.0, 10.0, 40.0, 42.0], [50.0, 20.0, 86.0, 56.0]])
    for name in ("faster-rcnn", "cascade"):
        detector = load(name, folders / f"{name}-regions")
        _, second = detector.stage_outputs(detector.embed(torch.rand(3, 64, 96)), regions)
        assert torch.equal(second.anchors, regions)


def test_a_cascades_scores_are_means_over_its_heads(folders: Path) -> None:
    detector = load("cascade", folders / "means")
    assert isinstance(detector, CascadeDetector)
    ((_, batch),) = detector.prepare([random_image(90, 118)])
    forward = detector.forward(batch)
    held = forward.extra["proposals"][0]
    assert held.shape[1:] == (3, 4)
    candidates = detector.candidates(forward, 0)
    last = forward.extra["raw"]["logits"][0].softmax(1).double()
    with double_precision():
        earlier = sum(SeenDetectron2(detector).earlier(held.double()))
        torch.testing.assert_close(candidates.scores.double(), ((earlier + last) / 3)[:, :-1])


@pytest.mark.parametrize("method", ["odam", "grad_cam", "d_rise", "odsmoothgrad", "mask_out", "activation"])
def test_methods_explain(detector: WhiteBoxDetector, method: str) -> None:
    """Through a worker, as a request does."""
    engine = Engine(Recipe("tiny", "detectron2", "config", LABELS, score_threshold=0.1), detector)
    described = {each.name for each in engine.model.methods}
    assert method in described
    asked = explainer_pb2.ExplainRequest(image=encoded(random_image(90, 118)), method=method)
    asked.select.max_detections = 2
    if method in ("d_rise", "odsmoothgrad"):
        asked.budget.samples = 8
    (reply,) = engine.answer([worker_pb2.WorkerRequest(explain=asked)])
    assert not reply.HasField("error"), reply.error
    assert len(reply.explain.heat_maps) == 2


@pytest.mark.parametrize("nms", ["odam", "soft", "none"])
def test_kinds_of_nms(detector: Detectron2Detector, nms: str) -> None:
    ((_, batch),) = detector.prepare([random_image(90, 118)])
    forward = detector.forward(batch, keep=True)
    settings = replace(detector.defaults, nms=nms, score_threshold=0.25, max_detections=50)
    found = find(detector, forward, 0, settings).detections
    assert len(found) > 0
    assert bool((found.boxes[:, 2] <= 118 + 1e-3).all())
    assert bool((found.boxes >= 0).all())


def test_boxes_are_compared_before_they_are_cut_and_dropped_after(folders: Path) -> None:
    """As detectron2's one-stage detectors do: what lies outside suppresses, and then goes."""
    detector = load("retinanet", folders / "cut")
    ((_, batch),) = detector.prepare([random_image(90, 118)])
    frame, candidates = batch.frames[0], detector.candidates(detector.forward(batch), 0)
    boxes = torch.tensor([[-60.0, 0, -2, 40], [-60, 0, 4, 40], [10, 10, 30, 30]])
    scores = torch.tensor([[0.9, 0, 0, 0], [0.8, 0, 0, 0], [0.7, 0, 0, 0]])
    made = replace(candidates, boxes=boxes, scores=scores, groups=torch.zeros(3, dtype=torch.int64))
    found = detector.postprocess(made, frame, PostProcessing(0.5, 10, "iou", 0.5))
    assert found.candidates.tolist() == [2]
    kept = detector.postprocess(made, frame, PostProcessing(0.5, 10, "none"))
    assert kept.candidates.tolist() == [1, 2]
    assert kept.boxes[0].tolist() == [0, 0, 4, 40]


@pytest.mark.parametrize("losses", ["all", "masks"])
def test_inversion_runs(detector: Detectron2Detector, losses: str) -> None:
    """Every part of the objective is a number, the picture changes, the detector does not."""
    masks = None
    if losses == "masks":
        if not detector.masks:
            return
        masks = torch.zeros(2, 64, 96, dtype=torch.bool)
        masks[0, 12:40, 10:38] = masks[1, 24:50, 54:80] = True
    boxes = torch.tensor([[8.0, 10.0, 40.0, 42.0], [50.0, 20.0, 86.0, 56.0]])
    layout = Layout(96, 64, boxes, torch.tensor([1, 3]), masks, () if masks is None else (0, 1))
    settings = settings_of({"iterations": 3, "anneal": 0.0, "channel_noise": 0.1}, detector)
    before = copy.deepcopy(detector.model.state_dict())
    inverter = Inverter(detector, layout, settings, 0)
    state = inverter.begin()
    first = inverter.picture(state)
    while not inverter.finished(state):
        inverter.iterate(state)
    last = inverter.picture(state)
    assert bool(last.isfinite().all())
    assert float((last - first).abs().max()) > 0
    for name, value in detector.model.state_dict().items():
        assert torch.equal(value, before[name]), name
