"""Layout inversion against arithmetic, finite differences, and itself when it is cut and resumed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from builders import (
    ARCHITECTURE_NAMES,
    LABELS,
    demo_engine,
    encoded,
    random_image,
    random_model,
    write_recipe,
)
from whybox import inverting
from whybox.detectors.base import Detections, WhiteBoxDetector
from whybox.detectors.stage_outputs import StageOutputs
from whybox.detectors.torchvision import wrap
from whybox.engine import Engine
from whybox.inversion.augmentation import View, augment
from whybox.inversion.channels import uneven_channels
from whybox.inversion.filters import blur, distance_from_grey, total_variation
from whybox.inversion.inverter import Inverter
from whybox.inversion.layout import Layout, average_precision, match_of, matches
from whybox.inversion.losses import mask_bins, stage_losses
from whybox.inversion.parametrisation import picture_of, start
from whybox.inversion.settings import PARAMS, PRESETS, Settings, preset, settings_of
from whybox.inversion.state import StateError, load_state
from whybox.inversion.targets import Objects, assign, assign_single
from whybox.methods.sampling import generator
from whybox.recipe import read_recipe
from whybox_proto import rle
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

WIDTH, HEIGHT = 96, 64
BOXES = torch.tensor([[8.0, 10.0, 40.0, 42.0], [50.0, 20.0, 86.0, 56.0]])


def _wrapped(architecture: str) -> WhiteBoxDetector:
    return wrap(random_model(architecture), LABELS, background=True)


def _layout(*, masks: Tensor | None = None) -> Layout:
    masked = () if masks is None else tuple(range(len(masks)))
    return Layout(WIDTH, HEIGHT, BOXES, torch.tensor([1, 3]), masks, masked)


def _quick(**changes: object) -> Settings:
    return settings_of({"iterations": 5, "anneal": 0.0, "tv_weight": 0.0, **changes}, _wrapped("retinanet"))  # type: ignore[dict-item]


@pytest.fixture(scope="module", params=ARCHITECTURE_NAMES)
def detector(request: pytest.FixtureRequest) -> WhiteBoxDetector:
    return _wrapped(request.param)


def _said(boxes: Tensor, scores: Tensor, **more: object) -> StageOutputs:
    """A stage of sigmoids with these scores (N, K) and boxes (N, 4)."""
    return StageOutputs(
        stage="dense",
        logits=scores.logit(),
        boxes=boxes,
        anchors=boxes,
        groups=torch.zeros(len(boxes), dtype=torch.int64),
        **more,  # type: ignore[arg-type]
    )


def _objects(boxes: Tensor, labels: Tensor) -> Objects:
    return Objects(boxes, labels, torch.ones(len(labels), dtype=torch.bool))


# What the network says


def test_proposals_are_what_the_detector_finds(detector: WhiteBoxDetector) -> None:
    image = random_image(HEIGHT, WIDTH)
    ((_, batch),) = detector.prepare([image])
    embedded = detector.embed(image.permute(2, 0, 1).float() / 255)
    assert torch.equal(embedded.pixels, batch.pixels)
    assert embedded.frames == batch.frames
    candidates = detector.candidates(detector.forward(batch), 0)
    last = detector.stage_outputs(embedded)[-1]
    torch.testing.assert_close(last.scores(), candidates.scores)
    torch.testing.assert_close(last.boxes.detach(), candidates.boxes)


def test_proposals_are_differentiable_and_leave_no_trace(detector: WhiteBoxDetector) -> None:
    image = random_image(HEIGHT, WIDTH)
    before = detector.detect([image])[0]
    picture = (image.permute(2, 0, 1).float() / 255).requires_grad_()
    for said in detector.stage_outputs(detector.embed(picture)):
        for output in (said.logits, said.boxes):
            (gradient,) = torch.autograd.grad(output.sum(), picture, retain_graph=True)
            assert float(gradient.abs().sum()) > 0
    after = detector.detect([image])[0]
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.class_scores, after.class_scores)


def test_regions_replace_the_proposals_of_a_two_stage_detector() -> None:
    detector = _wrapped("faster-rcnn")
    batch = detector.embed(torch.rand(3, HEIGHT, WIDTH, generator=generator(0, 0)))
    _, second = detector.stage_outputs(batch, BOXES)
    assert torch.equal(second.anchors, BOXES)


# Pseudo-targets, by hand


def test_the_best_boxes_become_the_objects_and_what_else_would_stay_background() -> None:
    objects = _objects(torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10]]), torch.tensor([0, 1]))
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 9],  # 0: IoU .9 with object 0
            [0.0, 0, 10, 8],  # 1: IoU .8 with object 0: its duplicate, which NMS takes away
            [0.0, 0, 10, 8],  # 2: the same, of another class: NMS would keep it
            [21.0, 0, 30, 10],  # 3: IoU .9 with object 1
            [50.0, 0, 60, 10],  # 4: elsewhere, and sure of itself
            [50.0, 0, 60, 10],  # 5: elsewhere, below the threshold
        ]
    )
    scores = torch.full((6, 2), 0.01)
    scores[1, 0] = scores[2, 1] = scores[4, 0] = 0.9
    said = _said(boxes, scores)
    targets = assign(said, objects, most=1, score_threshold=0.3, overlap=0.5)
    assert sorted(zip(targets.rows.tolist(), targets.objects.tolist(), strict=True)) == [(0, 0), (3, 1)]
    assert targets.background.tolist() == [2, 4]
    two = assign(said, objects, most=2, score_threshold=0.3, overlap=0.5, background=False)
    assert {0, 3} < set(two.rows.tolist())
    assert len(two.rows) == 4
    assert not len(two.background)


def test_a_candidate_that_two_objects_want_goes_where_it_fits_best() -> None:
    objects = _objects(torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 8]]), torch.tensor([0, 1]))
    said = _said(torch.tensor([[0.0, 0, 10, 8], [0.0, 0, 10, 5]]), torch.full((2, 2), 0.1))
    targets = assign(said, objects, most=2, score_threshold=0.3, overlap=0.5)
    assert dict(zip(targets.rows.tolist(), targets.objects.tolist(), strict=True)) == {0: 1, 1: 0}


def test_every_object_has_a_candidate_before_any_has_two() -> None:
    """Also where no box overlaps an object: then the nearest one is its own."""
    near, far = [0.0, 0, 10, 10], [100.0, 100, 110, 110]
    objects = _objects(torch.tensor([near, near, far]), torch.tensor([0, 0, 1]))
    boxes = torch.tensor([near, [0.0, 0, 10, 9], [0.0, 0, 10, 8], [80.0, 80, 90, 90], [50.0, 50, 60, 60]])
    said = _said(boxes, torch.full((5, 2), 0.1))
    for most in (1, 2, 5):
        targets = assign(said, objects, most=most, score_threshold=0.3, overlap=0.5)
        pairs = dict(zip(targets.rows.tolist(), targets.objects.tolist(), strict=True))
        assert set(pairs.values()) == {0, 1, 2}
        assert pairs[3] == 2
        assert len(targets.rows) == len(pairs) == min(5, 3 * most)
    single = assign_single(said, objects)
    assert sorted(single.objects.tolist()) == [0, 1, 2]
    assert len(set(single.rows.tolist())) == 3


def test_what_is_out_of_view_is_neither_asked_for_nor_background() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [40.0, 40, 50, 50]])
    said = _said(boxes, torch.tensor([[0.9], [0.9]]))
    objects = Objects(boxes, torch.tensor([0, 0]), torch.tensor([True, False]))
    targets = assign(said, objects, most=1, score_threshold=0.3, overlap=0.5)
    assert (targets.rows.tolist(), targets.background.tolist()) == ([0], [])
    nothing = Objects(boxes, torch.tensor([0, 0]), torch.tensor([False, False]))
    targets = assign(said, nothing, most=1, score_threshold=0.3, overlap=0.5)
    assert not len(targets.rows)
    assert all(float(part) == 0 for part in stage_losses(said, targets, nothing, _quick()).values())


def test_boxes_of_each_class_are_matched_by_the_objects_own() -> None:
    boxes = torch.zeros(2, 2, 4)
    boxes[0, 0] = torch.tensor([0.0, 0, 10, 10])  # fits, as the wrong class
    boxes[0, 1] = boxes[1, 0] = torch.tensor([50.0, 50, 60, 60])
    boxes[1, 1] = torch.tensor([0.0, 0, 10, 9])
    objects = _objects(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1]))
    said = StageOutputs("roi", torch.zeros(2, 3), boxes, boxes[:, 0], torch.zeros(2).long(), softmax=True)
    assert assign(said, objects, most=1, score_threshold=0.9, overlap=0.5).rows.tolist() == [1]


def test_a_single_object_takes_the_best_anchor_whatever_its_box_is() -> None:
    said = _said(torch.zeros(2, 4), torch.full((2, 2), 0.9))
    anchors = torch.tensor([[0.0, 0, 10, 10], [40.0, 40, 50, 50]])
    said = StageOutputs("dense", said.logits, said.boxes, anchors, said.groups)
    objects = _objects(torch.tensor([[41.0, 41, 50, 50]]), torch.tensor([0]))
    targets = assign_single(said, objects)
    assert targets.rows.tolist() == [1]
    assert not len(targets.background)


# Losses, by hand


def test_losses_are_arithmetic() -> None:
    objects = _objects(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1]))
    scores = torch.tensor([[0.2, 0.6], [0.7, 0.1]])
    said = _said(torch.tensor([[0.0, 0, 10, 5], [50.0, 50, 60, 60]]), scores)
    targets = assign(said, objects, most=1, score_threshold=0.3, overlap=0.5)
    assert (targets.rows.tolist(), targets.background.tolist()) == ([0], [1])
    found = stage_losses(said, targets, objects, _quick(classification="cross-entropy"))
    object_loss = -math.log(0.6) - math.log(0.8)
    background_loss = -math.log(0.3) - math.log(0.9)
    assert float(found["cls"]) == pytest.approx(object_loss + background_loss, rel=1e-5)
    assert float(found["logit"]) == pytest.approx(-math.log(0.6 / 0.4), rel=1e-5)
    assert float(found["reg"]) == pytest.approx(1 - 0.5, rel=1e-5)  # GIoU of a half inside the whole: .5
    focal = stage_losses(said, targets, objects, _quick(classification="focal"))
    by_hand = (
        0.25 * 0.4**2 * -math.log(0.6)
        + 0.75 * 0.2**2 * -math.log(0.8)
        + 0.75 * 0.7**2 * -math.log(0.3)
        + 0.75 * 0.1**2 * -math.log(0.9)
    )
    assert float(focal["cls"]) == pytest.approx(by_hand, rel=1e-5)


def test_losses_of_exclusive_classes_know_the_background() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60]])
    said = StageOutputs("roi", logits, boxes, boxes, torch.zeros(2).long(), softmax=True)
    objects = _objects(boxes[:1], torch.tensor([1]))
    targets = assign(said, objects, most=1, score_threshold=0.01, overlap=0.5)
    found = stage_losses(said, targets, objects, _quick())
    log = logits.log_softmax(1)
    assert float(found["cls"]) == pytest.approx(-float(log[0, 2] + log[1, 0]), rel=1e-5)
    assert float(found["logit"]) == pytest.approx(-2.0)
    assert float(found["reg"]) == pytest.approx(0.0, abs=1e-6)


def test_quality_and_level_weights_count() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60]])
    groups = torch.tensor([0, 1])
    quality = torch.tensor([-1.0, 2.0])
    said = StageOutputs("dense", torch.zeros(2, 1), boxes, boxes, groups, quality=quality)
    objects = _objects(boxes, torch.tensor([0, 0]))
    targets = assign(said, objects, most=1, score_threshold=0.9, overlap=0.5)
    settings = _quick(classification="cross-entropy", level_weights="0.5,2")
    each = math.log(2) - logsigmoid(quality)
    wanted = (0.5 * float(each[0]) + 2 * float(each[1])) / 2
    assert float(stage_losses(said, targets, objects, settings)["cls"]) == pytest.approx(wanted, rel=1e-5)


def test_masks_are_cut_to_their_boxes() -> None:
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    masks[0, 10:30, 10:20] = True  # the left half of its box
    masks[1, 0:8, 0:8] = True  # elsewhere
    boxes = torch.tensor([[10.0, 10, 30, 30], [20.0, 20, 30, 30]])
    bins = mask_bins(masks, boxes, 10)
    assert bins[0, :, :5].all()
    assert not bins[0, :, 5:].any()
    assert not bins[1].any()


def test_regularisers_are_arithmetic() -> None:
    picture = torch.tensor([[[0.0, 1.0], [0.0, 0.5]]])
    assert float(total_variation(picture, 2.0)) == pytest.approx(1 + 0.25 + 0.25)
    first = math.sqrt(1.0) + math.sqrt(0.25) + math.sqrt(0.25)  # (0,0): dx 1; (0,1): dy .5; (1,0): dx .5
    assert float(total_variation(picture, 1.0)) == pytest.approx(first, rel=1e-3)
    assert float(distance_from_grey(picture, 6.0)) == pytest.approx(3 * 0.5**6)


def test_blur_keeps_the_mean_and_what_is_even() -> None:
    spot = torch.zeros(1, 41, 41)
    spot[0, 20, 20] = 1.0
    blurred = blur(spot, 2.0)
    assert float(blurred.sum()) == pytest.approx(1.0, rel=1e-5)
    steps = torch.arange(41.0) - 20
    variance = float((blurred[0].sum(0) * steps**2).sum())
    assert variance == pytest.approx(4.0, rel=0.03)  # a little less, for the cut
    torch.testing.assert_close(blur(torch.full((3, 8, 8), 0.3), 5.0), torch.full((3, 8, 8), 0.3))


# Changes


def test_a_move_takes_the_layout_along() -> None:
    picture = torch.zeros(3, HEIGHT, WIDTH)
    picture[:, 20:30, 40:52] = 1.0
    settings = _quick(jitter=12, scale=0.0, contrast=0.0, noise=0.0)
    moves = set()
    for iteration in range(20):
        view = augment(View.of(picture, torch.tensor([[40.0, 20, 52, 30]])), settings, 3, iteration)
        rows, columns = torch.where(view.picture[0] > 0.5)
        box = [float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1]
        assert view.boxes[0].tolist() == box
        assert view.visible.tolist() == [1.0]
        moves.add((box[0] - 40, box[1] - 20))
    assert len(moves) > 10
    assert max(abs(step) for move in moves for step in move) > 6


def test_scaling_takes_the_layout_along_and_jitter_can_stay() -> None:
    settings = _quick(jitter=0, scale=0.3, contrast=0.0, noise=0.0)
    picture = torch.zeros(3, HEIGHT, WIDTH)
    view = augment(View.of(picture, BOXES), settings, 0, 1)
    height, width = view.picture.shape[1:]
    assert height < HEIGHT
    assert width < WIDTH
    torch.testing.assert_close(
        view.boxes, BOXES * torch.tensor([width / WIDTH, height / HEIGHT] * 2), atol=1e-4, rtol=0
    )
    steady = _quick(jitter=12, jitter_every=5, scale=0.0, contrast=0.0, noise=0.0)
    boxes = [augment(View.of(picture, BOXES), steady, 0, i).boxes for i in range(10)]
    assert all(torch.equal(b, boxes[0]) for b in boxes[:5])
    assert not torch.equal(boxes[4], boxes[5])


def test_how_much_of_an_object_is_in_view_is_told() -> None:
    settings = _quick(jitter=10, scale=0.0, contrast=0.0, noise=0.0)
    corner = torch.tensor([[0.0, 0, 10, 10]])
    for iteration in range(10):
        view = augment(View.of(torch.zeros(3, HEIGHT, WIDTH), corner), settings, 0, iteration)
        x1, y1, x2, y2 = view.boxes[0].tolist()
        assert min(x1, y1) >= 0
        assert float(view.visible[0]) == pytest.approx((x2 - x1) * (y2 - y1) / 100)


def test_steps_fade_out_at_the_end() -> None:
    settings = _quick(iterations=100, anneal=0.5)
    assert [settings.strength(i) for i in (0, 50, 75, 99)] == [1, 1, 0.5, 0.02]
    assert _quick().strength(4) == 1


def test_in_the_end_the_picture_is_looked_at_as_it_is() -> None:
    plain = {"jitter": 0, "scale": 0.0, "contrast": 0.0, "noise": 0.0, "channel_noise": 0.0, "settle": 0.0}
    settings = {"iterations": 10, "tv_weight": 0.0, "anneal": 0.0}
    detector = _wrapped("retinanet")
    rough, still = (
        Inverter(detector, _layout(), settings_of({**settings, **changes}, detector), 3)
        for changes in ({"settle": 0.3}, plain)
    )
    tensors = rough.begin().tensors
    totals = [[float(one.objective(tensors, i)[0]) for i in (0, 6, 7, 9)] for one in (rough, still)]
    assert totals[0][0] != totals[1][0]
    assert totals[0][1] != totals[1][1]
    assert totals[0][2:] == totals[1][2:]


def test_in_the_end_two_stages_aim_their_best_candidates_alone() -> None:
    settings = _quick(iterations=10, settle=0.3, candidates=20)
    assert [settings.matched("roi", i) for i in (0, 6, 7, 9)] == [20, 20, 4, 4]
    assert settings.matched("rpn", 9) == 4
    assert settings.matched("dense", 9) == 20
    assert _quick(iterations=10, settle=0.3, candidates=1).matched("roi", 9) == 1


def test_uneven_channels_are_even_again_afterwards(detector: WhiteBoxDetector) -> None:
    image = random_image(HEIGHT, WIDTH)
    before = detector.detect([image])[0]
    seen = []

    def look_and_fail() -> None:
        with uneven_channels(detector, 0.3, generator(0, 0)):
            seen.append(detector.detect([image])[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        look_and_fail()
    assert len(seen[0]) != len(before) or not torch.equal(seen[0].scores, before.scores)
    after = detector.detect([image])[0]
    assert torch.equal(before.class_scores, after.class_scores)
    weights = {name: value.data_ptr() for name, value in detector.backbone.named_parameters()}
    with uneven_channels(detector, 0.3, generator(0, 0)):
        assert weights != {name: value.data_ptr() for name, value in detector.backbone.named_parameters()}
    assert weights == {name: value.data_ptr() for name, value in detector.backbone.named_parameters()}


# The loop


def test_the_gradient_of_the_objective_is_that_of_finite_differences(
    detector: WhiteBoxDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed along a direction, so that one number stands for all pixels; in double precision."""
    precise = wrap(detector.model.double(), LABELS, background=True)  # type: ignore[attr-defined]
    try:
        layout = Layout(WIDTH, HEIGHT, BOXES.double(), torch.tensor([1, 3]), None, ())
        inverter = Inverter(precise, layout, _quick(jitter=0, scale=0.0, tv_weight=1e-3, norm_weight=1e-2), 0)
        picture = torch.rand(3, HEIGHT, WIDTH, generator=generator(1, 1), dtype=torch.float64)
        tensors = [t.requires_grad_() for t in start("pyramid", picture)]
        if "roi" in precise.stages:
            # Regions are held, as in training: no gradient goes through where they lie.
            own, regions = precise.stage_outputs, _regions(precise, picture)
            monkeypatch.setattr(precise, "stage_outputs", lambda batch, _: own(batch, regions))
        total, _ = inverter.objective(tensors, 0)
        gradients = torch.autograd.grad(total, tensors)
        direction = [torch.randn(t.shape, generator=generator(2, i)).double() for i, t in enumerate(tensors)]
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        step = 1e-7
        ahead, behind = (
            float(
                inverter.objective([t.detach() + s * d for t, d in zip(tensors, direction, strict=True)], 0)[
                    0
                ]
            )
            for s in (step, -step)
        )
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=2e-3)
    finally:
        detector.model.float()  # type: ignore[attr-defined]


