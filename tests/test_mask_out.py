"""Mask-out: its drops by arithmetic, its order of places, and what a smaller budget gives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from builders import ARCHITECTURE_NAMES, LABELS, random_image, random_model
from region_detector import RegionDetector, Thing
from whybox.detectors.base import WhiteBoxDetector
from whybox.detectors.torchvision import wrap
from whybox.methods import METHODS
from whybox.methods.base import Map, Question
from whybox.methods.mask_out import MIN_OVERLAP, coarse_to_fine

MASK_OUT = METHODS["mask_out"]
WHITE = torch.full((48, 64, 3), 255, dtype=torch.uint8)


def question(
    detector: WhiteBoxDetector, picture: torch.Tensor, *, most: int = 100, **changes: Any
) -> Question:
    """What is asked about the first detections of a picture."""
    ((_, batch),) = detector.prepare([picture])
    forward = detector.forward(batch, keep=True)
    found = detector.postprocess(detector.candidates(forward, 0), batch.frames[0], detector.defaults)
    params = {param.name: param.default for param in MASK_OUT.params} | changes.pop("params", {})
    asked = {"targets": ["class"], "layer": "", "picture": picture, "params": params} | changes
    return Question(forward, 0, found[:most], **asked)


def maps(detector: WhiteBoxDetector, picture: torch.Tensor, **changes: Any) -> list[list[Map]]:
    return MASK_OUT.explain(detector, question(detector, picture, **changes))


def hidden(start: float, end: float, centre: float, side: float) -> int:
    """Whole pixels of [start, end) whose middle lies under a square."""
    return sum(abs(p + 0.5 - centre) < side / 2 for p in range(int(start), int(end)))


def test_drops_are_arithmetic() -> None:
    """The score is the share of a place's pixels that is white, so the drop is the share that is hidden."""
    place = (20, 10, 28, 22)
    detector = RegionDetector(Thing((16, 8, 40, 40), place))
    params = {"side": 10.0, "stride": 4.0, "fill": "black", "score_threshold": 0.0}
    ((made,),) = maps(detector, WHITE, params=params)
    assert made.values.shape == (12, 16)
    assert made.region == (0, 0, 64, 48)
    assert made.signed
    assert made.samples == 12 * 16
    assert made.standard_error is None
    expected = torch.zeros(12, 16)
    for row in range(12):
        for column in range(16):
            across = hidden(place[0], place[2], (column + 0.5) * 4, 10)
            down = hidden(place[1], place[3], (row + 0.5) * 4, 10)
            expected[row, column] = across * down / (8 * 12)
    torch.testing.assert_close(made.values, expected)
    assert float(expected.max()) > 0.6


def test_below_the_threshold_all_of_the_score_is_lost() -> None:
    detector = RegionDetector(Thing((16, 8, 40, 40), (20, 10, 28, 22)))
    params = {"side": 10.0, "stride": 4.0, "fill": "black", "score_threshold": 0.7}
    ((made,),) = maps(detector, WHITE, params=params)
    params["score_threshold"] = 0.0
    ((exact,),) = maps(detector, WHITE, params=params)
    torch.testing.assert_close(made.values, torch.where(exact.values >= 0.3, 1.0, exact.values))
    assert bool((made.values == 1).any())


def test_a_drop_may_be_negative() -> None:
    """In a picture that is dark at the place alone, hiding it with the mean colour raises the score."""
    picture = WHITE.clone()
    picture[10:22, 20:28] = 51  # 0.2
    detector = RegionDetector(Thing((16, 8, 40, 40), (20, 10, 28, 22)))
    ((made,),) = maps(detector, picture, params={"side": 40.0, "stride": 8.0})
    mean = round(picture.double().mean().item())
    assert float(made.values.min()) == pytest.approx(0.2 - mean / 255, abs=1e-6)


def test_a_class_of_ones_choice() -> None:
    """`class:LABEL` follows the box of that class, whatever the detection's own class is."""
    box = (16.0, 8.0, 40.0, 40.0)
    things = Thing(box, (20, 10, 28, 22)), Thing(box, (40, 30, 48, 38), label=1)
    detector = RegionDetector(*things)
    params = {"side": 10.0, "stride": 4.0, "fill": "black", "score_threshold": 0.0}
    asked = maps(detector, WHITE, params=params, targets=["class", "class:class 0", "class:class 1"])
    assert len(asked) == 2
    for row, own in zip(asked, [1, 2], strict=True):
        assert torch.equal(row[0].values, row[own].values)
    assert not torch.equal(asked[0][1].values, asked[0][2].values)
    other = RegionDetector(things[0])  # nothing of class 1 is ever found: nothing can be lost
    ((none,),) = maps(other, WHITE, params=params, targets=["class:class 1"])
    assert float(none.values.abs().max()) == 0


def test_another_object_of_the_class_is_no_match() -> None:
    """When the object is hidden, its neighbour with a low IoU does not stand in for it."""
    things = Thing((0, 0, 20, 20), (0, 0, 20, 20)), Thing((14, 0, 34, 20), (30, 0, 34, 20))
    detector = RegionDetector(*things)
    params = {"side": 40.0, "stride": 16.0, "fill": "black"}
    first = maps(detector, WHITE, params=params)[0][0]
    assert MIN_OVERLAP > 6 / 34
    assert float(first.values[0, 0]) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (8, 8), (12, 16), (13, 40)])
