"""D-RISE: its masks, its weights by arithmetic and by the obvious loop, where it points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from builders import ARCHITECTURE_NAMES, LABELS, random_image, random_model
from region_detector import RegionDetector, Thing
from whybox.detectors.base import Batch, Detections, PostProcessing, WhiteBoxDetector
from whybox.detectors.torchvision import wrap
from whybox.methods import METHODS
from whybox.methods.base import Map, Question
from whybox.methods.drise import DRise, RandomMasks
from whybox.methods.perturbing import cell_centres
from whybox.methods.sampling import Sum, Task, generator
from whybox.metrics.pointing import energies
from whybox.patience import Patience
from whybox_proto import maps as wire_maps
from whybox_proto.sums import Chunk
from whybox_proto.v1 import types_pb2

D_RISE = METHODS["d_rise"]
WHITE = torch.full((48, 64, 3), 255, dtype=torch.uint8)


def question(detector: WhiteBoxDetector, picture: Tensor, *, most: int = 1, **changes: Any) -> Question:
    """What is asked about the first detections of a picture."""
    ((_, batch),) = detector.prepare([picture])
    forward = detector.forward(batch, keep=True)
    found = detector.postprocess(detector.candidates(forward, 0), batch.frames[0], detector.defaults)
    params = {param.name: param.default for param in D_RISE.params} | changes.pop("params", {})
    asked = {"targets": ["class"], "layer": "image", "picture": picture, "params": params} | changes
    return Question(forward, 0, found[:most], **asked)


def maps(detector: WhiteBoxDetector, picture: Tensor, **changes: Any) -> list[list[Map]]:
    return D_RISE.explain(detector, question(detector, picture, **changes))


def centre_of_energy(values: Tensor, region: tuple[float, float, float, float]) -> tuple[float, float]:
    """Where a map's contrast lies, in the image frame; its level says nothing (see `DRise`)."""
    energy = (values - values.median()).clamp(min=0) ** 2
    h, w = values.shape
    x = region[0] + (torch.arange(w) + 0.5) * (region[2] - region[0]) / w
    y = region[1] + (torch.arange(h) + 0.5) * (region[3] - region[1]) / h
    total = float(energy.sum())
    return float((energy.sum(0) * x).sum()) / total, float((energy.sum(1) * y).sum()) / total


