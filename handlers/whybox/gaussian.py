"""Gaussian smoothing of many small maps at once, each with its own σ."""

from __future__ import annotations

import torch
from torch import Tensor

FEW_STEPS = 6
"""Up to this radius, adding shifted maps is faster than a product of matrices."""


def gaussian_matrices(sigmas: Tensor, length: int) -> Tensor:
    """Matrices that smooth along an axis, one for each σ.

    The kernel is cut at `smoothing_radius` and sums to one; σ = 0 is the identity. Beyond the axis' ends
    are zeros.

    Args:
        sigmas: float (N,), in cells.
        length: of the axis, in cells.

    Returns:
        float (N, length, length), symmetric.
    """
    steps = torch.arange(length, device=sigmas.device)
    return gaussian_weights(sigmas, (steps[:, None] - steps).expand(len(sigmas), -1, -1))


def gaussian_weights(sigmas: Tensor, distances: Tensor) -> Tensor:
    """Weights of the kernels that `gaussian_matrices` are made of.

    Args:
        sigmas: float (N,), in cells.
        distances: int64 (N, ...), in whole cells, of either sign.

    Returns:
        float, the distances' shape.
    """
    many = (slice(None), *[None] * (distances.ndim - 1))
    radius = smoothing_radius(sigmas)
    # The sum of the whole kernel, whether or not it fits into what it is used on.
    steps = torch.arange(int(radius.max()) + 1, device=sigmas.device)
    side = _bell(sigmas[:, None], radius[:, None], steps[None])
    total = 2 * side.sum(1) - side[:, 0]
    return _bell(sigmas[many], radius[many], distances) / total[many]


def smooth(maps: Tensor, sigmas: Tensor) -> Tensor:
    """Smooth maps with a Gaussian of their own each, zeros beyond their borders.

    Args:
        maps: float (n, T, C, h, w).
        sigmas: float (n, 2), along x and y, in cells; see `gaussian_matrices`.

    Returns:
        float (n, T, C, h, w).
    """
    return _along(_along(maps, sigmas[:, 0], 4), sigmas[:, 1], 3)


def _along(maps: Tensor, sigmas: Tensor, axis: int) -> Tensor:
    length = maps.shape[axis]
    radius = min(smoothing_margin(sigmas), length - 1)
    if radius > FEW_STEPS:
        # One large product: products of single (h, w) maps are too small to be fast.
        last = maps.transpose(axis, 4)
        smoothed = last.reshape(len(maps), -1, length) @ gaussian_matrices(sigmas, length)  # symmetric
        return smoothed.view(last.shape).transpose(axis, 4)
    steps = torch.arange(radius + 1, device=sigmas.device).expand(len(maps), -1)
    weights = gaussian_weights(sigmas, steps)[..., None, None, None, None]  # [n, steps, 1, 1, 1, 1]
    smoothed = maps * weights[:, 0]
    for step in range(1, radius + 1):
        for to, source in ((0, step), (step, 0)):
            shifted = maps.narrow(axis, source, length - step)
            smoothed.narrow(axis, to, length - step).addcmul_(shifted, weights[:, step])
    return smoothed


def smoothing_radius(sigmas: Tensor) -> Tensor:
    """Cells on each side of a kernel's centre: ⌈2σ⌉, of the shape of `sigmas`."""
    return (2 * sigmas).ceil()


def smoothing_margin(sigmas: Tensor | None) -> int:
    """Cells that the widest of some kernels reaches beyond a map; None for no smoothing."""
    return 0 if sigmas is None else int(smoothing_radius(sigmas).max())


def _bell(sigmas: Tensor, radius: Tensor, distances: Tensor) -> Tensor:
    """exp(−d²/2σ²) within the radius, else 0."""
    distance = distances.abs().to(sigmas)
    weight = torch.exp(-0.5 * (distance / sigmas.clamp(min=1e-6)) ** 2)
    return torch.where(distance <= radius, weight, 0)
