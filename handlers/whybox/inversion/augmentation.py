"""Random augmentation of the picture before the detector looks: what survives it is no accident.

Letters: H, W pixels of the picture, L objects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from whybox.inversion.settings import Settings
from whybox.methods.sampling import generator


@dataclass(frozen=True)
class View:
    """A picture as the detector shall see it, and where its layout lies in it.

    Attributes:
        picture: float (3, h, w).
        boxes: float (L, 4), in its pixels, clipped to it.
        visible: float (L,), the share of each object's box that lies in it.
    """

    picture: Tensor
    boxes: Tensor
    visible: Tensor

    @classmethod
    def of(cls, picture: Tensor, boxes: Tensor) -> View:
        """The picture as it is, all of its layout inside."""
        return cls(picture, boxes, torch.ones(len(boxes), device=boxes.device))


def augment(view: View, settings: Settings, seed: int, iteration: int) -> View:
    """Move, scale, recolour and roughen; what the settings leave out is not done.

    The same seed and iteration give the same view. What is moved in at a border repeats the border.
    """
    # A move stays for `jitter_every` iterations; all else is drawn for each.
    moved = torch.rand(2, generator=generator(seed, iteration // settings.jitter_every * 2))
    random = generator(seed, iteration * 2 + 1)
    size, colours = (torch.rand(n, generator=random) * 2 - 1 for n in (1, 5))
    if settings.jitter:
        view = _move(view, settings.jitter, moved * 2 - 1)
    if settings.scale:
        view = _scale(view, 1 - settings.scale * float(size.abs()))
    picture = view.picture
    if settings.contrast:
        by = (settings.contrast * colours).to(picture)
        picture = (picture - 0.5) * (1 + by[0]) + 0.5 + 0.5 * by[1] + 0.3 * by[2:, None, None]
    if settings.noise:
        rough = torch.randn(picture.shape, generator=random).to(picture)
        picture = picture + settings.noise * rough
    return replace(view, picture=picture)


def _move(view: View, most: int, by: Tensor) -> View:
    """Move by up to `most` pixels, in x and y; what lies outside then is cut off."""
    across, down = (by * most).round().int().tolist()
    height, width = view.picture.shape[1:]
    rows, columns = slice(most + down, most + down + height), slice(most + across, most + across + width)
    picture = F.pad(view.picture[None], (most,) * 4, mode="replicate")[0, :, rows, columns]
    boxes = view.boxes - view.boxes.new_tensor([across, down, across, down])
    clipped = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
    return View(picture, clipped, _areas(clipped) / _areas(boxes))


def _scale(view: View, factor: float) -> View:
    """Scale down, which never makes the network's work more; by so little that hardly anything is aliased."""
    height, width = view.picture.shape[1:]
    size = max(1, round(height * factor)), max(1, round(width * factor))
    picture = F.interpolate(view.picture[None], size, mode="bilinear", align_corners=False)[0]
    by = view.boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    return replace(view, picture=picture, boxes=view.boxes * by)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
