"""ODSmoothGrad: arithmetic on a linear detector, and a slow reference on every architecture."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from builders import LABELS, encoded, random_image, random_model, write_recipe
from reference_parts import double_precision
from slow_reference import full_levels, held, outputs_of, scalar_of
from whybox.detectors.base import Detections, Detector
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.engine import Engine
from whybox.methods import METHODS
from whybox.methods import odsmoothgrad as module
from whybox.methods.base import SIDES, Map, Question, normalise
from whybox.methods.sampling import generator
from whybox.recipe import read_recipe
from whybox_proto import maps as wire_maps
from whybox_proto.sums import Totals, chunks
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

METHOD = METHODS["odsmoothgrad"]
DEFAULTS = {param.name: param.default for param in METHOD.params}
ARCHITECTURES = ("retinanet", "fcos", "faster-rcnn", "ssd")


def question_of(
    detector: TorchvisionDetector,
    image: Tensor,
    targets: Sequence[str],
    *,
    pick: Sequence[int] = (0, 1),
    max_side: int = 512,
    memory: int = 2**31,
    **params: Any,
) -> Question:
    """A question about some of the detections of a picture."""
    ((_, batch),) = detector.prepare([image])
    forward = detector.forward(batch, keep=True)
    found = detector.postprocess(detector.candidates(forward, 0), batch.frames[0], detector.defaults)
    return Question(
        forward,
        0,
        found[torch.tensor(list(pick))],
        targets,
        "",
        {**DEFAULTS, **params},
        seed=7,
        picture=image,
        max_side=max_side,
        memory=memory,
        settings=detector.defaults,
    )


class Body(nn.ModuleDict):
    """One stage: a convolution of 2 x 2 pixels, without a ReLU, so linear in the pixels."""

    def __init__(self, weight: Tensor) -> None:
        conv = nn.Conv2d(3, len(weight), 2, stride=2)
        conv.weight = nn.Parameter(weight)
        nn.init.zeros_(conv.bias)
        super().__init__({"stage": nn.Sequential(conv)})
        self.return_layers = {"stage": "0"}


class Backbone(nn.Module):
    """`Body` as the only level of the pyramid."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels = Body(weight), nn.Identity(), len(weight)


STD = (0.2, 0.25, 0.5)
PIXELS = torch.arange(24.0).reshape(2, 3, 2, 2) / 10 - 1
"""Weights of the stage's two channels on three colours of 2 x 2 pixels."""
LOGITS = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
"""Weights of two classes on the stage's channels."""
SHIFT = torch.tensor([0.3, -0.7])
"""Weights of the anchor's shift along x, in anchors, on the stage's channels."""
ANCHOR = 4


def linear_detector() -> TorchvisionDetector:
    """A RetinaNet whose logits and shift along x are linear in one cell's pixels.

    Each convolution of the towers hands the cell on; a large bias keeps every ReLU open.
    """
    head = RetinaNetHead(2, 1, 2)
    for tower in (head.classification_head, head.regression_head):
        for conv in tower.conv.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.zeros_(conv.weight)
                nn.init.constant_(conv.bias, 100.0)
                for channel in range(2):
                    conv.weight.data[channel, channel, 1, 1] = 1.0
    for conv in (head.classification_head.cls_logits, head.regression_head.bbox_reg):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    head.classification_head.cls_logits.weight.data[:, :, 1, 1] = LOGITS
    head.regression_head.bbox_reg.weight.data[0, :, 1, 1] = SHIFT
    # Four convolutions add 100 each; the output's bias takes that off again.
    head.classification_head.cls_logits.bias.data = -400 * LOGITS.sum(1)
    head.regression_head.bbox_reg.bias.data[0] = -400 * SHIFT.sum()
    model = RetinaNet(
        Backbone(PIXELS),
        2,
        min_size=8,
        max_size=8,
        image_mean=[0.5] * 3,
        image_std=list(STD),
        anchor_generator=AnchorGenerator(((ANCHOR,),), ((1.0,),)),
        head=head,
        score_thresh=0.0,
        nms_thresh=1.0,
    )
    return wrap(model, ("first", "second"))