def _regions(detector: WhiteBoxDetector, picture: Tensor) -> Tensor:
    return detector.stage_outputs(detector.embed(picture))[1].anchors


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("parametrisation", ["pixels", "pyramid"])
def test_optimisers_are_those_of_torch(optimiser: str, parametrisation: str) -> None:
    detector = _wrapped("retinanet")
    settings = _quick(
        optimiser=optimiser, parametrisation=parametrisation, learning_rate=1e-3, decay=0.5, decay_every=2
    )
    inverter = Inverter(detector, _layout(), settings, 0)
    state = inverter.begin()
    mine = [t.clone().requires_grad_() for t in state.tensors]
    theirs: torch.optim.Optimizer = (
        torch.optim.Adam(mine, lr=1e-3, betas=(0.9, 0.999), eps=settings.epsilon)
        if optimiser == "adam"
        else torch.optim.SGD(mine, lr=1e-3, momentum=0.9)
    )
    schedule = torch.optim.lr_scheduler.StepLR(theirs, 2, 0.5)
    for iteration in range(5):
        theirs.zero_grad()
        inverter.objective(mine, iteration)[0].backward()  # type: ignore[no-untyped-call]
        theirs.step()
        schedule.step()
        inverter.iterate(state)
    for own, other in zip(state.tensors, mine, strict=True):
        torch.testing.assert_close(own, other.detach(), rtol=1e-4, atol=1e-5)  # of moves of 5e-3


