"""Inversion with set matching against brute force, the library's own loss, and finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from builders import LABELS, random_image
from query_models import NAMES, random_query_detector
from reference_parts import double_precision
from whybox.detectors.base import Frame
from whybox.detectors.stage_outputs import StageOutputs
from whybox.inversion.inverter import Inverter
from whybox.inversion.layout import Layout
from whybox.inversion.parametrisation import start
from whybox.inversion.queries import match_queries, query_losses
from whybox.inversion.settings import Settings, settings_of
from whybox.inversion.state import load_state
from whybox.inversion.targets import Objects
from whybox.methods.sampling import generator

WIDTH, HEIGHT = 96, 64
BOXES = torch.tensor([[8.0, 10.0, 40.0, 42.0], [50.0, 20.0, 86.0, 56.0]])
FRAME = Frame(WIDTH, HEIGHT, WIDTH, HEIGHT)


def _said(softmax: bool, *, queries: int = 5, seed: int = 0) -> StageOutputs:
    random = generator(seed, 0)
    corners = torch.rand(queries, 2, 2, generator=random).sort(1).values * torch.tensor([WIDTH, HEIGHT])
    boxes = corners.flatten(1) + torch.tensor([0.0, 0.0, 4.0, 4.0])
    logits = torch.randn(queries, len(LABELS) + softmax, generator=random)
    groups = torch.zeros(queries, dtype=torch.int64)
    return StageOutputs("queries", logits, boxes, boxes, groups, softmax=softmax)


def _objects(*wanted: bool) -> Objects:
    return Objects(BOXES, torch.tensor([1, 3]), torch.tensor(wanted or (True, True)))


def _cost(said: StageOutputs, row: int, box: Tensor, label: int) -> float:
    """DETR's cost of taking a query for an object, written out."""
    score = float(said.scores()[row, label])
    if said.softmax:
        of_class = -score
    else:
        of_class = 2 * (-0.25 * (1 - score) ** 2 * math.log(score) + 0.75 * score**2 * math.log(1 - score))
    a, b = said.boxes[row].tolist(), box.tolist()
    centres = [((x[0] + x[2]) / 2 / WIDTH, (x[1] + x[3]) / 2 / HEIGHT) for x in (a, b)]
    sizes = [((x[2] - x[0]) / WIDTH, (x[3] - x[1]) / HEIGHT) for x in (a, b)]
    far = sum(abs(p - q) for pair in (centres, sizes) for p, q in zip(*pair, strict=True))
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    union = sum(areas) - across * down
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return of_class + 5 * far - 2 * (across * down / union - (hull - union) / hull)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_matching_is_the_cheapest_of_all(softmax: bool, seed: int) -> None:
    said, objects = _said(softmax, seed=seed), _objects()
    ways = itertools.permutations(range(len(said.boxes)), len(objects))
    best = min(
        ways,
        key=lambda rows: sum(
            _cost(said, row, box, int(label))
            for row, box, label in zip(rows, objects.boxes, objects.labels, strict=True)
        ),
    )
    targets = match_queries(said, objects, FRAME)
    assert dict(zip(targets.objects.tolist(), targets.rows.tolist(), strict=True)) == dict(enumerate(best))
    assert targets.background.tolist() == [q for q in range(5) if q not in best]
    assert not len(match_queries(said, objects, FRAME, background=False).background)


def test_what_is_out_of_view_is_neither_asked_for_nor_background() -> None:
    said = _said(True)
    both, one = match_queries(said, _objects(), FRAME), match_queries(said, _objects(True, False), FRAME)
    assert one.objects.tolist() == [0]
    assert set(both.rows.tolist()) > set(one.rows.tolist())
    assert torch.equal(one.background, both.background)


def test_more_objects_than_queries() -> None:
    targets = match_queries(_said(True, queries=1), _objects(), FRAME)
    assert len(targets.rows) == 1
    assert not len(targets.background)


@pytest.mark.parametrize("softmax", [True, False])
def test_losses_are_those_of_the_library(softmax: bool) -> None:
    """`transformers` matches and counts the same, on the same outputs."""
    from transformers.loss import loss_deformable_detr, loss_for_object_detection

    said, objects = _said(softmax, queries=8), _objects()
    targets = match_queries(said, objects, FRAME)
    losses = query_losses(said, targets, objects, FRAME)
    size = torch.tensor([WIDTH, HEIGHT] * 2)

    def shares(boxes: Tensor) -> Tensor:
        return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1) / size

    # Theirs has no object last.
    logits = torch.cat([said.logits[:, 1:], said.logits[:, :1]], 1) if softmax else said.logits
    given = {"logits": logits[None], "pred_boxes": shares(said.boxes)[None]}
    wanted = [{"class_labels": objects.labels, "boxes": shares(objects.boxes)}]
    if softmax:
        matcher = loss_for_object_detection.HungarianMatcher(1, 5, 2)
        theirs = loss_for_object_detection.ImageLoss(matcher, len(LABELS), 0.1, ["labels", "boxes"])
    else:
        matcher = loss_deformable_detr.DeformableDetrHungarianMatcher(2, 5, 2)
        theirs = loss_deformable_detr.DeformableDetrImageLoss(matcher, len(LABELS), 0.25, ["labels", "boxes"])
    ((rows, things),) = matcher(given, wanted)
    order = targets.rows.argsort()
    assert targets.rows[order].tolist() == rows.tolist()
    assert targets.objects[order].tolist() == things.tolist()
    made = theirs(given, wanted)
    torch.testing.assert_close(losses["cls"], made["loss_ce"])
    torch.testing.assert_close(losses["reg"], made["loss_giou"] + 2.5 * made["loss_bbox"])
    columns = objects.labels[targets.objects] + softmax
    torch.testing.assert_close(losses["logit"], -said.logits[targets.rows, columns].mean())


