"""ODAM on hand-set weights, where every expectation is arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from whybox.detectors.base import Frame, Grids, Outputs, Taps
from whybox.detectors.dense import Tower, locate
from whybox.detectors.taps import DenseHead, DenseLevelTap
from whybox.detectors.whole_level import WholeLevelTap
from whybox.methods.base import scalar
from whybox.methods.odam import odam_maps, sigmas_of

LEVEL = [[5.0, 7.0], [1.0, -4.0]]
FRAME = Frame(2, 2, 2, 2)  # a cell for each pixel


def _tap(norm: nn.Module | None = None) -> DenseLevelTap:
    """One tower: logit(y, x) = 3 · ReLU(2 · A(y, x + 1)), and a side of 10 · ReLU(−A(y, x)); all four cells.

    The final score of the only class is half its logit. With a norm, it stands before the ReLU.
    """
    first = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    first.weight.data.zero_()
    first.weight.data[0, 0, 1, 2] = 2
    first.weight.data[1, 0, 1, 1] = -1
    logits, sides = nn.Conv2d(2, 1, 1, bias=False), nn.Conv2d(2, 4, 1, bias=False)
    logits.weight.data[:] = torch.tensor([3.0, 0.0])[None, :, None, None]
    sides.weight.data[:] = torch.tensor([0.0, 10.0])[None, :, None, None]
    parts = [first, nn.ReLU()] if norm is None else [first, norm, nn.ReLU()]
    tower = Tower.of(nn.Sequential(*parts).requires_grad_(False), logits=logits, sides=sides)
    level = torch.tensor(LEVEL)[None]
    with torch.no_grad():
        outputs, factors = tower.run(level[None], keep=True)
    head = DenseHead([tower], [[[factor[0] for factor in factors]]], [level])
    candidates = torch.arange(4)
    raw = {name: value[0].flatten(1).T.detach() for name, value in outputs.items()}

    def decode(raw: Mapping[str, Tensor]) -> Outputs:
        labels = torch.zeros(4, dtype=torch.int64)
        return Outputs(raw["logits"] / 2, raw["sides"], labels, raw["logits"])

    grids = Grids(torch.zeros(4, 2), torch.ones(4, 2), torch.full((4, 2), 2))
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(4, 1)
    kind = DenseLevelTap if norm is None else WholeLevelTap
    return kind(head, locate(candidates, [(2, 2)], 1), raw, decode, grids, boxes)


def _maps(target: str, *, sign: str = "signed", score: str = "score", smoothing: float = 0.0) -> list[Tensor]:
    made = odam_maps(
        Taps([_tap()]), [scalar(target, ["thing"], score=score)], FRAME, smoothing=smoothing, sign=sign
    )
    assert all(row[0].region == (0, 0, 2, 2) for row in made[0])
    return [row[0].values for row in made[0]]


def test_the_class_map_is_gradient_times_activation() -> None:
    first, second, third, fourth = _maps("class")
    # ∂(3 · ReLU(2A) / 2)/∂A = 3 at the right neighbour of the first cell, where A = 7.
    assert first.tolist() == [[0, 21], [0, 0]]
    assert not second.any(), "its right neighbour lies outside the level"
    assert not third.any(), "its right neighbour is negative, and the ReLU cuts it off"
    assert not fourth.any()


def test_the_logit_has_the_logits_gradient() -> None:
    assert _maps("class", score="logit")[0].tolist() == [[0, 42], [0, 0]]


def test_signs() -> None:
    # ∂(10 · ReLU(−A))/∂A = −10 at the fourth cell, where A = −4; x1 turns its sign.
    assert _maps("x2")[3].tolist() == [[0, 0], [0, 40]]
    assert _maps("x1")[3].tolist() == [[0, 0], [0, -40]]
    assert not _maps("x1", sign="relu")[3].any()
    assert _maps("x1", sign="negated")[3].tolist() == [[0, 0], [0, 40]]
    assert _maps("x1", sign="abs")[3].tolist() == [[0, 0], [0, 40]]


def test_smoothing_spreads_the_gradient_and_not_the_map() -> None:
    """σ of one cell: the kernel's five weights along an axis are e^(−d²/2), normalised."""
    total = 1 + 2 * math.exp(-0.5) + 2 * math.exp(-2)
    at, beside = 1 / total, math.exp(-0.5) / total
    expected = [[5 * 3 * beside * at, 7 * 3 * at * at], [1 * 3 * beside * beside, -4 * 3 * at * beside]]
    assert torch.allclose(_maps("class", smoothing=0.5)[0], torch.tensor(expected))


def test_sigmas_follow_the_object_and_stop_at_the_grid() -> None:
    tap = _tap()
    tap.boxes = torch.tensor([[0.0, 0.0, 1.0, 9.0]]).repeat(4, 1)
    sigmas = sigmas_of(tap, 0.5)
    assert sigmas is not None
    assert sigmas[0].tolist() == [0.5, 1.0]
    assert sigmas_of(tap, 0.0) is None


def test_the_exact_gradient_through_group_norm() -> None:
    """Two groups of a channel: ∂Y/∂x = (g − mean(g) − x̂ · mean(g · x̂)) / σ over the four cells."""
    norm = nn.GroupNorm(2, 2, eps=0.0)
    (window,) = _tap(norm).windows([scalar("class", ["thing"], score="logit")])
    x = torch.tensor([[14.0, 0.0], [-8.0, 0.0]])  # what the first channel sees: 2 · A of the right neighbour
    sigma = math.sqrt(((x - x.mean()) ** 2).mean())
    normed = (x - x.mean()) / sigma
    g = torch.tensor([[3.0, 0.0], [0.0, 0.0]])  # of the first candidate
    inner = (g - g.mean() - normed * (g * normed).mean()) / sigma
    expected = torch.zeros(2, 2)
    expected[:, 1] = 2 * inner[:, 0]  # A(y, 1) enters x(y, 0)
    assert torch.allclose(window.gradients[0, 0, 0], expected, atol=1e-6)


def test_a_tower_without_a_relu_is_refused() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(TypeError, match="ReLU after each convolution"):
        Tower.of(nn.Sequential(conv), logits=nn.Conv2d(1, 1, 1))