def test_one_seed_gives_one_picture_wherever_the_work_is_cut(detector: WhiteBoxDetector) -> None:
    settings = _quick(blur_every=2)

    def run(cuts: bool, seed: int) -> Tensor:
        inverter = Inverter(detector, _layout(), settings, seed)
        state = inverter.begin()
        while not inverter.finished(state):
            inverter.iterate(state)
            if cuts:
                state = load_state(state.dump(), inverter.begin())
        return torch.cat([t.flatten() for t in (*state.tensors, *state.moments)])

    through = run(False, 7)
    assert torch.equal(through, run(True, 7))
    assert not torch.equal(through, run(False, 8))


def test_a_picture_is_what_its_tensors_make() -> None:
    picture = torch.rand(3, HEIGHT, WIDTH, generator=generator(0, 0)) * 0.9 + 0.05
    for kind in ("pixels", "pyramid"):
        torch.testing.assert_close(picture_of(kind, start(kind, picture)), picture, rtol=1e-5, atol=1e-5)
    uneven = torch.rand(3, 37, 51, generator=generator(0, 1))
    assert picture_of("pyramid", start("pyramid", uneven)).shape == uneven.shape


def test_a_state_of_something_else_is_refused() -> None:
    detector = _wrapped("retinanet")
    inverter = Inverter(detector, _layout(), _quick(), 0)
    state = inverter.begin()
    inverter.iterate(state)
    other = Inverter(detector, _layout(), _quick(optimiser="sgd"), 0).begin()
    good = state.dump()
    state.tensors[0][0, 0, 0] = math.nan
    for data, like in [
        (b"nonsense", inverter.begin()),
        (good[:-3], inverter.begin()),
        (good, other),
        (state.dump(), inverter.begin()),
        (b"", inverter.begin()),
    ]:
        with pytest.raises(StateError):
            load_state(data, like)


