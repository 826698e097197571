"""Heat by way of a tower's first convolution, against the way back through it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import whybox.detectors.entry as entry_module
import whybox.detectors.taps as taps_module
from whybox.detectors.base import Grids, Outputs
from whybox.detectors.dense import Tower, locate
from whybox.detectors.entry import pays
from whybox.detectors.taps import DenseHead, DenseLevelTap

SIZES = [(7, 9), (4, 3)]
"""Smaller than the towers reach, so that every window goes over a border of its level."""


def _tap(side: int) -> DenseLevelTap:
    """All cells of two levels under a tower of random weights: side x side, GroupNorm, ReLU, 3x3, ReLU."""
    generator = torch.Generator().manual_seed(0)
    parts = [nn.Conv2d(5, 6, side, padding=side // 2), nn.GroupNorm(2, 6), nn.ReLU()]
    parts += [nn.Conv2d(6, 4, 3, padding=1), nn.ReLU()]
    values = nn.Conv2d(4, 4, 3, padding=1)
    stack = nn.Sequential(*parts, values).double().requires_grad_(False)
    for parameter in stack.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    tower = Tower.of(nn.Sequential(*parts), values=values)
    levels = [torch.randn((5, *size), generator=generator, dtype=torch.float64) for size in SIZES]
    with torch.no_grad():
        runs = [tower.run(level[None], keep=True) for level in levels]
    count = sum(h * w for h, w in SIZES)
    raw = torch.cat([outputs["values"][0].flatten(1).T for outputs, _ in runs])

    def outputs(raw: Mapping[str, Tensor]) -> Outputs:
        labels = torch.zeros(count, dtype=torch.int64)
        return Outputs(raw["values"][:, :1], raw["values"], labels, raw["values"][:, :1])

    head = DenseHead([tower], [[[f[0] for f in factors] for _, factors in runs]], levels)
    grids = Grids(torch.zeros(count, 2), torch.ones(count, 2), torch.full((count, 2), 3))
    boxes = torch.zeros(count, 4, dtype=torch.float64)
    return DenseLevelTap(head, locate(torch.arange(count), SIZES, 1), {"values": raw}, outputs, grids, boxes)


def _heat(tap: DenseLevelTap, sigmas: Tensor | None) -> dict[int, Tensor]:
    targets = [lambda outputs, side=side: outputs.sides[:, side] ** 2 for side in range(4)]
    return {
        pick: values
        for heat in tap.heat(targets, sigmas)
        for pick, values in zip(heat.picks.tolist(), heat.values, strict=True)
    }


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.4, 2.0])
@pytest.mark.parametrize("few_bytes", [False, True])
def test_both_ways_give_the_same_heat(
    side: int, spread: float, few_bytes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = _tap(side)
    generator = torch.Generator().manual_seed(1)
    sigmas = spread * torch.rand((len(tap.boxes), 2), generator=generator, dtype=torch.float64)
    monkeypatch.setattr(taps_module, "pays", lambda *_: False)
    expected = _heat(tap, sigmas if spread else None)
    calls = []
    entry_heat = entry_module.entry_heat
    monkeypatch.setattr(taps_module, "pays", lambda *_: calls.append(1) or True)
    if few_bytes:
        monkeypatch.setattr(entry_module, "PRODUCT_BYTES", 1)
        monkeypatch.setattr(
            taps_module, "entry_heat", lambda *args: entry_heat(*args[:-1], 40 * 8 * 6 * side**2)
        )
    made = _heat(tap, sigmas if spread else None)
    assert calls
    assert sorted(made) == sorted(expected) == list(range(len(tap.boxes)))
    for pick, values in made.items():
        assert values.abs().max() > 0
        assert torch.allclose(values, expected[pick], rtol=1e-9, atol=1e-9 * float(values.abs().max()))


def test_the_table_stays_within_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that share no cell are cut into parts of as many cells as the limit has room for."""
    conv = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
    sizes = []
    table = entry_module._table
    monkeypatch.setattr(
        entry_module, "_table", lambda conv, cells: sizes.append(len(cells)) or table(conv, cells)
    )
    numbers = torch.arange(10 * 25).view(10, 5, 5)
    gradients, along = torch.ones(10, 1, 3, 3, 3), torch.ones(10, 5, 5)
    limit = 50 * 4 * 9 * 3  # bytes of 50 cells
    entry_module.entry_heat(conv, torch.ones(251, 2), numbers, gradients, along, along, limit)
    assert sizes == [50] * 5


def test_it_pays_where_cells_or_targets_are_shared() -> None:
    conv = nn.Conv2d(256, 256, 3, padding=1)
    gradients = torch.empty(27, 5, 9, 9, 256, device="meta")
    assert pays(conv, 27 * 169, gradients, 13)  # many targets
    assert not pays(conv, 27 * 169, gradients[:, :1], 13)  # neither
    assert pays(conv, 200, gradients[:, :1], 13)  # many windows on few cells