@pytest.mark.parametrize("name", NAMES)
def test_queries_are_what_the_detector_finds(name: str) -> None:
    """Embedded, scored and boxed as in detection; differentiable, and no trace is left."""
    with double_precision():
        detector = random_query_detector(name)
        picture = random_image(HEIGHT, WIDTH).permute(2, 0, 1).double().div(255).requires_grad_()
        batch = detector.embed(picture)
        (said,) = detector.stage_outputs(batch)
        candidates = detector.candidates(detector.forward(batch), 0)
        torch.testing.assert_close(said.scores(), candidates.scores)
        torch.testing.assert_close(said.boxes.detach(), candidates.boxes)
        (gradient,) = torch.autograd.grad(said.logits.sum() + said.boxes.sum(), picture)
        assert gradient.abs().sum() > 0
        assert all(value.grad is None for value in detector.model.parameters())
        assert detector.stages == (said.stage,)


def _quick(name: str, **changes: object) -> Settings:
    detector = random_query_detector(name)
    return settings_of({"iterations": 5, "anneal": 0.0, "tv_weight": 0.0, **changes}, detector)  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["detr", "conditional_detr", "deformable_detr"])
def test_the_gradient_of_the_objective_is_that_of_finite_differences(name: str) -> None:
    """Of networks that hold nothing constant; along a direction, so that one number stands for all pixels."""
    with double_precision():
        detector = random_query_detector(name)
        layout = Layout(WIDTH, HEIGHT, BOXES.double(), torch.tensor([1, 3]), None, ())
        settings = _quick(name, jitter=0, scale=0.0, tv_weight=1e-3, norm_weight=1e-2, noise=0.0)
        inverter = Inverter(detector, layout, settings, 0)
        picture = torch.rand(3, HEIGHT, WIDTH, generator=generator(1, 1), dtype=torch.float64)
        tensors = [t.requires_grad_() for t in start("pyramid", picture)]
        total, parts = inverter.objective(tensors, 0)
        assert {"cls", "reg", "logit"} <= set(parts)
        gradients = torch.autograd.grad(total, tensors)
        directions = [
            torch.randn(t.shape, generator=generator(2, i), dtype=torch.float64)
            for i, t in enumerate(tensors)
        ]
        along = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        step = 1e-6
        with torch.no_grad():
            ends = [
                float(inverter.objective([t + s * d for t, d in zip(tensors, directions, strict=True)], 0)[0])
                for s in (step, -step)
            ]
        assert along == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


def test_one_seed_gives_one_picture_wherever_the_work_is_cut() -> None:
    detector = random_query_detector("rt_detr")
    layout = Layout(WIDTH, HEIGHT, BOXES, torch.tensor([1, 3]), None, ())

    def picture(*, cuts: bool) -> Tensor:
        inverter = Inverter(detector, layout, _quick("rt_detr"), 3)
        state = inverter.begin()
        for _ in range(4):
            inverter.iterate(state)
            if cuts:
                state = load_state(state.dump(), inverter.begin())
        return inverter.picture(state)

    assert torch.equal(picture(cuts=False), picture(cuts=True))


@pytest.mark.parametrize("name", ["detr", "deformable_detr"])
def test_a_detector_comes_to_see_the_layout(name: str) -> None:
    """Random weights do not see much, but what is asked for comes nearer."""
    detector = random_query_detector(name)
    layout = Layout(WIDTH, HEIGHT, BOXES, torch.tensor([1, 3]), None, ())
    quiet = {"jitter": 0, "scale": 0.0, "noise": 0.0, "contrast": 0.0, "channel_noise": 0.0}
    inverter = Inverter(detector, layout, _quick(name, iterations=40, **quiet), 0)
    state = inverter.begin()
    totals = []
    while not inverter.finished(state):
        inverter.iterate(state)
        totals.append(state.losses["total"])
    assert min(totals[-5:]) < totals[0] - 0.2


def test_single_objects_take_the_query_whose_box_fits_best() -> None:
    detector = random_query_detector("detr")
    layout = Layout(WIDTH, HEIGHT, BOXES, torch.tensor([1, 3]), None, ())
    inverter = Inverter(detector, layout, _quick("detr", single=True, losses="cls"), 0)
    state = inverter.begin()
    inverter.iterate(state)
    assert set(state.losses) == {"cls", "logit", "total"}
