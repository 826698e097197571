"""One map out of several: expectations by hand."""

from __future__ import annotations

import pytest
import torch

from whybox.methods.base import Map
from whybox.methods.fusing import FUSIONS, fuse, fuse_layers

POSITIVE = torch.tensor([[[0.0, 4.0, 2.0]], [[3.0, 1.0, 2.0]]])  # two maps of one row: 0, 1, ½ and 1, 0, ½
SIGNED = torch.tensor([[[-2.0, 1.0, 0.0]], [[-4.0, -4.0, 2.0]]])  # −1, ½, 0 and −1, −1, ½


@pytest.mark.parametrize(
    ("fusion", "expected"), [("mean", [0.5, 0.5, 0.5]), ("product", [0, 0, 0.25]), ("max", [1, 1, 0.5])]
)
def test_maps_are_normalised_first(fusion: str, expected: list[float]) -> None:
    assert fuse(POSITIVE, fusion, signed=False).tolist() == [expected]


@pytest.mark.parametrize(
    ("fusion", "expected"), [("mean", [-1, -0.25, 0.25]), ("product", [-1, 0, 0]), ("max", [-1, -1, 0.5])]
)
def test_signed_maps_keep_zero_and_sign(fusion: str, expected: list[float]) -> None:
    assert fuse(SIGNED, fusion, signed=True).tolist() == [expected]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_maps_of_zeros_stay_zeros(fusion: str, signed: bool) -> None:
    assert not fuse(torch.zeros(2, 3, 3), fusion, signed=signed).any()


def test_layers_meet_on_the_raster_of_the_finest() -> None:
    fine = Map(torch.tensor([[0.0, 1.0], [2.0, 4.0]]), (0, 0, 2, 2))
    coarse = Map(torch.tensor([[0.0, 8.0]]), (0, 0, 8, 4))  # cells of 4
    made = fuse_layers([coarse, fine], "max")
    assert made.region == (0, 0, 8, 4)
    assert made.values.shape == (4, 8)
    # The coarse map is linear between the centres of its cells, at x = 2 and x = 6.
    ramp = [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]
    assert made.values[3].tolist() == pytest.approx(ramp)
    assert made.values[1, :2].tolist() == [0.5, 1.0], "the fine map, 0 beyond its region"
    assert made.values[0, 2:].tolist() == pytest.approx(ramp[2:])


def test_one_layer_twice_is_its_normalised_self() -> None:
    made = Map(torch.tensor([[0.0, 1.0], [2.0, 4.0]]), (3, 5, 7, 13))
    for fusion, expected in (("mean", made.values / 4), ("product", (made.values / 4) ** 2)):
        fused = fuse_layers([made, made], fusion)
        assert fused.region == made.region
        assert torch.allclose(fused.values, expected)


def test_signed_layers_stay_signed() -> None:
    made = Map(torch.tensor([[-1.0, 1.0]]), (0, 0, 2, 1), signed=True)
    assert fuse_layers([made, made], "mean").signed
