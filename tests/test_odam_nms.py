"""Odam-NMS's maps: on the raster as served maps are enlarged, and what follows from them in an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from builders import LABELS, random_image, random_model
from test_nms import obvious_odam
from whybox.detectors.base import Forward, Frame, Grids, Heat, PostProcessing
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.finding import find
from whybox.methods import METHODS
from whybox.methods.base import Question
from whybox.odam_nms import SAMPLES, correlation, local_layer, paste, raster, unit_maps
from whybox_proto.errors import ContractError
from whybox_proto.maps import enlarge

KINDS = ("retinanet", "fcos", "faster-rcnn")
SETTINGS = PostProcessing(0.05, 1000, "odam", 0.3, corr_low=0.02, corr_high=0.3)
SETTINGS_NONE = replace(SETTINGS, nms="none")


@pytest.fixture(scope="module", params=KINDS)
def passed(request: pytest.FixtureRequest) -> tuple[TorchvisionDetector, Forward]:
    """A detector, and its pass over a picture that is padded below and to the right."""
    detector = wrap(random_model(request.param), LABELS, background=True)
    ((_, batch),) = detector.prepare([random_image(90, 150, seed=3)])
    return detector, detector.forward(batch, keep=True)


def reference(values: np.ndarray, region: tuple[float, ...], frame: Frame) -> np.ndarray:
    """The served map enlarged to `SAMPLES` points for each side of a cell, then the mean of each cell."""
    height, width = raster(frame)
    sx, sy = width * SAMPLES / frame.width, height * SAMPLES / frame.height
    x1, y1, x2, y2 = region
    fine = enlarge(values, (x1 * sx, y1 * sy, x2 * sx, y2 * sy), width * SAMPLES, height * SAMPLES)
    return fine.reshape(height, SAMPLES, width, SAMPLES).mean((1, 3))


def test_vectors_are_served_maps_enlarged_and_resized(
    passed: tuple[TorchvisionDetector, Forward],
) -> None:
    detector, forward = passed
    frame = forward.batch.frames[0]
    candidates = detector.candidates(forward, 0)
    # Spread over the whole picture, so that borders and padding are met.
    rows = torch.linspace(0, len(candidates.scores) - 1, 40).long()
    labels = torch.arange(40) % len(LABELS)
    vectors = unit_maps(detector, forward, 0, rows, labels)
    assert vectors.shape == (40, 50 * 83)
    method = METHODS["odam"]
    params = {param.name: param.default for param in method.params} | {"smoothing": 0.0}
    found = detector.postprocess(candidates, frame, SETTINGS_NONE)[:1]
    for i in range(40):
        one = replace(
            found,
            candidates=rows[i : i + 1],
            labels=labels[i : i + 1],
            boxes=found.boxes,
            scores=found.scores,
        )
        question = Question(forward, 0, one, ("class",), local_layer(detector), params)
        ((made,),) = method.explain(detector, question)
        expected = torch.from_numpy(reference(made.values.numpy(), made.region, frame)).flatten()
        if bool((expected > 0).any()):
            expected = expected / expected.norm()
            assert vectors[i].norm() == pytest.approx(1, abs=1e-5)
        assert torch.allclose(vectors[i], expected, atol=2e-5), i


def test_pasting_in_numbers() -> None:
    """Two cells of 100 pixels, the second beyond the picture; and a map that misses the picture."""
    frame = Frame(width=100, height=50, network_width=100, network_height=50)
    values = torch.tensor([[[[4.0, 9.0]]], [[[5.0, 5.0]]], [[[-1.0, 1.0]]]])  # [3, 1, 1, 2]
    heat = Heat(torch.tensor([0, 1, 2]), values, torch.tensor([[0, 0], [1, 0], [-1, 0]]))
    grids = Grids(torch.zeros(3, 2), torch.tensor([[100.0, 50.0]] * 3), torch.tensor([[1, 1]] * 3))
    made = paste(heat, grids, frame, (50, 100))
    assert torch.allclose(made[0], torch.full((50, 100), 4.0))  # the cell beyond has no part in it
    assert not made[1].any()
    assert torch.allclose(made[2], torch.ones(50, 100))  # its first cell lies left of the picture


def test_interpolation_in_numbers() -> None:
    """Cells of 2 x 2 pixels on a raster of the picture's own size: bilinear between centres, 0 outside."""
    frame = Frame(width=50, height=50, network_width=50, network_height=50)
    heat = Heat(torch.tensor([0]), torch.tensor([[[[0.0, 8.0]]]]), torch.tensor([[1, 3]]))
    grids = Grids(torch.zeros(1, 2), torch.full((1, 2), 2.0), torch.tensor([[25, 25]]))
    (made,) = paste(heat, grids, frame, (50, 50))
    # Centres at x = 3 and 5; the raster cell from 3 to 4 is the mean over 3.125, 3.375, … of 8 (x - 3) / 2.
    assert made[6, 2:6].tolist() == pytest.approx([0, 2, 6, 8])
    assert made[7].tolist() == made[6].tolist()
    made[6:8, 2:6] = 0
    assert not made.any()


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(640, 480, (50, 67)), (480, 640, (67, 50)), (10, 10, (50, 50)), (5000, 100, (10, 500))],
)
def test_the_raster_has_the_pictures_shape(width: int, height: int, expected: tuple[int, int]) -> None:
    assert raster(Frame(width, height, width, height)) == expected


