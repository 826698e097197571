"""Spatial shift: centres of energy by arithmetic, and a planted shift as positive control."""

from __future__ import annotations

import pytest
import torch

from region_detector import RegionDetector, Thing
from whybox.methods import METHODS
from whybox.methods.base import Map, Question
from whybox.shift import centre_of_energy, spatial_shift

D_RISE = METHODS["d_rise"]
BOX = (4.0, 4.0, 60.0, 44.0)
PICTURE = torch.full((48, 64, 3), 255, dtype=torch.uint8)


def test_centres_are_arithmetic() -> None:
    values = torch.full((4, 8), 0.3)
    values[1, 2], values[1, 4] = 1.0, 1.0
    values[3, 7] = 0.6  # below the middle between 0.3 and 1
    assert centre_of_energy(Map(values, (10, 20, 90, 60))) == pytest.approx((10 + 35, 20 + 15))
    assert centre_of_energy(Map(torch.full((4, 8), 0.3), (10, 20, 90, 60))) == pytest.approx((50, 40))


def test_a_shift_is_in_units_of_the_box() -> None:
    values = torch.zeros(10, 10)
    values[2, 3] = 1
    moved = values.roll((4, 2), (0, 1))
    region = (0.0, 0.0, 100.0, 100.0)
    shift = spatial_shift(Map(values, region), Map(moved, region), (0, 0, 40, 50))
    assert (shift.x, shift.y) == pytest.approx((0.5, 0.8))
    assert shift.distance == pytest.approx(0.89**0.5)
    with pytest.raises(ValueError, match="x1 < x2"):
        spatial_shift(Map(values, region), Map(moved, region), (0, 0, 0, 50))


@pytest.mark.parametrize("planted", [(0, 0), (20, 0), (-6, 14)])
def test_a_planted_shift_is_found(planted: tuple[int, int]) -> None:
    """Features moved by a known offset are found there on the level, and not on the stage before it."""
    detector = RegionDetector(Thing(BOX, (22, 14, 30, 22), other=0.5), shift=planted)
    ((_, batch),) = detector.prepare([PICTURE])
    forward = detector.forward(batch, keep=True)
    found = detector.postprocess(detector.candidates(forward, 0), batch.frames[0], detector.defaults)[:1]
    params = {p.name: p.default for p in D_RISE.params} | {"samples": 500, "cells": 8}
    made = {}
    for layer in ("image", "cells", "level"):
        asked = Question(forward, 0, found, ["class"], layer, params, picture=PICTURE)
        ((made[layer],),) = D_RISE.explain(detector, asked)
    on_stage = spatial_shift(made["image"], made["cells"], BOX)
    on_level = spatial_shift(made["image"], made["level"], BOX)
    assert on_stage.distance < 0.02
    assert on_level.x == pytest.approx(planted[0] / 56, abs=0.06)
    assert on_level.y == pytest.approx(planted[1] / 40, abs=0.06)
