"""D-RISE's random masks beside those of xaitk-saliency; its scoring is compared in test_peers.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peer_libraries import xaitk
from whybox.methods.drise import RandomMasks

COUNT, CELLS = 600, 8
WIDTH, HEIGHT = 64, 48


def test_masks_have_the_distribution_of_xaitks() -> None:
    """Mean and spread over the picture, and how alike neighbours are."""
    grid = xaitk("impls.perturb_image.rise").RISEGrid(COUNT, CELLS, 0.5, seed=0, threads=0)
    theirs = torch.from_numpy(grid.perturb(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    masks = RandomMasks.draw(0, range(COUNT), CELLS, 0.5, (WIDTH, HEIGHT))
    ours = masks.at(torch.arange(WIDTH) + 0.5, torch.arange(HEIGHT) + 0.5)
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=0.01)
    inside = (..., slice(6, -6), slice(8, -8))
    assert float(ours[inside].var(0).mean()) == pytest.approx(float(theirs[inside].var(0).mean()), rel=0.05)
    for step in (2, 6):
        alike = [((m[..., step:] - m[..., :-step]) ** 2).mean().item() for m in (ours, theirs)]
        assert alike[0] == pytest.approx(alike[1], rel=0.05)