def test_answers_equal_the_obvious_loop(passed: tuple[TorchvisionDetector, Forward]) -> None:
    detector, forward = passed
    scores = detector.candidates(forward, 0).scores.flatten()
    settings = replace(SETTINGS, score_threshold=float(scores.topk(min(150, len(scores))).values[-1]))
    found = find(detector, forward, 0, settings)
    contenders = found.contenders
    assert len(contenders.scores) > 30
    maps = unit_maps(detector, forward, 0, contenders.candidates, contenders.labels)
    kept, dropped = obvious_odam(contenders.boxes, contenders.scores, contenders.labels, maps, settings)
    assert found.verdict.kept.tolist() == kept
    assert found.detections.candidates.tolist() == contenders.candidates[kept].tolist()
    assert {rule for *_, rule in dropped.values()} == {"same_object", "same_evidence"}
    greedy = find(detector, forward, 0, replace(settings, nms="iou"))
    assert greedy.verdict.kept.tolist() != kept


def test_thresholds_outside_make_it_greedy(passed: tuple[TorchvisionDetector, Forward]) -> None:
    detector, forward = passed
    greedy = find(detector, forward, 0, replace(SETTINGS, nms="iou"))
    odam = find(detector, forward, 0, replace(SETTINGS, corr_low=-1.0, corr_high=1.0))
    assert torch.equal(greedy.detections.boxes, odam.detections.boxes)
    assert torch.equal(greedy.detections.scores, odam.detections.scores)


def test_a_map_is_made_once_and_when_it_is_asked_for(
    passed: tuple[TorchvisionDetector, Forward], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, forward = passed
    found = detector.contenders(detector.candidates(forward, 0), forward.batch.frames[0], SETTINGS)
    asked: list[list[int]] = []

    def counting(*arguments: Any, **more: Any) -> Tensor:
        asked.append(arguments[3].tolist())
        return unit_maps(*arguments, **more)

    monkeypatch.setattr("whybox.odam_nms.unit_maps", counting)
    correlate = correlation(detector, forward, 0, found)
    assert not asked
    first, second = torch.tensor([5, 2]), torch.tensor([2, 7])
    alike = correlate(first, second)
    assert asked == [found.candidates[[2, 5, 7]].tolist()]
    assert float(alike[1, 0]) == pytest.approx(1)
    assert float(alike.max()) <= 1
    again = correlate(torch.tensor([7, 3]), first)
    assert asked[1:] == [found.candidates[[3]].tolist()]
    assert float(again[0, 1]) == pytest.approx(float(alike[1, 1]))
    expected = unit_maps(detector, forward, 0, found.candidates[[5, 7]], found.labels[[5, 7]])
    assert float(alike[0, 1]) == pytest.approx(float(expected[0] @ expected[1]), abs=1e-5)


def test_nothing_is_left_behind(passed: tuple[TorchvisionDetector, Forward]) -> None:
    detector, forward = passed

    def fail() -> None:
        raise RuntimeError("stopped")

    before = (
        {name: value.clone() for name, value in forward.extra["raw"].items()}
        if isinstance(next(iter(forward.extra["raw"].values())), Tensor)
        else {}
    )
    find(detector, forward, 0, SETTINGS)
    with pytest.raises(RuntimeError, match="stopped"):
        find(detector, forward, 0, SETTINGS, between=fail)
    for name, value in before.items():
        assert torch.equal(forward.extra["raw"][name], value)
    for module in detector.model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not module._forward_pre_hooks
    for parameter in detector.model.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
    ((_, batch),) = detector.prepare([random_image(90, 150, seed=3)])
    again = detector.forward(batch)
    first = detector.candidates(forward, 0)
    assert torch.equal(detector.candidates(again, 0).scores, first.scores)


def test_more_boxes_than_memory_has_room_for_are_refused(
    passed: tuple[TorchvisionDetector, Forward], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, forward = passed
    monkeypatch.setattr("whybox.odam_nms.MAX_CELLS", 3 * 50 * 83)
    with pytest.raises(ContractError) as caught:
        find(detector, forward, 0, SETTINGS)
    assert caught.value.field == "select.score_threshold"
    assert "at most 3 boxes" in caught.value.expected


def test_no_candidates_and_one() -> None:
    detector = wrap(random_model("retinanet"), LABELS, background=True)
    ((_, batch),) = detector.prepare([random_image(64, 64)])
    forward = detector.forward(batch, keep=True)
    assert not len(find(detector, forward, 0, replace(SETTINGS, score_threshold=1.0)).detections)
    best = float(detector.candidates(forward, 0).scores.flatten().topk(2).values[1])
    assert len(find(detector, forward, 0, replace(SETTINGS, score_threshold=best)).detections) == 1
