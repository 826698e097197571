"""Regularisers and blur of a picture, on its own device.

Letters: C channels, H, W pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CUT = 3.0
"""Half width of a blur's kernel, in sigmas."""


def total_variation(picture: Tensor, exponent: float) -> Tensor:
    """Sum over the pixels and channels of (dx² + dy²)^(exponent / 2).

    Source: Mahendran and Vedaldi, "Understanding deep image representations by inverting them", CVPR 2015,
    equation 6.

    Args:
        picture: float (C, H, W).
        exponent: 2 for the sum of squares; with less, edges cost less than slopes.
    """
    across, down = picture.diff(dim=2).square(), picture.diff(dim=1).square()
    if exponent == 2:
        return across.sum() + down.sum()
    squares = F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))
    return (squares + 1e-8).pow(exponent / 2).sum()  # the root has no slope at 0


def distance_from_grey(picture: Tensor, exponent: float) -> Tensor:
    """Sum over the pixels and channels of |x - 1/2|^exponent. Source: as of `total_variation`, section 3."""
    return (picture - 0.5).abs().pow(exponent).sum()


def blur(picture: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian cut at 3 sigma; beyond the border is the border.

    Args:
        picture: float (C, H, W).
        sigma: in pixels.

    Returns:
        float (C, H, W).
    """
    radius = math.ceil(CUT * sigma)
    steps = torch.arange(-radius, radius + 1, device=picture.device, dtype=picture.dtype)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = len(picture)
    padded = F.pad(picture[None], (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    both = F.conv2d(rows, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return both[0]
