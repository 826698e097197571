"""What is optimised: tensors that make a picture.

Letters: H, W pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from whybox.inversion.filters import blur

OCTAVES = 6

COLOURS = ((0.5628, 0.1948, 0.0433), (0.5845, 0.0, -0.1082), (0.5845, -0.1948, 0.0649))
"""Columns: the directions in which colours of photographs scatter, by how far. Grey moves fastest, so that
what is made looks less garish.

Source: Olah, Mordvintsev and Schubert, "Feature Visualization", Distill 2017."""

_LEAST, _MOST = 1 / 255, 254 / 255  # of a pixel that a pyramid is made of; 0 and 1 lie at infinity


def start(kind: str, picture: Tensor) -> list[Tensor]:
    """Return the tensors that make a picture: inverse of `picture_of`.

    Args:
        kind: ``pixels``, or ``pyramid``: a sum of pictures of the full size, half of it and so on, their
            colours by `COLOURS`, through a sigmoid: one step changes what is large as fast as what is small.
        picture: float (3, H, W), 0 to 1.
    """
    if kind == "pixels":
        return [picture.clone()]
    height, width = picture.shape[1:]
    colours = picture.new_tensor(COLOURS)
    smaller = [picture.new_zeros(3, max(1, height >> i), max(1, width >> i)) for i in range(1, OCTAVES)]
    return [torch.einsum("ij,jhw->ihw", colours.inverse(), picture.clamp(_LEAST, _MOST).logit()), *smaller]


def picture_of(kind: str, tensors: Sequence[Tensor]) -> Tensor:
    """Make the picture: float (3, H, W), 0 to 1, differentiable by the tensors."""
    if kind == "pixels":
        return tensors[0]
    total = tensors[-1]
    for part in reversed(tensors[:-1]):
        larger = F.interpolate(total[None], part.shape[1:], mode="bilinear", align_corners=False)[0]
        total = part + larger
    return torch.einsum("ij,jhw->ihw", total.new_tensor(COLOURS), total).sigmoid()


@torch.no_grad()
def clip(kind: str, tensors: Sequence[Tensor]) -> None:
    """Bring pixels back to 0 to 1, in place."""
    if kind == "pixels":
        tensors[0].clamp_(0, 1)


@torch.no_grad()
def blur_tensors(tensors: Sequence[Tensor], sigma: float) -> None:
    """Blur the picture in place; of a pyramid, each part as far as the blur reaches in it.

    Args:
        tensors: of the picture.
        sigma: in pixels of the picture.
    """
    full = tensors[0].shape[2]
    for part in tensors:
        part.copy_(blur(part, sigma * part.shape[2] / full))