def test_a_trained_detector_comes_to_see_the_layout() -> None:
    engine = demo_engine("retinanet-signs")
    label = engine.detector.labels.index("climb")
    layout = Layout(128, 128, torch.tensor([[30.0, 40, 80, 90]]), torch.tensor([label]), None, ())
    settings = settings_of({"iterations": 60, "tv_weight": 0.0, "noise": 0.0}, engine.detector)
    inverter = Inverter(engine.detector, layout, settings, 0)
    state = inverter.begin()
    assert match_of(layout, engine.detector.detect([inverter.picture(state)])[0], 0.4).recall == 0
    while not inverter.finished(state):
        inverter.iterate(state)
    match = match_of(layout, engine.detector.detect([inverter.picture(state)])[0], 0.4)
    assert match.recall == 1
    assert match.ap50 == 1


@pytest.mark.parametrize(("losses", "parts"), [("cls", {"cls", "logit"}), ("reg", {"reg"})])
def test_losses_can_be_asked_for_alone(losses: str, parts: set[str]) -> None:
    detector = _wrapped("fcos")
    inverter = Inverter(detector, _layout(), _quick(losses=losses), 0)
    _, told = inverter.objective(inverter.begin().tensors, 0)
    assert set(told) == {*parts, "total"}


def test_masks_are_inverted_where_layout_and_detector_have_them() -> None:
    masks = torch.zeros(2, HEIGHT, WIDTH)
    masks[0, 12:40, 10:30] = masks[1, 22:50, 60:80] = 1.0
    masks = masks.bool()
    detector = _wrapped("mask-rcnn")
    inverter = Inverter(detector, _layout(masks=masks), _quick(), 0)
    tensors = [t.requires_grad_() for t in inverter.begin().tensors]
    total, told = inverter.objective(tensors, 0)
    assert all(float(g.abs().sum()) > 0 for g in torch.autograd.grad(total, tensors))
    assert {"mask", "rpn_cls", "roi_cls", "rpn_reg", "roi_reg"} <= set(told)
    with pytest.raises(ContractError, match="the detector has no masks"):
        Inverter(_wrapped("fcos"), _layout(masks=masks), _quick(losses="mask"), 0)
    with pytest.raises(ContractError, match="the layout has no masks"):
        Inverter(detector, _layout(), _quick(losses="cls+mask"), 0)


