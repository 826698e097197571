"""Region taps of every kind of RoIAlign, against torchvision's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference_parts import double_precision
from whybox.detectors.base import Frame, Grids, Outputs
from whybox.detectors.cells import Cells
from whybox.detectors.roi_taps import Regions, RoiLevelTap, RoiTap
from whybox.detectors.taps import strided_grids

KINDS = [(2, False), (0, False), (2, True), (0, True)]
BOXES = torch.tensor(
    [
        [0.0, 0.0, 96.0, 64.0],  # all of the picture
        [3.2, 5.1, 40.7, 33.3],
        [60.0, 1.0, 95.9, 63.0],
        [10.0, 10.0, 11.0, 10.5],  # less than a cell
        [20.0, 20.0, 20.0, 20.0],  # nothing
    ]
)
STRIDE = 4


def regions(sampling: int, aligned: bool) -> tuple[Regions, Tensor]:
    """Regions of one level, and its map."""
    level = torch.rand(3, 64 // STRIDE, 96 // STRIDE, generator=torch.Generator().manual_seed(0))
    boxes = BOXES.to(level)
    which = torch.zeros(len(boxes), dtype=torch.int64)
    return Regions(boxes, which, [1 / STRIDE], (3, 2), sampling, aligned), level


@pytest.mark.parametrize(("sampling", "aligned"), KINDS)
def test_weights_are_roi_aligns(sampling: int, aligned: bool) -> None:
    """Weights along both axes give what pooling gives."""
    with double_precision():
        made, level = regions(sampling, aligned)
        cells = Cells([(level.shape[1], level.shape[2])])
        picks = torch.arange(len(made.boxes))
        start = torch.zeros_like(picks)
        along_y = made.weights(picks, 1, start, level.shape[1], cells)
        along_x = made.weights(picks, 0, start, level.shape[2], cells)
        pooled = torch.einsum("cyx,nyi,nxj->ncij", level, along_y, along_x)
        torch.testing.assert_close(pooled, made.pool([level], picks))


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize(("sampling", "aligned"), KINDS)
def test_heat_is_that_of_the_windows(sampling: int, aligned: bool, smoothed: bool) -> None:
    """And the windows' gradients are those of a backward pass through RoIAlign."""
    with double_precision():
        made, level = regions(sampling, aligned)
        weight = torch.rand(3, 3, 2, generator=torch.Generator().manual_seed(1))

        def head(features: Tensor) -> dict[str, Tensor]:
            return {"logits": (features * weight).sum((2, 3)).tanh()}

        def outputs(raw: dict[str, Tensor], picks: Tensor) -> Outputs:
            return Outputs(raw["logits"], raw["logits"][:, :1].expand(-1, 4), picks, raw["logits"])

        grids: Grids = strided_grids(Frame(96, 64, 96, 64), [STRIDE], [(16, 24)], made.levels)
        tap = RoiLevelTap(RoiTap(made, [level], head, outputs, made.boxes), grids)
        targets = [lambda said: said.scores[:, 1], lambda said: said.scores.sum(1)]
        sigmas = torch.full((len(made.boxes), 2), 1.3) if smoothed else None
        found = {}
        for heat in tap.heat(targets, sigmas):
            for pick, values, origin in zip(heat.picks, heat.values, heat.origins, strict=True):
                found[int(pick)] = _placed(values, origin, level)
        compared = 0
        for window in tap.windows(targets, margin=4 if smoothed else 0):
            heat = window.heat(sigmas)
            for row, pick in enumerate(window.picks.tolist()):
                expected = _placed(heat.values[row], heat.origins[row], level)
                torch.testing.assert_close(found[pick], expected)
                if not smoothed:
                    leaf = level.clone().requires_grad_()
                    said = outputs(head(made.pool([leaf], torch.tensor([pick]))), torch.tensor([pick]))
                    for target, values in zip(targets, expected, strict=True):
                        (gradient,) = torch.autograd.grad(target(said).sum(), leaf, retain_graph=True)
                        torch.testing.assert_close(values, (gradient * level).sum(0))
                compared += 1
        assert compared == len(BOXES)


def _placed(values: Tensor, origin: Tensor, level: Tensor) -> Tensor:
    """Put maps (T, h, w) onto the whole level: (T, H, W)."""
    height, width = level.shape[1:]
    whole = values.new_zeros((len(values), height, width))
    x, y = origin.tolist()
    h, w = values.shape[1:]
    top, left, bottom, right = max(0, y), max(0, x), min(height, y + h), min(width, x + w)
    whole[:, top:bottom, left:right] = values[:, top - y : bottom - y, left - x : right - x]
    return whole
