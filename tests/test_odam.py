"""ODAM against the slow reference, on every architecture and layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from builders import ARCHITECTURE_NAMES, LABELS, random_image, random_model
from slow_reference import full_levels, held, outputs_of, scalar_of, smooth
from whybox.detectors.base import Detections, Forward
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.methods import METHODS
from whybox.methods.base import SIDES, Map, Question, gaussian_matrices, normalise, scalar
from whybox.methods.odam import odam_maps

TARGETS = ("class", "class:gamma", *SIDES)
SMOOTHING = 0.08


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """Rounding must not hide a wrong gradient, so these tests run in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Case:
    """A detector, a pass over one picture, and candidates at its corners and in between."""

    def __init__(self, architecture: str) -> None:
        self.model = random_model(architecture)
        self.detector: TorchvisionDetector = wrap(self.model, LABELS, background=True)
        ((_, batch),) = self.detector.prepare([random_image(90, 118)])
        self.forward: Forward = self.detector.forward(batch, keep=True)
        count = len(self.detector.candidates(self.forward, 0).scores)
        if "anchors" in self.forward.extra:
            sizes = [level.shape[2] * level.shape[3] for level in self.forward.levels.values()]
            per_cell = self.forward.extra["per_cell"]
            starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
            # The first and last cell of every level, where windows meet borders, and one inside.
            chosen = (
                [per_cell * s for s in starts[:-1]] + [per_cell * s - 1 for s in starts[1:]] + [count // 3]
            )
        else:
            chosen = list(range(0, count, max(1, count // 6)))
        self.candidates = torch.tensor(chosen)
        self.labels = torch.arange(len(chosen)) % len(LABELS)

    def reference_gradients(self, layer: str, pick: int, level: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The layer's whole map (C, H, W) and each target's gradient, one backward pass per scalar."""
        model, norms = held(self.model) if hasattr(self.model, "head") else (self.model, [])
        pixels = self.forward.batch.pixels
        proposals = self.forward.extra.get("proposals", [None])[0]
        outputs_of(model, pixels, OrderedDict(self.forward.levels), proposals)  # records the statistics
        for norm in norms:
            norm.recording = False
        candidate, label = int(self.candidates[pick]), int(self.labels[pick])
        if layer == "roi":
            proposals = proposals[candidate : candidate + 1]
            candidate = 0
            size = (pixels.shape[2], pixels.shape[3])
            leaf = model.roi_heads.box_roi_pool(self.forward.levels, [proposals], [size]).requires_grad_()
            logits, deltas = model.roi_heads.box_predictor(model.roi_heads.box_head(leaf))
            scores = logits.softmax(1)[:, 1:]
            boxes = model.roi_heads.box_coder.decode(deltas, [proposals])[:, 1:]
        else:
            levels = OrderedDict(self.forward.levels)
            if layer == "level":
                name = list(levels)[level]
                leaf = levels[name].clone().requires_grad_()
                levels[name] = leaf
            else:
                leaf = self.forward.stages[layer].clone().requires_grad_()
                levels = full_levels(model, self.forward.stages, layer, leaf)
            scores, boxes = outputs_of(model, pixels, levels, proposals)
            if hasattr(model, "head"):
                scores = scores[:, 1:]
        gradients = {}
        for target in TARGETS:
            name = target.replace("class:gamma", "class#2")
            value = scalar_of(name, scores, boxes, candidate, label)
            gradients[target] = torch.autograd.grad(value, leaf, retain_graph=True)[0][0]
        return leaf.detach()[0], gradients


@pytest.fixture(scope="module", params=ARCHITECTURE_NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.set_default_dtype(torch.float64)
    made = Case(request.param)
    made.name = request.param  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("kind", ["level", "roi", "stem", "layer1", "layer2", "layer3", "layer4"])
@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_maps_equal_the_slow_reference(case: Case, kind: str, smoothing: float) -> None:
    if kind not in case.detector.layers:
        assert kind == "roi", "only region features are missing from one-stage detectors"
        return
    tap = case.detector.tap(case.forward, 0, kind, case.candidates, case.labels)
    targets = [scalar(target, LABELS) for target in TARGETS]
    frame = case.forward.batch.frames[0]
    maps = odam_maps(tap, targets, frame, smoothing)
    levels = getattr(tap, "candidate_levels", torch.zeros_like(case.candidates))
    compared = 0
    for pick in range(len(case.candidates)):
        activation, gradients = case.reference_gradients(kind, pick, int(levels[pick]))
        cell = tap.grids.cells[pick]
        box = tap.boxes[pick]
        spans = torch.minimum((box[2:] - box[:2]).clamp(min=0) / cell, tap.grids.sizes[pick])
        sigmas = smoothing * spans
        for target, made in zip(TARGETS, maps[pick], strict=True):
            gradient = gradients[target]
            if smoothing:
                gradient = smooth(gradient, float(sigmas[0]), float(sigmas[1]))
            expected = (gradient * activation).sum(0).relu()
            placed = _paste(made, tap.grids.offsets[pick], cell, expected.shape)
            expected = _on_picture(expected, tap, pick)
            largest = expected.max()
            assert float((placed - expected).abs().max()) <= 1e-5 * float(largest) + 1e-30
            compared += int(largest > 0)
    assert compared > len(case.candidates), "most maps must have something to compare"


def _paste(made: Map, offset: Tensor, cell: Tensor, shape: torch.Size) -> Tensor:
    """Put a map back onto its layer's grid by its region alone (image and network frame agree here)."""
    column = round((made.region[0] - float(offset[0])) / float(cell[0]))
    row = round((made.region[1] - float(offset[1])) / float(cell[1]))
    full = torch.zeros(shape)
    full[row : row + made.values.shape[0], column : column + made.values.shape[1]] = made.values.double()
    return full


def _on_picture(values: Tensor, tap: object, pick: int) -> Tensor:
    columns, rows = tap.grids.sizes[pick].tolist()  # type: ignore[attr-defined]
    cut = values.clone()
    cut[rows:], cut[:, columns:] = 0, 0
    return cut


def test_group_norm_held_constant_is_near_the_full_gradient(capsys: pytest.CaptureFixture[str]) -> None:
    """FCOS' GroupNorm spans the level; how far the local gradient is from the full one is printed."""
    case = Case("fcos")
    tap = case.detector.tap(case.forward, 0, "level", case.candidates[-1:], case.labels[-1:])
    (window,) = tap.windows([scalar("class", LABELS)])
    level = int(tap.candidate_levels[0])  # type: ignore[attr-defined]
    levels = OrderedDict(case.forward.levels)
    name = list(levels)[level]
    leaf = levels[name].clone().requires_grad_()
    levels[name] = leaf
    scores, _ = outputs_of(case.model, case.forward.batch.pixels, levels, None)
    value = scores[:, 1:][int(case.candidates[-1]), int(case.labels[-1])]
    full = torch.autograd.grad(value, leaf)[0][0]
    local = torch.zeros_like(full)
    x, y = window.origins[0].tolist()
    side = window.gradients.shape[-1]
    top, left = max(0, y), max(0, x)
    bottom, right = min(full.shape[1], y + side), min(full.shape[2], x + side)
    local[:, top:bottom, left:right] = window.gradients[0, 0][:, top - y : bottom - y, left - x : right - x]
    distance = float((local - full).norm() / full.norm())
    cosine = float(torch.nn.functional.cosine_similarity(local.flatten(), full.flatten(), 0))
    with capsys.disabled():
        print(f"\nFCOS, GroupNorm held constant: {distance:.1%} from the full gradient, cosine {cosine:.4f}")
    assert 0 < distance < 0.5
    assert cosine > 0.9


def _question(
    case: Case, targets: tuple[str, ...], layer: str = "level", smoothing: float = 0.05
) -> Question:
    count = len(case.candidates)
    boxes = torch.zeros(count, 4)
    detections = Detections(boxes, case.labels, boxes[:, 0], torch.zeros(count, 4), case.candidates)
    return Question(case.forward, 0, detections, targets, layer, {"smoothing": smoothing})


def test_combined_is_the_maximum_of_the_normalised_maps(case: Case) -> None:
    odam = METHODS["odam"]
    rows = odam.explain(case.detector, _question(case, ("combined", "class", *SIDES)))
    for combined, *parts in rows:
        expected = torch.stack([normalise(part.values) for part in parts]).amax(0)
        assert torch.equal(combined.values, expected)
        assert combined.region == parts[0].region
    alone = odam.explain(case.detector, _question(case, ("combined",)))
    assert all(torch.equal(a[0].values, row[0].values) for a, row in zip(alone, rows, strict=True))


def test_another_class_has_another_map(case: Case) -> None:
    (first, *_) = METHODS["odam"].explain(case.detector, _question(case, ("class:alpha", "class:beta")))
    assert not torch.equal(first[0].values, first[1].values)


def test_explaining_leaves_no_trace(case: Case) -> None:
    before = case.detector.forward(case.forward.batch).extra["raw"]
    METHODS["odam"].explain(case.detector, _question(case, ("class", "x1"), "layer2"))
    after = case.detector.forward(case.forward.batch).extra["raw"]
    for name, value in before.items():
        pairs = zip(value, after[name], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    for module in case.model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
    assert all(p.grad is None and not p.requires_grad for p in case.model.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": ("classs",)}, "targets of odam"),
        ({"targets": ("class:omega",)}, "targets of odam"),
        ({"layer": "layer9"}, "layers of odam"),
        ({"params": {}}, "expected a value for each parameter"),
    ],
)
def test_a_wrong_question_is_refused(case: Case, change: dict[str, object], words: str) -> None:
    question = _question(case, ("class",))
    wrong = Question(**{**question.__dict__, **change})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        METHODS["odam"].explain(case.detector, wrong)


def test_gaussian_matrices_sum_to_one_inside_and_are_the_identity_at_zero() -> None:
    matrices = gaussian_matrices(torch.tensor([0.0, 0.7, 2.0]), 31)
    assert torch.equal(matrices[0], torch.eye(31))
    assert torch.allclose(matrices[1:, 15].sum(1), torch.ones(2))
    ratio = matrices[2, 15, 16] / matrices[2, 15, 15]
    assert torch.isclose(ratio, torch.exp(torch.tensor(-0.5 * (1 / 2.0) ** 2)))
    assert float(matrices[2, 15, 20]) == 0, "cut at two sigmas"