def test_a_single_object_has_no_background_and_no_first_stage() -> None:
    detector = _wrapped("faster-rcnn")
    inverter = Inverter(detector, _layout(), _quick(single=True, losses="cls"), 0)
    _, told = inverter.objective(inverter.begin().tensors, 0)
    assert set(told) == {"roi_cls", "roi_logit", "total"}


def test_presets_are_whole_and_described() -> None:
    for architecture in ARCHITECTURE_NAMES:
        detector = _wrapped(architecture)
        for name in PRESETS:
            chosen = settings_of({"preset": name, "iterations": 7}, detector)
            assert chosen.iterations == 7
            for param in PARAMS:
                value = getattr(preset(name, detector), param.name, name)
                assert not param.choices or value in param.choices, (name, param.name, value)
                if param.minimum is not None:
                    assert param.minimum <= value <= (param.maximum or math.inf), (name, param.name, value)


# How well detections fit


def _found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detections:
    count = len(boxes)
    return Detections(
        torch.tensor(boxes).reshape(count, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores),
        torch.zeros(count, 4),
        torch.arange(count),
    )


def test_match_is_counted_by_hand() -> None:
    layout = _layout()
    half = [8.0, 10.0, 40.0, 34.0]  # IoU .75 with the first object
    found = _found([half, [8.0, 10, 40, 42], [50.0, 20, 86, 56]], [1, 2, 1], [0.9, 0.8, 0.3])
    assert matches(layout.boxes, layout.labels, found).tolist() == [0, -1]
    match = match_of(layout, found, 0.2)
    assert match.recall == 0.5
    assert match.mean_iou == pytest.approx(0.75)
    assert match.unmatched == 1  # of the two spare ones one is above .5
    assert match.ap50 == pytest.approx(0.5)  # 1 for class 1, 0 for class 3
    assert match.ap == pytest.approx(0.5 * 6 / 10)  # IoU .75 passes 6 of the 10 thresholds
    assert match_of(layout, found, 0.95).recall == 0  # it is found, but not told
    nothing = match_of(layout, _found([], [], []), 0.2)
    assert (nothing.recall, nothing.mean_iou, nothing.ap) == (0.0, 0.0, 0.0)


