"""Smoothing: the kernels, and that both ways to apply them agree with a plain convolution."""

from __future__ import annotations

import pytest
import torch

from slow_reference import smooth as slow_smooth
from whybox import gaussian
from whybox.gaussian import gaussian_matrices, smooth, smoothing_margin


def test_gaussian_matrices_sum_to_one_inside_and_are_the_identity_at_zero() -> None:
    matrices = gaussian_matrices(torch.tensor([0.0, 0.7, 2.0]), 31)
    assert torch.equal(matrices[0], torch.eye(31))
    assert torch.allclose(matrices[1:, 15].sum(1), torch.ones(2))
    ratio = matrices[2, 15, 16] / matrices[2, 15, 15]
    assert torch.isclose(ratio, torch.exp(torch.tensor(-0.5 * (1 / 2.0) ** 2)))
    assert float(matrices[2, 15, 20]) == 0, "cut at two sigmas"


@pytest.mark.parametrize("few", [0, 100])
def test_smoothing_equals_a_convolution(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By shifted sums as well as by matrices; kernels narrower and wider than the maps."""
    monkeypatch.setattr(gaussian, "FEW_STEPS", few)
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 2, 4, 5, 7, generator=generator, dtype=torch.float64)
    sigmas = torch.tensor([[0.0, 0.4], [1.3, 0.0], [6.0, 2.5]], dtype=torch.float64)
    made = smooth(maps, sigmas)
    for row, (x, y) in enumerate(sigmas.tolist()):
        for target in range(2):
            assert torch.allclose(made[row, target], slow_smooth(maps[row, target], x, y), atol=1e-12)


def test_no_smoothing_has_no_margin() -> None:
    assert smoothing_margin(None) == 0
    assert smoothing_margin(torch.tensor([[0.4, 1.1]])) == 3
