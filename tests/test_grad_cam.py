"""Grad-CAM, Grad-CAM++, the activation map and class slices: arithmetic, and a slow reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from builders import ARCHITECTURE_NAMES, LABELS, random_image
from reference_parts import Seen, double_precision
from whybox.detectors.base import Detections, PostProcessing
from whybox.methods import METHODS
from whybox.methods.base import Map, ParamValue, Question, normalise
from whybox.methods.grad_cam import GradCam, GradCamPlusPlus
from whybox.methods.layer_maps import cut_to_box
from whybox_proto.errors import ContractError

TARGETS = ("class", "class:gamma", "x1", "y2")
WHITE_BOX = ("grad_cam", "grad_cam_pp", "activation")


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with double_precision():
        yield


class Case(Seen):
    """With what the detector finds in the picture."""

    def __init__(self, architecture: str) -> None:
        super().__init__(architecture)
        settings = PostProcessing(0.0, 60)
        found = self.detector.postprocess(
            self.detector.candidates(self.forward, 0), self.forward.batch.frames[0], settings
        )
        # The first and last candidate besides: windows that meet a border, and the coarsest level.
        order = found.candidates.argsort()
        self.found: Detections = found[order[[0, len(order) // 2, len(order) - 1]]]

    def ask(
        self,
        method: str,
        targets: tuple[str, ...],
        layer: str,
        memory: int = 2**30,
        **params: ParamValue,
    ) -> list[list[Map]]:
        defaults = {param.name: param.default for param in METHODS[method].params}
        question = Question(
            self.forward, 0, self.found, targets, layer, {**defaults, **params}, memory=memory
        )
        return METHODS[method].explain(self.detector, question)

    def reference(
        self, layer: str, pick: int, level: int, target: str, *, exact: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The layer's whole map (C, H, W) and the gradient of one scalar by it."""
        candidate, label = int(self.found.candidates[pick]), int(self.found.labels[pick])
        whole, (gradient,) = self.gradients(layer, candidate, label, level, [(target, "score")], exact=exact)
        return whole, gradient


@pytest.fixture(scope="module", params=ARCHITECTURE_NAMES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    with double_precision():
        yield Case(request.param)


def published_weights(method: str, activation: Tensor, gradient: Tensor) -> Tensor:
    """The papers' formulas with their powers, channel by channel."""
    weights = []
    for a, g in zip(activation, gradient, strict=True):
        if method == "grad_cam":
            weights.append(g.mean())
        else:
            positive = g[g > 0]
            weights.append((positive * positive**2 / (2 * positive**2 + a.sum() * positive**3)).sum())
    return torch.stack(weights)


@pytest.mark.parametrize("method", ["grad_cam", "grad_cam_pp"])
@pytest.mark.parametrize("layer", ["level", "layer2"])
def test_maps_equal_the_slow_reference(case: Case, method: str, layer: str) -> None:
    rows = case.ask(method, TARGETS, layer)
    tap = case.detector.tap(case.forward, 0, layer, case.found.candidates, case.found.labels)
    compared = 0
    for pick, row in enumerate(rows):
        columns, lines = tap.grids.sizes[pick].tolist()
        for target, made in zip(TARGETS, row, strict=True):
            activation, gradient = case.reference(layer, pick, int(tap.candidate_levels[pick]), target)
            weights = published_weights(method, activation, gradient)
            expected = (weights[:, None, None] * activation).sum(0).relu()[:lines, :columns]
            assert made.values.shape == expected.shape, "the whole layer, cut to the picture"
            largest = float(expected.max())
            assert float((made.values - expected).abs().max()) <= 1e-5 * largest + 1e-30
            compared += largest > 0
    assert compared > len(rows), "most maps must have something to compare"


def test_grad_cam_is_one_weight_for_a_channel() -> None:
    """Two channels of 2×2 cells: means of 3/4 and −1/4; S is 4 and 2."""
    gradients = torch.tensor([[[[1.0, 2.0], [0.0, 0.0]], [[1.0, -2.0], [0.0, 0.0]]]])
    whole = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]]])
    assert GradCam.weights(gradients, whole).tolist() == [[0.75, -0.25]]
    # α = 1/(2 + S g): 1/6 and 1/10 of the first channel, 1/4 of the second's one positive gradient.
    expected = torch.tensor([[1 / 6 + 2 / 10, 1 / 4]])
    assert torch.allclose(GradCamPlusPlus.weights(gradients, whole), expected)


def test_the_mean_is_over_the_layer_not_over_the_window() -> None:
    window, whole = torch.ones(1, 1, 2, 2), torch.ones(1, 4, 8)
    assert GradCam.weights(window, whole).tolist() == [[4 / 32]]