@pytest.mark.parametrize("shift", [(0, 0), (3, 1), (7, 11), (8, 12)])
def test_masks_are_rises(shift: tuple[int, int]) -> None:
    """RISE enlarges the cells to one cell more than the picture, and cuts the picture out at the shift."""
    n, cell_x, cell_y = 5, 8, 12
    cells = (torch.rand(2, n, n, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    width, height = n * cell_x, n * cell_y
    enlarged = F.interpolate(cells[:, None], ((n + 1) * cell_y, (n + 1) * cell_x), mode="bilinear")[:, 0]
    expected = enlarged[:, shift[1] : shift[1] + height, shift[0] : shift[0] + width]
    shifts = torch.tensor([[shift[0] / cell_x, shift[1] / cell_y]]).repeat(2, 1)
    masks = RandomMasks(cells, shifts, width, height)
    made = masks.at(torch.arange(width) + 0.5, torch.arange(height) + 0.5)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_each_mask_is_drawn_from_its_own_number() -> None:
    whole = RandomMasks.draw(3, range(10), 6, 0.5, (60, 40))
    part = RandomMasks.draw(3, [7, 2], 6, 0.5, (60, 40))
    assert torch.equal(part.cells, whole.cells[[7, 2]])
    assert torch.equal(part.shifts, whole.shifts[[7, 2]])
    assert not torch.equal(RandomMasks.draw(4, [7], 6, 0.5, (60, 40)).cells, part.cells[:1])
    numbers = torch.rand(38, generator=generator(3, 7))
    assert torch.equal(part.cells[0].flatten(), (numbers[:36] < 0.5).float())


@pytest.mark.parametrize("probability", [0.2, 0.5])
def test_cells_are_kept_with_their_probability(probability: float) -> None:
    masks = RandomMasks.draw(0, range(400), 8, probability, (64, 64))
    mean = masks.cells.mean(0)
    # Each of the 64 cells is a mean of 400 draws; 4.5 standard errors.
    assert float((mean - probability).abs().max()) < 4.5 * (probability * (1 - probability) / 400) ** 0.5
    assert float(masks.shifts.min()) >= 0
    assert float(masks.shifts.max()) < 1
    assert float((masks.shifts.mean(0) - 0.5).abs().max()) < 0.07


def places(width: int, height: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """The centres of a map's cells."""
    return (torch.arange(w) + 0.5) * (width / w), (torch.arange(h) + 0.5) * (height / h)


def test_what_is_always_found_has_the_mean_mask() -> None:
    """Every similarity is 1, so H = Σ M / (N·p); it tends to 1."""
    detector = RegionDetector(Thing((16, 8, 40, 40), (20, 10, 28, 22), other=0.5), classes=1)
    detector.forward = lambda batch, keep=False: RegionDetector.forward(  # type: ignore[method-assign]
        detector, Batch(torch.ones_like(batch.pixels), batch.frames), keep=keep
    )
    ((made,),) = maps(
        detector, WHITE, params={"samples": 50, "cells": 4, "probability": 0.3, "centred": False}
    )
    assert made.values.shape == (24, 32)
    masks = RandomMasks.draw(0, range(50), 4, 0.3, (64, 48)).at(*places(64, 48, 24, 32))
    torch.testing.assert_close(made.values, masks.sum(0) / (50 * 0.3))
    assert made.samples == 50
    assert not made.signed
    ((centred,),) = maps(detector, WHITE, params={"samples": 50, "cells": 4, "probability": 0.3})
    torch.testing.assert_close(centred.values, torch.ones(24, 32))  # no noise at all
    assert made.region == (0, 0, 64, 48)


def test_weights_are_arithmetic() -> None:
    """A place of one pixel: the class vector is (mask there, 0.5), and its cosine to (1, 0.5) is known."""
    x, y = 31, 17
    detector = RegionDetector(Thing((16, 8, 40, 40), (x, y, x + 1, y + 1), other=0.5))
    detector.defaults = PostProcessing(0.6, 100)
    params = {"samples": 40, "cells": 6, "score_threshold": 0.6, "centred": False}
    ((made,),) = maps(detector, WHITE, params=params, seed=5)
    expected = torch.zeros(36, 48)
    masks = RandomMasks.draw(5, range(40), 6, 0.5, (64, 48))
    there = masks.at(torch.tensor([x + 0.5]), torch.tensor([y + 0.5])).flatten().tolist()
    counted = 0
    for mask, share in zip(masks.at(*places(64, 48, 36, 48)), there, strict=True):
        if share > 0.6:  # else nothing is found
            cosine = (share * 1 + 0.5 * 0.5) / ((share**2 + 0.25) * 1.25) ** 0.5
            expected += cosine * mask / (40 * 0.5)
            counted += 1
    assert 5 < counted < 35
    torch.testing.assert_close(made.values, expected)


def test_a_class_of_ones_choice_is_a_vector_of_that_class_alone() -> None:
    x, y = 31, 17
    detector = RegionDetector(Thing((16, 8, 40, 40), (x, y, x + 1, y + 1), other=0.5))
    params = {"samples": 20, "cells": 6, "score_threshold": 0.0, "centred": False}
    ((own, first, second),) = maps(
        detector, WHITE, most=1, params=params, targets=["class", "class:class 0", "class:class 1"]
    )
    masks = RandomMasks.draw(0, range(20), 6, 0.5, (64, 48))
    share = masks.at(torch.tensor([x + 0.5]), torch.tensor([y + 0.5])).flatten()
    length = (share**2 + 0.25).sqrt()
    seen = masks.at(*places(64, 48, *own.values.shape)) / (20 * 0.5)
    for made, cosine in ((first, share / length), (second, 0.5 / length)):
        torch.testing.assert_close(made.values, (cosine[:, None, None] * seen).sum(0))
    assert not torch.equal(own.values, first.values)


def test_centring_is_against_the_others_of_the_chunk() -> None:
    """In another way to write it: each similarity less the mean of the others, which is added again."""
    x, y = 31, 17
    detector = RegionDetector(Thing((16, 8, 40, 40), (x, y, x + 1, y + 1), other=0.5))
    asked = question(detector, WHITE, params={"cells": 6, "score_threshold": 0.0})
    masks = RandomMasks.draw(0, range(7), 6, 0.5, (64, 48))
    share = masks.at(torch.tensor([x + 0.5]), torch.tensor([y + 0.5])).flatten()
    alike = (share + 0.25) / ((share**2 + 0.25) * 1.25).sqrt()
    seen = masks.at(*places(64, 48, 36, 48))
    expected = torch.zeros(36, 48)
    for i in range(7):
        others = torch.cat([alike[:i], alike[i + 1 :]]).mean()
        expected += (alike[i] - others) * seen[i] + others * 0.5
    (made,) = chunk(detector, asked, 0, 7)
    torch.testing.assert_close(made.values, expected)
    assert made.weight == 7 * 0.5
    (one,) = chunk(detector, asked, 3, 1)  # no others
    torch.testing.assert_close(one.values, alike[3] * seen[3])


def test_centring_changes_the_noise_and_not_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whybox.methods.perturbing.CPU_ROUND_BYTES", 1 << 23)
    detector = RegionDetector(Thing((2, 2, 60, 44), (10, 4, 18, 12), other=0.5))
    mean, scatter = {}, {}
    for centred in (True, False):
        params = {"samples": 60, "cells": 4, "centred": centred}
        made = [maps(detector, WHITE, params=params, seed=seed)[0][0].values for seed in range(40)]
        mean[centred] = torch.stack(made).mean(0)
        scatter[centred] = float(torch.stack(made).var(0).mean().sqrt())
    assert scatter[True] < 0.4 * scatter[False]
    assert float((mean[True] - mean[False]).abs().max()) < 5 * scatter[False] / 40**0.5


def test_what_centring_takes_below_zero_is_noise_and_stays() -> None:
    """A thing that is seldom found: its mean similarity is near 0 wherever a place is kept."""
    x, y = 31, 17
    detector = RegionDetector(Thing((16, 8, 40, 40), (x, y, x + 1, y + 1), other=0.5))
    params = {"samples": 400, "cells": 6, "probability": 0.2, "score_threshold": 0.9}
    ((plain,),) = maps(detector, WHITE, params={**params, "centred": False})
    ((made,),) = maps(detector, WHITE, params=params)
    assert float(plain.values.min()) >= 0
    assert made.standard_error is not None
    assert -5 * made.standard_error < float(made.values.min()) < 0
    assert not made.signed
    written = types_pb2.HeatMap()
    wire_maps.encode(made.values.numpy(), written, "u8")
    assert wire_maps.decode(written).min() == made.values.min()
    energy = energies(made.values.numpy(), made.signed)
    assert energy.min() == 0
    np.testing.assert_allclose(energy - energy.max(), made.values - made.values.max(), atol=1e-6)


def slow_map(
    detector: WhiteBoxDetector, picture: Tensor, target: Detections, params: dict[str, Any]
) -> Tensor:
    """The obvious loop: a masked picture at a time through the whole detector, a detection at a time."""
    height, width = picture.shape[:2]
    ((_, batch),) = detector.prepare([picture])
    ((_, black),) = detector.prepare([torch.zeros_like(picture)])
    frame = batch.frames[0]
    settings = PostProcessing(
        params["score_threshold"], detector.defaults.max_detections, "iou", detector.defaults.iou_threshold
    )
    total: Any = 0
    for sample in range(params["samples"]):
        masks = RandomMasks.draw(0, [sample], params["cells"], params["probability"], (width, height))
        x = (torch.arange(frame.network_width) + 0.5) * width / frame.network_width
        y = (torch.arange(frame.network_height) + 0.5) * height / frame.network_height
        mask = masks.at(x, y)[0]
        padded = F.pad(
            mask, (0, batch.pixels.shape[3] - mask.shape[1], 0, batch.pixels.shape[2] - mask.shape[0])
        )
        masked = batch.pixels * padded + black.pixels * (1 - padded)
        forward = detector.forward(Batch(masked, batch.frames))
        found = detector.postprocess(detector.candidates(forward, 0), frame, settings)
        best = 0.0
        for box, vector in zip(found.boxes.tolist(), found.class_scores, strict=True):
            cosine = float(F.cosine_similarity(vector, target.class_scores[0], 0))
            best = max(best, cosine * _iou(box, target.boxes[0].tolist()))
        total = total + best * masks.at(*places(width, height, 24, 32))[0]
    return total / (params["samples"] * params["probability"])


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / area if area else 0.0


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_maps_equal_the_slow_reference(architecture: str) -> None:
    detector = wrap(random_model(architecture), LABELS, background=True)
    picture = random_image(90, 120)
    params = {"samples": 6, "cells": 4, "probability": 0.5, "score_threshold": 0.05, "centred": False}
    before = detector.detect([picture])[0]
    asked = question(detector, picture, most=2, params=params)
    made = D_RISE.explain(detector, asked)
    for row in range(2):
        expected = slow_map(detector, picture, asked.detections[row : row + 1], params)
        torch.testing.assert_close(made[row][0].values, expected, atol=1e-5, rtol=1e-4)
    after = detector.detect([picture])[0]
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.class_scores, after.class_scores)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("layer", ["image", "cells", "level"])
@pytest.mark.parametrize("place", [(10, 4, 18, 12), (44, 30, 52, 38)])
def test_it_points_at_what_the_detector_looks_at(layer: str, place: tuple[int, int, int, int]) -> None:
    detector = RegionDetector(Thing((2, 2, 60, 44), place, other=0.5))
    params = {"samples": 400, "cells": 8, "score_threshold": 0.0}
    ((made,),) = maps(detector, WHITE, layer=layer, params=params)
    x, y = centre_of_energy(made.values, made.region)
    assert abs(x - (place[0] + place[2]) / 2) < 3
    assert abs(y - (place[1] + place[3]) / 2) < 3
    row, column = divmod(int(made.values.argmax()), made.values.shape[1])
    peak = (column + 0.5) * 64 / made.values.shape[1], (row + 0.5) * 48 / made.values.shape[0]
    assert place[0] - 3 < peak[0] < place[2] + 3
    assert place[1] - 3 < peak[1] < place[3] + 3


@pytest.mark.parametrize("layer", ["cells", "level"])
def test_a_coarse_map_is_hidden_where_its_cells_look(layer: str) -> None:
    """Cell 5 of a stride of 8 looks at pixel 40, not at 44, the middle of the fifth tile."""
    stride, column, row = 8, 5, 2
    detector = RegionDetector(
        Thing((2, 2, 60, 44), (column, row, column + 1, row + 1), other=0.5), stride=stride
    )
    asked = question(
        detector, WHITE, layer=layer, params={"samples": 800, "cells": 8, "score_threshold": 0.0}
    )
    x, y = cell_centres(asked.forward.batch, asked.forward.stages["cells"])
    assert x[column].item() == pytest.approx(stride * column + 0.5)
    assert y[row].item() == pytest.approx(stride * row + 0.5)
    ((in_features,),) = D_RISE.explain(detector, asked)
    ((in_image,),) = maps(detector, WHITE, params=dict(asked.params))
    torch.testing.assert_close(in_features.values, in_image.values, atol=1e-5, rtol=0)


def test_moved_features_are_found_where_they_are() -> None:
    """Features that were moved by 20 pixels are hidden 20 pixels away from what they saw."""
    place, shift = (10, 14, 18, 22), 20
    detector = RegionDetector(Thing((2, 2, 60, 44), place, other=0.5), shift=(shift, 0))
    params = {"samples": 400, "cells": 8, "score_threshold": 0.0}
    centres = {}
    for layer in ("image", "cells", "level"):
        ((made,),) = maps(detector, WHITE, layer=layer, params=params)
        centres[layer] = centre_of_energy(made.values, made.region)
    assert abs(centres["cells"][0] - centres["image"][0]) < 1
    assert abs(centres["level"][0] - centres["image"][0] - shift) < 3
    assert abs(centres["level"][1] - centres["image"][1]) < 3


def chunk(detector: WhiteBoxDetector, asked: Question, first: int, count: int) -> list[Sum]:
    task = Task.of(
        asked.detections,
        {},
        1,
        Chunk(0, first, count, 0),
        picture=asked.picture,
        targets=asked.targets,
        layer=asked.layer,
        params=asked.params,
        seed=asked.seed,
        max_side=asked.max_side,
        memory=asked.memory,
        patience=Patience(),
    )
    assert isinstance(D_RISE, DRise)
    return [part for row in D_RISE.sample(detector, task) for part in row]


@pytest.mark.parametrize("layer", ["image", "level", "layer3"])
def test_chunks_know_nothing_of_each_other(layer: str) -> None:
    one, other = (wrap(random_model("faster-rcnn"), LABELS, background=True) for _ in range(2))
    asked = question(one, random_image(90, 120), most=2, layer=layer, params={"cells": 4})
    parts = [chunk(one, asked, first, 3) for first in (0, 3, 6)]
    again = [chunk(other, asked, first, 3) for first in (6, 0, 3)]
    for part, same in zip(parts, [again[1], again[2], again[0]], strict=True):
        assert all(torch.equal(a.values, b.values) for a, b in zip(part, same, strict=True))
    assert not torch.equal(parts[0][0].values, parts[1][0].values)


def test_seeds_and_batches() -> None:
    detector = RegionDetector(Thing((2, 2, 60, 44), (10, 4, 18, 12), other=0.5))
    params = {"samples": 30, "cells": 8}
    ((first,),) = maps(detector, WHITE, params=params, seed=1)
    ((again,),) = maps(detector, WHITE, params=params, seed=1)
    ((other,),) = maps(detector, WHITE, params=params, seed=2)
    ((narrow,),) = maps(detector, WHITE, params=params, seed=1, memory=1)
    ((budget,),) = maps(detector, WHITE, params={"cells": 8}, seed=1, samples=30)
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.values, budget.values)
    assert not torch.equal(first.values, other.values)
    torch.testing.assert_close(first.values, narrow.values)


def test_the_standard_error_is_that_of_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many seeds, maps scatter about their mean as each of them says."""
    monkeypatch.setattr("whybox.methods.perturbing.CPU_ROUND_BYTES", 1 << 23)
    detector = RegionDetector(Thing((2, 2, 60, 44), (10, 4, 18, 12), other=0.5))
    made = [maps(detector, WHITE, params={"samples": 60, "cells": 4}, seed=s)[0][0] for s in range(40)]
    values = torch.stack([m.values for m in made])
    scatter = values.var(0).mean().sqrt()
    errors = torch.tensor([m.standard_error for m in made])
    assert float((errors.square().mean().sqrt() / scatter - 1).abs()) < 0.2


def test_there_are_rounds_for_a_standard_error() -> None:
    """However cheap the passes are; a few samples are one round, and have none."""
    detector = RegionDetector(Thing((2, 2, 60, 44), (10, 4, 18, 12), other=0.5))
    for samples, rounds in ((8, 1), (40, 5), (80, 10), (200, 10)):
        asked = question(detector, WHITE, samples=samples)
        assert isinstance(D_RISE, DRise)
        plan = D_RISE.plan(detector, asked)
        assert -(-samples // plan.round_samples) == rounds
        ((made,),) = D_RISE.explain(detector, asked)
        assert (made.standard_error is None) == (rounds == 1)


@pytest.mark.parametrize("fill", ["black", "mean"])
def test_hidden_pixels_are_filled(fill: str) -> None:
    """On a picture of one colour the mean hides nothing: the object is found in every masked picture."""
    detector = RegionDetector(Thing((2, 2, 60, 44), (10, 4, 18, 12), other=0.5))
    params = {"samples": 20, "cells": 4, "fill": fill, "centred": False}
    ((made,),) = maps(detector, WHITE // 2, params=params)
    mean = RandomMasks.draw(0, range(20), 4, 0.5, (64, 48)).at(*places(64, 48, 24, 32)).mean(0) / 0.5
    assert torch.allclose(made.values, mean, atol=1e-5) == (fill == "mean")


def test_layers_say_the_space() -> None:
    detector = wrap(random_model("faster-rcnn"), LABELS, background=True)
    assert D_RISE.layers(detector) == ["image", "level", "stem", "layer1", "layer2", "layer3", "layer4"]
    with pytest.raises(ValueError, match="layers of d_rise"):
        maps(detector, random_image(90, 120), layer="roi")


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 0.6, 1.0])
def test_detections_are_those_of_all_candidates(architecture: str, threshold: float) -> None:
    """What is left out before decoding could not have passed the threshold."""
    detector = wrap(random_model(architecture), LABELS, background=True)
    ((_, batch),) = detector.prepare([random_image(90, 120), random_image(90, 120, seed=1)])
    forward = detector.forward(batch)
    settings = PostProcessing(threshold, 60)
    for image in range(2):
        expected = detector.postprocess(detector.candidates(forward, image), batch.frames[image], settings)
        found = detector.detections(forward, image, settings)
        assert torch.equal(found.candidates, expected.candidates)
        torch.testing.assert_close(found.boxes, expected.boxes)
        torch.testing.assert_close(found.scores, expected.scores)
        torch.testing.assert_close(found.class_scores, expected.class_scores)
