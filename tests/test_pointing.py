"""Measures of pointing, on maps whose figures can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from whybox.metrics.pointing import box_mask, energy_share, evidence_ratio, own_half_share

BOX = (2.0, 2.0, 10.0, 10.0)  # 64 pixels


def evidence() -> np.ndarray:
    mask = np.zeros((12, 12), bool)
    mask[2:6, 2:6] = True  # a quarter of the box
    return mask


def test_an_even_map_over_the_box_has_ratio_one() -> None:
    values = box_mask(BOX, 12, 12).astype(np.float32)
    assert evidence_ratio(values, evidence(), BOX) == pytest.approx(1)
    assert energy_share(values, box_mask(BOX, 12, 12)) == 1


def test_all_energy_on_the_evidence_has_the_highest_ratio() -> None:
    assert evidence_ratio(evidence().astype(np.float32), evidence(), BOX) == pytest.approx(4)


def test_energy_elsewhere_and_no_energy_have_ratio_zero() -> None:
    values = np.zeros((12, 12), np.float32)
    assert evidence_ratio(values, evidence(), BOX) == 0
    values[9, 9] = 3
    assert evidence_ratio(values, evidence(), BOX) == 0


def test_evidence_outside_the_box_is_refused() -> None:
    with pytest.raises(ValueError, match="got none"):
        evidence_ratio(np.ones((12, 12), np.float32), np.zeros((12, 12), bool), BOX)


@pytest.mark.parametrize(("side", "share"), [("x1", 0.75), ("x2", 0.25), ("y1", 1.0), ("y2", 0.0)])
def test_own_half(side: str, share: float) -> None:
    values = np.zeros((12, 12), np.float32)
    values[3, 3], values[3, 8] = 3, 1
    values[0, 0] = 100  # outside the box: does not count
    assert own_half_share(values, side, BOX) == pytest.approx(share)
    with pytest.raises(ValueError, match="side is one of"):
        own_half_share(values, "top", BOX)