def test_a_denominator_of_zero_counts_nothing() -> None:
    gradients, whole = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[-1.0, -1.0]]])
    # S = −2: 2 + S·1 = 0 for the first cell, 2 − 4 = −2 for the second.
    assert GradCamPlusPlus.weights(gradients, whole).tolist() == [[-1.0]]


def test_region_features_have_a_map_of_their_own() -> None:
    case = Case("faster-rcnn")
    tap = case.detector.tap(case.forward, 0, "roi", case.found.candidates, case.found.labels)
    rows = case.ask("grad_cam", ("class",), "roi")
    features = case.ask("activation", ("class",), "roi")
    for window in tap.windows([lambda outputs: outputs.scores.gather(1, outputs.labels[:, None])[:, 0]]):
        for i, pick in enumerate(window.picks.tolist()):
            weights = window.gradients[i, 0].mean((1, 2))
            expected = (weights[:, None, None] * window.activations[i]).sum(0).relu()
            assert torch.allclose(rows[pick][0].values, expected.float(), rtol=1e-4, atol=1e-9)
            mean = normalise(window.activations[i].mean(0))
            assert torch.allclose(features[pick][0].values, mean.float(), rtol=1e-4, atol=1e-6)


def test_exact_goes_through_the_statistics_of_group_norm() -> None:
    case = Case("fcos")
    tap = case.detector.tap(case.forward, 0, "level", case.found.candidates, case.found.labels)
    rows, local = (case.ask("grad_cam", ("class",), "level", exact=exact) for exact in (True, False))
    for pick, (made,) in enumerate(rows):
        level = int(tap.candidate_levels[pick])
        activation, gradient = case.reference("level", pick, level, "class", exact=True)
        expected = (gradient.mean((1, 2))[:, None, None] * activation).sum(0).relu()
        columns, lines = tap.grids.sizes[pick].tolist()
        expected = expected[:lines, :columns]
        assert float((made.values - expected).abs().max()) <= 1e-5 * float(expected.max()) + 1e-30
    assert any(not torch.equal(a.values, b.values) for (a,), (b,) in zip(rows, local, strict=True))


def test_the_logit_has_another_map(case: Case) -> None:
    score, logit = (case.ask("grad_cam", ("class",), "level", score=name) for name in ("score", "logit"))
    assert not torch.equal(score[0][0].values, logit[0][0].values)


def test_truncated_to_the_box(case: Case) -> None:
    whole = case.ask("grad_cam", ("class",), "layer2")
    cut = case.ask("grad_cam", ("class",), "layer2", truncate=True)
    for pick, ((made,), (full,)) in enumerate(zip(cut, whole, strict=True)):
        assert made.values.numel() < full.values.numel()
        cell = (full.region[2] - full.region[0]) / full.values.shape[1]
        box = case.found.boxes[pick].tolist()
        for side in range(4):
            if made.values.shape[1 - side % 2] == 1:
                continue  # of a box without any centre, the nearest cell stays
            outwards = (box[side] - made.region[side]) * (1 if side < 2 else -1)
            assert outwards <= cell / 2 + 1e-3, "no cell whose centre is outside"
        column = round((made.region[0] - full.region[0]) / cell)
        row = round((made.region[1] - full.region[1]) / cell)
        height, width = made.values.shape
        assert torch.equal(made.values, full.values[row : row + height, column : column + width])


def test_a_box_within_one_cell_keeps_that_cell() -> None:
    made = Map(torch.arange(12.0).view(3, 4), (0.0, 0.0, 40.0, 30.0))
    cut = cut_to_box(made, torch.tensor([11.0, 11.0, 13.0, 13.0]))
    assert cut.values.tolist() == [[5.0]]
    assert cut.region == (10.0, 10.0, 20.0, 20.0)
    both = cut_to_box(made, torch.tensor([14.0, 4.0, 26.0, 16.0]))
    assert both.values.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert both.region == (10.0, 0.0, 30.0, 20.0)


def test_activation_is_the_scaled_mean_of_the_channels(case: Case) -> None:
    for layer in ("layer2", "level"):
        rows = case.ask("activation", ("class",), layer)
        tap = case.detector.tap(case.forward, 0, layer, case.found.candidates, case.found.labels)
        for pick, (made,) in enumerate(rows):
            maps = list(case.forward.levels.values())
            level = maps[int(tap.candidate_levels[pick])] if layer == "level" else case.forward.stages[layer]
            columns, lines = tap.grids.sizes[pick].tolist()
            mean = (level[0].sum(0) / level.shape[1])[:lines, :columns]
            expected = (mean - mean.min()) / (mean.max() - mean.min())
            assert torch.allclose(made.values.double(), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["retinanet", "fcos", "ssd"])