class TestLinear:
    """A detector that is linear in the pixels: the gradient is the same in every copy, noise or not."""

    CELL = (1, 2)  # row, column: pixels 2..3 along y, 4..5 along x

    def explain(self, targets: Sequence[str], **params: Any) -> list[Map]:
        detector = linear_detector()
        question = question_of(detector, random_image(8, 8), targets, **params)
        row, column = self.CELL
        columns = question.forward.batch.pixels.shape[3] // 2
        assert columns == 16, "the picture is padded from 8 to 32 pixels"
        found = Detections(
            boxes=torch.tensor([[3.0, 1.0, 7.0, 5.0]]),
            labels=torch.tensor([1]),
            scores=torch.tensor([0.5]),
            class_scores=torch.tensor([[0.5, 0.5]]),
            candidates=torch.tensor([row * columns + column]),
        )
        question = Question(**{**question.__dict__, "detections": found})
        (maps,) = METHOD.explain(detector, question)
        return maps

    def expected(self, weights: Tensor) -> Tensor:
        """|Σ_channel weight · pixel weight|, in the picture's own range, the largest colour; (8, 8)."""
        gradient = torch.einsum("k,kcyx->cyx", weights, PIXELS) / torch.tensor(STD)[:, None, None]
        whole = torch.zeros(8, 8)
        row, column = self.CELL
        whole[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = gradient.abs().amax(0)
        return whole

    @pytest.mark.parametrize("sigma", [0.0, 0.05, 0.5])
    def test_the_map_is_the_weights_whatever_the_noise(self, sigma: float) -> None:
        own, other, x1, y1 = self.explain(("class", "class:first", "x1", "y1"), sigma=sigma, samples=5)
        for made, wanted in ((own, LOGITS[1]), (other, LOGITS[0]), (x1, SHIFT * ANCHOR), (y1, SHIFT * 0)):
            assert torch.allclose(made.values, self.expected(wanted), rtol=1e-5, atol=1e-6)
            assert made.region == (0.0, 0.0, 8.0, 8.0)
            assert not made.signed
        assert own.samples == (5 if sigma else 1), "without noise every copy is the same"
        if sigma:
            assert own.standard_error is not None
            assert own.standard_error < 1e-5

    def test_the_score_is_the_logit_through_the_sigmoid(self) -> None:
        """Without noise: the logit's gradient times s (1 - s)."""
        (logit,) = self.explain(("class",), sigma=0.0, score="logit")
        (score,) = self.explain(("class",), sigma=0.0, score="score")
        ratio = float(score.values.max() / logit.values.max())
        detector = linear_detector()
        ((_, batch),) = detector.prepare([random_image(8, 8)])
        row, column = self.CELL
        s = float(detector.candidates(detector.forward(batch), 0).scores[row * 16 + column, 1])
        assert ratio == pytest.approx(s * (1 - s), rel=1e-4)
        assert torch.allclose(score.values, logit.values * ratio, atol=1e-7)

    def test_a_raster_is_the_mean_over_its_cells(self) -> None:
        (fine,) = self.explain(("class",), samples=2)
        (coarse,) = self.explain_at(2)
        assert coarse.values.shape == (2, 2)
        assert torch.allclose(coarse.values, F.avg_pool2d(fine.values[None], 4)[0], atol=1e-6)

    def explain_at(self, max_side: int) -> list[Map]:
        return self.explain(("class",), samples=2, max_side=max_side)

    def test_combined_is_the_maximum_of_the_normalised_maps(self) -> None:
        combined, *parts = self.explain(("combined", "class", *SIDES), samples=3)
        expected = torch.stack([normalise(part.values) for part in parts]).amax(0)
        assert torch.allclose(combined.values, expected, atol=1e-5)


def noisy_pixels(detector: TorchvisionDetector, image: Tensor, sigma: float, sample: int) -> Tensor:
    """The network's input for one copy, as the page says it: noise in the picture's own range."""
    ((_, batch),) = detector.prepare([image])
    frame = batch.frames[0]
    std = torch.tensor(detector.model.transform.image_std)[:, None, None]
    shape = (3, frame.network_height, frame.network_width)
    noise = torch.randn(shape, generator=generator(7, sample))
    pixels = batch.pixels.clone()
    pixels[0, :, : frame.network_height, : frame.network_width] += sigma * noise / std
    return pixels


def slow_saliency(
    detector: TorchvisionDetector,
    pixels: Tensor,
    proposals: Tensor | None,
    candidate: int,
    label: int,
    target: str,
    score: str,
) -> Tensor:
    """One ``autograd.grad`` from one scalar down to the pixels: (H, W), padding and all."""
    model, norms = held(detector.model) if hasattr(detector.model, "head") else (detector.model, [])
    leaf = pixels.clone().requires_grad_()
    for recording in (True, False):  # GroupNorm's statistics are held at their true values
        for norm in norms:
            norm.recording = recording
        stages: dict[str, Tensor] = {}
        x = leaf
        for name, stage in model.backbone.body.items():
            x = stage(x)
            stages[name] = x
        levels = full_levels(model, stages, list(stages)[-1], x)
        scores, boxes = outputs_of(model, pixels, OrderedDict(levels), proposals)
    if hasattr(model, "head"):
        scores = scores[:, 1:]
    value = scalar_of(target, scores, boxes, candidate, label)
    if score == "logit" and target.startswith("class"):
        assert type(detector.model).__name__ == "RetinaNet"
        value = value.logit()
    (gradient,) = torch.autograd.grad(value, leaf)
    std = torch.tensor(detector.model.transform.image_std)[:, None, None]
    return (gradient[0] / std).abs().amax(0)


@pytest.fixture(params=ARCHITECTURES)
def detector(request: pytest.FixtureRequest) -> Iterator[TorchvisionDetector]:
    with double_precision():
        model = random_model(request.param)
        if request.param == "fcos":
            nn.init.constant_(model.head.regression_head.bbox_reg.bias, 3.0)  # no box without an area
        yield wrap(model, LABELS, background=True)


TARGETS = ("class", "class:gamma", "x1", "y2")
SIGMA = 0.01
COPIES = 3


def test_anchors_equal_the_slow_reference(detector: TorchvisionDetector) -> None:
    image = random_image(60, 90)
    question = question_of(detector, image, TARGETS, sigma=SIGMA, samples=COPIES, score="score")
    frame, found = question.forward.batch.frames[0], question.detections
    proposals = question.forward.extra.get("proposals", [None])[0]
    rows = METHOD.explain(detector, question)
    compared = 0
    for i, row in enumerate(rows):
        for target, made in zip(TARGETS, row, strict=True):
            copies = [
                slow_saliency(
                    detector,
                    noisy_pixels(detector, image, SIGMA, sample),
                    proposals,
                    int(found.candidates[i]),
                    int(found.labels[i]),
                    target,
                    "score",
                )
                for sample in range(COPIES)
            ]
            expected = torch.stack(copies).mean(0)[: frame.network_height, : frame.network_width]
            assert float((made.values - expected).abs().max()) <= 1e-5 * float(expected.max())
            assert made.samples == COPIES
            compared += bool(expected.max())
    assert compared > len(rows), "most maps must have something to compare"


def overlap(a: Tensor, b: Tensor) -> float:
    """IoU of two boxes, the obvious way."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = float(max(width, 0) * max(height, 0))  # boxes have an area
    return both / (float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - both)


def test_outputs_equal_the_slow_reference(detector: TorchvisionDetector) -> None:
    """Way 2: copies without a match do not count, and the others' own candidates are differentiated."""
    image, sigma, pick = random_image(60, 90), 0.03, range(4)
    question = question_of(
        detector, image, ("class", "x2"), sigma=sigma, samples=4, matching="output", pick=pick
    )
    ((_, batch),) = detector.prepare([image])
    frame, wanted = batch.frames[0], question.detections
    rows = METHOD.explain(detector, question)
    counted = 0
    for i, row in enumerate(rows):
        copies: list[list[Tensor]] = []
        for sample in range(4):
            pixels = noisy_pixels(detector, image, sigma, sample)
            forward = detector.forward(type(batch)(pixels, batch.frames))
            found = detector.postprocess(detector.candidates(forward, 0), frame, detector.defaults)
            close = [
                (overlap(box, wanted.boxes[i]), -position)
                for position, box in enumerate(found.boxes)
                if found.labels[position] == wanted.labels[i]
            ]
            best, position = max(close, default=(0.0, 0))
            if best <= 0.7:
                continue
            proposals = forward.extra.get("proposals", [None])[0]
            args = (proposals, int(found.candidates[-position]), int(wanted.labels[i]))
            copies.append([slow_saliency(detector, pixels, *args, t, "score") for t in ("class", "x2")])
        for t, made in enumerate(row):
            expected = torch.zeros(60, 90)
            if copies:
                expected = torch.stack([copy[t] for copy in copies]).mean(0)[:60, :90]
            assert float((made.values - expected).abs().max()) <= 1e-5 * float(expected.max())
        counted += len(copies)
    assert counted > 0
    missing = [i for i, row in enumerate(rows) if not float(row[0].values.max())]
    assert bool(question.warnings) == bool(missing)


def test_a_detection_found_in_no_copy_has_a_map_of_zeros_and_a_warning() -> None:
    detector = wrap(random_model("fcos"), LABELS, background=True)
    question = question_of(
        detector, random_image(60, 90), ("class",), sigma=1.0, samples=2, matching="output"
    )
    rows = METHOD.explain(detector, question)
    assert all(not bool(made.values.any()) and made.standard_error is None for (made,) in rows)
    assert question.warnings == ["no sample counted for detections 0 to 1: maps of zeros"]


def test_the_logit_of_retinanet_is_the_default_of_an_anchor() -> None:
    detector = wrap(random_model("retinanet"), LABELS, background=True)
    image = random_image(60, 90)
    question = question_of(detector, image, ("class",), pick=[0], sigma=SIGMA, samples=2)
    ((made,),) = METHOD.explain(detector, question)
    found = question.detections
    args = (None, int(found.candidates[0]), int(found.labels[0]), "class", "logit")
    copies = [slow_saliency(detector, noisy_pixels(detector, image, SIGMA, i), *args) for i in range(2)]
    expected = torch.stack(copies).mean(0)[:60, :90]
    assert torch.allclose(made.values, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("detector", ["retinanet", "faster-rcnn"], indirect=True)
def test_it_agrees_with_captum(detector: TorchvisionDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    """NoiseTunnel over Saliency with the same noise; a copy a call, as captum averages before the maximum."""
    image = random_image(60, 90)
    question = question_of(detector, image, ("class",), pick=[0], sigma=SIGMA, samples=COPIES, score="score")
    ((made,),) = METHOD.explain(detector, question)
    clean, found = question.forward.batch.pixels, question.detections
    proposals = question.forward.extra.get("proposals", [None])[0]
    body = detector.model.backbone.body

    def score(pixels: Tensor) -> Tensor:
        stages: dict[str, Tensor] = {}
        for name, stage in body.items():
            pixels = stages[name] = stage(pixels)
        levels = full_levels(detector.model, stages, list(stages)[-1], pixels)
        scores, _ = outputs_of(detector.model, clean, levels, proposals)
        first = 1 if proposals is None else 0
        return scores[found.candidates[0], found.labels[0] + first][None]

    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(score))
    maps = []
    for sample in range(COPIES):
        noise = noisy_pixels(detector, image, SIGMA, sample) - clean
        monkeypatch.setattr(torch, "normal", lambda *_, noise=noise: noise)
        by_value = tunnel.attribute(clean.clone(), nt_type="smoothgrad", nt_samples=1, abs=True)
        std = torch.tensor(detector.model.transform.image_std)[:, None, None]
        maps.append((by_value[0] / std).amax(0))
    expected = torch.stack(maps).mean(0)[:60, :90].detach()
    assert float(expected.max()) > 0
    assert float((made.values - expected).abs().max()) <= 1e-5 * float(expected.max())


def test_the_seed_decides_the_noise() -> None:
    detector = wrap(random_model("fcos"), LABELS, background=True)
    question = question_of(detector, random_image(60, 90), ("class",), pick=[0], samples=2)

    def values(seed: int) -> Tensor:
        ((made,),) = METHOD.explain(detector, Question(**{**question.__dict__, "seed": seed}))
        return made.values

    assert torch.equal(values(7), values(7))
    assert not torch.equal(values(7), values(8))


@pytest.mark.parametrize("matching", ["anchor", "output"])
def test_explaining_leaves_no_trace(matching: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After success, and after a failure in the middle."""
    detector = wrap(random_model("faster-rcnn"), LABELS, background=True)
    question = question_of(detector, random_image(60, 90), ("class", "x1"), samples=2, matching=matching)
    batch = question.forward.batch
    before = detector.forward(batch).extra["raw"]

    def check() -> None:
        after = detector.forward(batch).extra["raw"]
        assert all(torch.equal(a, b) for n in before for a, b in zip(before[n], after[n], strict=True))
        for layer in detector.model.modules():
            assert not layer._forward_hooks
            assert not layer._backward_hooks
        assert all(p.grad is None and not p.requires_grad for p in detector.model.parameters())
        assert torch.is_grad_enabled()
        assert not batch.pixels.requires_grad

    METHOD.explain(detector, question)
    check()

    def broken(*_: object) -> Tensor:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(module, "_pooled", broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        METHOD.explain(detector, question)
    check()


class TestPlan:
    """How the work is cut."""

    def plan(self, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Any:
        work = fields.pop("work", None)
        if work:
            monkeypatch.setattr(module, "CHUNK_WORK", work)
        detector = wrap(random_model("retinanet"), LABELS, background=True)
        targets = fields.pop("targets", ("class",))
        question = question_of(detector, random_image(60, 90), targets, **fields)
        return METHOD.plan(detector, question)  # type: ignore[attr-defined]

    def test_little_work_is_one_group_in_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = self.plan(monkeypatch)
        assert (plan.samples, plan.round_samples, plan.groups, plan.cells) == (20, 4, 1, (60, 90))

    def test_memory_bounds_the_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.plan(monkeypatch, memory=1).round_samples == 1

    def test_few_samples_are_cut_into_rounds_all_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.plan(monkeypatch, samples=4).round_samples == 1
        assert self.plan(monkeypatch, samples=5).round_samples == 2

    def test_heavy_work_is_cut_into_groups(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = self.plan(monkeypatch, work=1, pick=range(20), targets=("class", *SIDES))
        assert (plan.round_samples, plan.groups) == (1, 10)  # ten passes: two detections of five targets

    def test_sums_bound_the_groups(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "SUM_BYTES", 2 * 4 * 60 * 90)
        assert self.plan(monkeypatch, pick=range(6)).groups == 3


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A worker."""
    folder = tmp_path_factory.mktemp("recipe")
    recipe = read_recipe(write_recipe(folder, "faster-rcnn"))
    return Engine.load(recipe, folder / str(recipe.weights))


PICTURE = encoded(random_image(60, 90))


def asked(**fields: Any) -> explainer_pb2.ExplainRequest:
    """A request for a few maps."""
    params = fields.pop("params", {})
    request = explainer_pb2.ExplainRequest(image=PICTURE, method="odsmoothgrad", **fields)
    request.params.update(params)
    request.select.max_detections = 4
    return request


def answered(engine: Engine, **operation: Any) -> worker_pb2.WorkerReply:
    (reply,) = engine.answer([worker_pb2.WorkerRequest(**operation)])
    return reply


@pytest.mark.parametrize("matching", ["anchor", "output"])
def test_a_worker_serves_it_whole_and_in_chunks(
    engine: Engine, matching: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_WORK", 1)
    monkeypatch.setattr(module, "MIN_PASSES", 4)
    request = asked(params={"matching": matching, "samples": 3}, targets=["class", "combined"])
    request.output.encoding = "f32"
    whole = answered(engine, explain=request)
    assert not whole.HasField("error"), whole.error
    assert len(whole.explain.heat_maps) == 8
    assert {m.layer for m in whole.explain.heat_maps} == {""}
    plan = answered(engine, plan=request).plan
    assert plan.groups == 4
    totals, todo = Totals(plan), list(chunks(plan))
    random.Random(0).shuffle(todo)
    for chunk in todo:
        piece = worker_pb2.SampleRequest(
            explain=request,
            state=plan.state,
            first=chunk.first,
            count=chunk.count,
            group=chunk.group,
            groups=plan.groups,
        )
        totals.add(chunk, answered(engine, sample=piece).sample)
    assert totals.heat_maps(["class", "combined"], "f32") == list(whole.explain.heat_maps)
    assert totals.warnings(4) == list(whole.explain.warnings)
    assert any(np.any(wire_maps.decode(m)) for m in whole.explain.heat_maps)


@pytest.mark.parametrize(
    ("fields", "type_", "field"),
    [
        ({"params": {"sigma": float("nan")}}, "invalid_argument", "params.sigma"),
        ({"params": {"sigma": -0.1}}, "invalid_argument", "params.sigma"),
        ({"params": {"samples": 0}}, "invalid_argument", "params.samples"),
        ({"params": {"samples": 2.5}}, "invalid_argument", "params.samples"),
        ({"params": {"matching": "anchors"}}, "invalid_argument", "params.matching"),
        ({"layer": "level"}, "unknown_layer", "layer"),
        ({"budget": types_pb2.Budget(samples=0)}, "invalid_argument", "budget.samples"),
        ({"budget": types_pb2.Budget(seconds=0)}, "invalid_argument", "budget.seconds"),
        ({"targets": ["x3"]}, "unknown_target", "targets[0]"),
    ],
)
def test_bad_input_is_refused(engine: Engine, fields: dict[str, Any], type_: str, field: str) -> None:
    error = answered(engine, explain=asked(**fields)).error
    assert (error.type, error.field) == (type_, field)


def test_a_detector_without_a_way_to_its_pixels_is_not_explained(engine: Engine) -> None:
    class Black(Detector):
        """Pictures in, detections out."""

        device = property(lambda _: torch.device("cpu"))

        def to(self, device: object) -> Black:
            del device
            return self

        def detect(self, images: object, settings: object = None) -> list[Detections]:
            del images, settings
            return []

    assert METHOD.layers(Black()) is None  # type: ignore[abstract]
    assert METHOD.layers(engine.detector) == []