def test_average_precision_agrees_with_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluate = pytest.importorskip("pycocotools.cocoeval")
    random = torch.Generator().manual_seed(0)
    pictures, things, results = [], [], []
    for image in range(6):
        corners = torch.rand(4, 2, generator=random) * 60
        boxes = torch.cat([corners, corners + 10 + 25 * torch.rand(4, 2, generator=random)], 1)
        labels = torch.randint(0, 3, (4,), generator=random)
        pictures_boxes = boxes + 4 * torch.randn(4, 4, generator=random)
        spare = torch.tensor([[5.0, 5, 30, 30]])
        found = Detections(
            torch.cat([pictures_boxes, spare]),
            torch.cat([labels, torch.tensor([1])]),
            torch.rand(5, generator=random),
            torch.zeros(5, 3),
            torch.arange(5),
        )
        pictures.append((Layout(96, 96, boxes, labels, None, ()), found))
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            things.append(
                {"id": len(things) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
                | {"bbox": _xywh(box), "area": (box[2] - box[0]) * (box[3] - box[1])}
            )
        for box, label, score in zip(
            found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
        ):
            results.append({"image_id": image, "category_id": label, "bbox": _xywh(box), "score": score})
    truth = coco.COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(6)],
        "annotations": things,
        "categories": [{"id": i} for i in range(3)],
    }
    truth.createIndex()
    judged = evaluate.COCOeval(truth, truth.loadRes(results), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert average_precision(pictures, [0.5 + 0.05 * i for i in range(10)]) == pytest.approx(judged.stats[0])
    assert average_precision(pictures, [0.5]) == pytest.approx(judged.stats[1])


def _xywh(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


# The worker's operation


def _request(**changes: object) -> worker_pb2.AdvanceRequest:
    asked = explainer_pb2.CreateInversionRequest(
        layout=types_pb2.Layout(
            width=WIDTH,
            height=HEIGHT,
            objects=[
                types_pb2.LayoutObject(label="beta", box=BOXES[0].tolist()),
                types_pb2.LayoutObject(label="delta", box=BOXES[1].tolist()),
            ],
        ),
        seed=5,
    )
    asked.params.update({"iterations": 4, "tv_weight": 0, **changes})
    return worker_pb2.AdvanceRequest(inversion=asked, seconds=0.0)


def _ask(engine: Engine, request: worker_pb2.AdvanceRequest) -> worker_pb2.WorkerReply:
    (reply,) = engine.answer([worker_pb2.WorkerRequest(advance=request)])
    return reply


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder: Path = tmp_path_factory.mktemp("inversion")
    recipe = read_recipe(write_recipe(folder, "mask-rcnn"))
    assert recipe.weights is not None
    return Engine.load(recipe, folder / recipe.weights)


def test_a_worker_advances_step_by_step_to_a_result(engine: Engine) -> None:
    request = _request()
    iterations: list[int] = []
    answer = worker_pb2.Advance()
    while not answer.HasField("result"):
        reply = _ask(engine, request)
        assert reply.WhichOneof("result") == "advance", reply.error
        answer = reply.advance
        iterations.append(answer.progress.iteration)
        request.state = answer.state
    assert iterations == [1, 2, 3, 4]
    assert answer.progress.iterations == 4
    assert answer.result.params["iterations"] == 4
    assert {curve.name for curve in answer.result.losses} >= {"total", "roi_cls", "rpn_reg"}
    assert all(list(curve.iterations) == [1, 2, 3, 4] for curve in answer.result.losses)
    again = _ask(engine, request).advance
    assert again.state == answer.state  # a finished one has no further step
    assert again.result == answer.result
    whole = _request()
    whole.seconds = 60
    at_once = _ask(engine, whole).advance
    assert at_once.state == answer.state
    assert at_once.picture == answer.picture


@pytest.mark.parametrize(("every", "looks"), [(1e9, 2), (0.0, 4)])
def test_the_detector_looks_at_first_in_the_end_and_now_and_then(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, every: float, looks: int
) -> None:
    assert isinstance(engine.detector, WhiteBoxDetector)
    seen: list[int] = []
    detect = type(engine.detector).detect

    def counting(self: WhiteBoxDetector, images: list[Tensor]) -> object:
        seen.append(len(images))
        return detect(self, images)

    monkeypatch.setattr(type(engine.detector), "detect", counting)
    monkeypatch.setattr(inverting, "LOOK_SECONDS", every)
    request = _request()
    answer = worker_pb2.Advance()
    while not answer.HasField("result"):
        answer = _ask(engine, request).advance
        request.state = answer.state
    assert len(seen) == looks


def test_a_step_tells_where_its_time_goes(engine: Engine) -> None:
    told: dict[str, float] = {}
    requests = [worker_pb2.WorkerRequest(advance=_request())]
    engine.answer(requests, watch=lambda _, stage, seconds: told.update({stage: seconds}))
    assert list(told) == ["decode", "load", "iterate", "detect", "encode"]
    assert all(seconds >= 0 for seconds in told.values())
    assert told["iterate"] > 0


def test_a_worker_starts_from_a_given_picture(engine: Engine) -> None:
    request = _request()
    request.inversion.image = encoded(random_image(HEIGHT, WIDTH))
    first = _ask(engine, request).advance
    request.inversion.image = b""
    assert first.picture != _ask(engine, request).advance.picture
    request.inversion.image = encoded(random_image(HEIGHT, WIDTH + 1))
    assert _ask(engine, request).error.field == "image"


def test_masks_in_the_layout_are_read(engine: Engine) -> None:
    request = _request(losses="mask", jitter=0)
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[12:40, 10:30] = True
    request.inversion.layout.objects[0].mask = rle.encode(mask.numpy())
    reply = _ask(engine, request)
    assert set(reply.advance.progress.losses) == {"mask", "total"}


@pytest.mark.parametrize(
    ("field", "spoil"),
    [
        ("layout.objects", lambda r: r.inversion.layout.ClearField("objects")),
        ("layout.objects[0].label", lambda r: _set(r.inversion.layout.objects[0], "label", "betta")),
        ("layout.objects[1].box", lambda r: _box(r, 1, [50, 20, WIDTH + 1, 56])),
        ("layout.objects[1].box", lambda r: _box(r, 1, [50, 20, 50, 56])),
        ("layout.objects[1].box", lambda r: _box(r, 1, [50, 20, 51, 56])),
        ("layout.objects[1].box", lambda r: _box(r, 1, [50, 20, math.nan, 56])),
        ("layout.objects[1].box", lambda r: _box(r, 1, [])),
        ("layout.objects[0].mask", lambda r: _set(r.inversion.layout.objects[0], "mask", "05")),
        ("layout.objects[0].evidence", lambda r: _set(r.inversion.layout.objects[0], "evidence", "05")),
        ("layout.objects", lambda r: _many(r, 101)),
        ("layout.width", lambda r: _set(r.inversion.layout, "width", 5)),
        ("layout.width", lambda r: _set(r.inversion.layout, "width", 100_000)),
        ("layout", lambda r: _large(r)),
        ("params.iterations", lambda r: r.inversion.params.update({"iterations": 0})),
        ("params.iterations", lambda r: r.inversion.params.update({"iterations": 1_000_000})),
        ("params.iterations", lambda r: r.inversion.params.update({"iterations": 1.5})),
        ("params.preset", lambda r: r.inversion.params.update({"preset": "papr"})),
        ("params.losses", lambda r: r.inversion.params.update({"losses": "cls+mask"})),
        ("params.weight_reg", lambda r: r.inversion.params.update({"losses": "reg", "weight_reg": 0})),
        ("params.level_weights", lambda r: r.inversion.params.update({"level_weights": "1,x"})),
        ("params.level_weights", lambda r: r.inversion.params.update({"level_weights": "1,nan"})),
        ("params.speed", lambda r: r.inversion.params.update({"speed": 1})),
        ("priority", lambda r: _set(r.inversion, "priority", 10)),
        ("idempotency_key", lambda r: _set(r.inversion, "idempotency_key", "k" * 201)),
        ("seconds", lambda r: _set(r, "seconds", math.nan)),
        ("state", lambda r: _set(r, "state", b"no state")),
    ],
)
def test_bad_input_is_an_error_that_names_the_field(engine: Engine, field: str, spoil: object) -> None:
    request = _request()
    spoil(request)  # type: ignore[operator]
    reply = _ask(engine, request)
    assert reply.WhichOneof("result") == "error", reply
    assert reply.error.field == field
    assert reply.error.expected
    assert reply.error.type != "internal"


def _set(message: object, name: str, value: object) -> None:
    setattr(message, name, value)


def _box(request: worker_pb2.AdvanceRequest, index: int, box: list[float]) -> None:
    request.inversion.layout.objects[index].box[:] = box


def _many(request: worker_pb2.AdvanceRequest, count: int) -> None:
    one = request.inversion.layout.objects[0]
    request.inversion.layout.objects.extend([one] * (count - 2))


def _large(request: worker_pb2.AdvanceRequest) -> None:
    request.inversion.layout.width = request.inversion.layout.height = 1001