def test_slices_are_the_heads_own_outputs(architecture: str) -> None:
    case = Case(architecture)
    candidates = case.detector.candidates(case.forward, 0)
    raw = case.forward.extra["raw"]["logits"][0]
    tap = case.detector.tap(case.forward, 0, "level", case.found.candidates, case.found.labels)
    per_cell = case.forward.extra["per_cell"]
    sizes = [tuple(level.shape[2:]) for level in case.forward.levels.values()]
    starts = [0, *torch.tensor([h * w * per_cell for h, w in sizes]).cumsum(0).tolist()]
    scores = case.ask("class_slices", ("class", "class:beta"), "level", output="score")
    logits = case.ask("class_slices", ("class",), "level", output="logit", anchors="max")
    for pick, level in enumerate(tap.candidate_levels.tolist()):
        candidate, label = int(case.found.candidates[pick]), int(case.found.labels[pick])
        width, start = sizes[level][1], starts[level]
        columns, lines = tap.grids.sizes[pick].tolist()
        anchor = (candidate - start) % per_cell
        largest = torch.zeros(lines, columns)
        for row in range(lines):
            for column in range(columns):
                first = start + (row * width + column) * per_cell
                for made, kind in zip(scores[pick], (label, LABELS.index("beta")), strict=True):
                    expected = float(candidates.scores[first + anchor, kind])
                    assert float(made.values[row, column]) == pytest.approx(expected, rel=1e-5)
                largest[row, column] = raw[first : first + per_cell, label + 1].max()
        assert torch.allclose(logits[pick][0].values.double(), normalise(largest), atol=1e-5)
        own = (candidate - start) // per_cell
        if own // width < lines and own % width < columns:
            here = float(scores[pick][0].values[own // width, own % width])
            assert here == pytest.approx(float(case.found.scores[pick]), rel=1e-5)


def test_explaining_leaves_no_trace(case: Case) -> None:
    """The network answers the same bits afterwards, keeps no gradient and no hook."""
    ((_, batch),) = case.detector.prepare([random_image(90, 118)])
    before = case.detector.candidates(case.detector.forward(batch), 0)
    methods = [*WHITE_BOX, *(["class_slices"] if case.detector.dense else [])]
    for method in methods:
        case.ask(method, ("class",), "level")
    with pytest.raises(ZeroDivisionError):
        list(
            case.detector.tap(case.forward, 0, "layer2", case.found.candidates, case.found.labels).windows(
                [lambda _: 1 / 0]
            )  # type: ignore[arg-type, return-value]
        )
    after = case.detector.candidates(case.detector.forward(batch), 0)
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.boxes, after.boxes)
    for module in case.model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
    assert all(p.grad is None and not p.requires_grad for p in case.model.parameters())


@pytest.mark.parametrize("method", ["grad_cam", "grad_cam_pp", "activation", "class_slices"])
def test_maps_beyond_the_memory_are_refused(method: str) -> None:
    case = Case("retinanet")
    (level,) = METHODS[method].layers(case.detector) or [""] if method == "class_slices" else ["level"]
    cells = sum(row[0].values.numel() for row in case.ask(method, ("class",), level))
    with pytest.raises(ContractError) as caught:
        case.ask(method, ("class",), level, memory=4 * cells - 4)
    assert (caught.value.type, caught.value.field) == ("response_too_large", "layer")


def test_a_two_stage_detector_has_no_slices() -> None:
    """The service says which methods the model has; asking the method itself is refused as well."""
    from whybox.describe import describe
    from whybox.recipe import Recipe
    from whybox_proto.checks import find_method
    from whybox_proto.errors import ContractError
    from whybox_proto.v1 import explainer_pb2

    case = Case("faster-rcnn")
    assert METHODS["class_slices"].layers(case.detector) is None
    with pytest.raises(ValueError, match="class_slices cannot explain a RcnnDetector"):
        case.ask("class_slices", ("class",), "level")
    with pytest.raises(NotImplementedError, match="no dense head"):
        case.detector.class_maps(case.forward, 0)
    recipe = Recipe(name="two-stage", family="torchvision", architecture="small/faster-rcnn", labels=LABELS)
    with pytest.raises(ContractError) as caught:
        find_method(explainer_pb2.ExplainRequest(method="class_slices"), describe(recipe, case.detector))
    assert str(caught.value) == "there is no method 'class_slices'"
    for name in ("odam", "grad_cam", "grad_cam_pp", "activation"):
        assert name in caught.value.expected
    assert "class_slices" not in caught.value.expected