def test_the_order_covers_the_grid_evenly(size: tuple[int, int]) -> None:
    height, width = size
    order = coarse_to_fine(height, width)
    assert sorted(map(tuple, order.tolist())) == [(r, c) for r in range(height) for c in range(width)]
    everywhere = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    for count in range(1, height * width + 1):
        gap = torch.cdist(everywhere, order[:count].float()).amin(1).amax().item()
        # An ideal covering by `count` squares of the grid leaves no place further than half a diagonal; the
        # first few places lie at a corner, and a long side is halved later than a short one.
        ideal = math.sqrt(height * width / count)
        assert gap <= 2 * ideal + max(height, width) / math.sqrt(count)


def test_the_order_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whybox.methods.perturbing.CPU_ROUND_BYTES", 1)  # each square is a chunk
    coarse_to_fine.cache_clear()
    detector = RegionDetector(Thing((16, 8, 40, 40), (20, 10, 28, 22)))
    maps(detector, WHITE, params={"side": 16.0, "stride": 8.0})
    info = coarse_to_fine.cache_info()
    assert (info.misses, info.hits) == (1, 6 * 8 - 1)


def test_a_smaller_budget_is_a_coarser_map_and_a_larger_one_changes_nothing() -> None:
    detector = RegionDetector(Thing((16, 8, 40, 40), (20, 10, 28, 22)))
    params = {"side": 16.0, "stride": 8.0, "fill": "black", "score_threshold": 0.0}
    ((whole,),) = maps(detector, WHITE, params=params)
    ((beyond,),) = maps(detector, WHITE, params=params, samples=10**6)
    assert torch.equal(whole.values, beyond.values)
    assert beyond.samples == whole.samples == 6 * 8
    ((coarse,),) = maps(detector, WHITE, params=params, samples=12)
    assert coarse.samples == 12
    seen = coarse_to_fine(6, 8)[:12]
    assert torch.equal(coarse.values[tuple(seen.T)], whole.values[tuple(seen.T)])
    for row in range(6):
        for column in range(8):
            nearest = (seen - torch.tensor([row, column])).square().sum(1)
            values = whole.values[tuple(seen[nearest == nearest.min()].T)].tolist()
            assert coarse.values[row, column].item() in values


def test_a_grid_is_no_finer_than_max_side() -> None:
    detector = RegionDetector(Thing((16, 8, 40, 40), (20, 10, 28, 22)))
    ((made,),) = maps(detector, WHITE, params={"stride": 1.0}, max_side=8)
    assert made.values.shape == (6, 8)


def test_a_grid_has_no_more_centres_than_could_be_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whybox.methods.mask_out.MAX_CENTRES", 12)
    detector = RegionDetector(Thing((16, 8, 40, 40), (20, 10, 28, 22)))
    ((made,),) = maps(detector, WHITE, params={"stride": 1.0})
    assert made.values.shape == (3, 4)
    assert made.samples == 12


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_maps_equal_detecting_in_masked_pictures(architecture: str) -> None:
    """The obvious way: paint the square into the picture, and ask the detector from the start."""
    detector = wrap(random_model(architecture), LABELS, background=True)
    picture = random_image(96, 128)
    before = detector.detect([picture])[0]
    asked = question(detector, picture, most=3, params={"side": 48.0, "stride": 32.0, "fill": "black"})
    made = MASK_OUT.explain(detector, asked)
    for i, box in enumerate(asked.detections.boxes):
        label, own = int(asked.detections.labels[i]), asked.detections.scores[i]
        for row in range(3):
            for column in range(4):
                painted = picture.clone()
                y, x = 16 + 32 * row, 16 + 32 * column
                painted[max(0, y - 24) : y + 24, max(0, x - 24) : x + 24] = 0
                score, best = 0.0, 0.5
                found = detector.detect([painted], detector.defaults)[0]
                for other, of, value in zip(found.boxes, found.labels, found.scores, strict=True):
                    overlap = _iou(box.tolist(), other.tolist())
                    if int(of) == label and overlap > best:
                        score, best = float(value), overlap
                drop = float(made[i][0].values[row, column])
                assert drop == pytest.approx(float(own) - score, abs=1e-5)
    after = detector.detect([picture])[0]
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.class_scores, after.class_scores)


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / area if area else 0.0


def test_many_maps_are_cut_into_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = RegionDetector(
        Thing((0, 0, 20, 20), (2, 2, 18, 18)),
        Thing((30, 10, 60, 40), (34, 14, 50, 30)),
        Thing((20, 20, 40, 40), (22, 22, 30, 30), label=1),
    )
    whole = maps(detector, WHITE, params={"stride": 8.0})
    monkeypatch.setattr("whybox.methods.perturbing.GROUP_CELLS", 50)
    cut = maps(detector, WHITE, params={"stride": 8.0})
    assert [[m.values.tolist() for m in row] for row in cut] == [
        [m.values.tolist() for m in row] for row in whole
    ]
