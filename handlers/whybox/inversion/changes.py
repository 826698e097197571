"""Random changes of the picture before the detector looks, its layout with it: what survives is no accident.

Letters: H, W pixels of the picture, L objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from whybox.inversion.settings import Settings
from whybox.methods.sampling import generator


@dataclass(frozen=True)
class Seen:
    """A picture as the detector shall see it, and its layout.

    Attributes:
        picture: float (3, h, w).
        boxes: float (L, 4), in its pixels.
        masks: float (L, h, w), or None where the layout has none.
    """

    picture: Tensor
    boxes: Tensor
    masks: Tensor | None


def change(seen: Seen, settings: Settings, seed: int, iteration: int) -> Seen:
    """Move, scale, recolour and roughen; what the settings leave out is not done.

    The same seed and iteration give the same change. What is moved in at a border repeats the border.
    """
    # A move stays for `jitter_every` iterations; all else is drawn for each.
    moved = torch.rand(2, generator=generator(seed, iteration // settings.jitter_every * 2))
    random = generator(seed, iteration * 2 + 1)
    size, colours = (torch.rand(n, generator=random) * 2 - 1 for n in (1, 5))
    if settings.jitter:
        seen = _move(seen, settings.jitter, moved * 2 - 1)
    if settings.scale:
        seen = _scale(seen, 1 + settings.scale * float(size))
    picture = seen.picture
    if settings.contrast:
        by = (settings.contrast * colours).to(picture)
        picture = (picture - 0.5) * (1 + by[0]) + 0.5 + 0.5 * by[1] + 0.3 * by[2:, None, None]
    if settings.noise:
        rough = torch.randn(picture.shape, generator=random).to(picture)
        picture = picture + settings.noise * rough
    return Seen(picture, seen.boxes, seen.masks)


def _move(seen: Seen, most: int, by: Tensor) -> Seen:
    """Move by up to `most` pixels, in x and y; what lies outside then is cut off."""
    across, down = (by * most).round().int().tolist()
    height, width = seen.picture.shape[1:]
    rows, columns = slice(most + down, most + down + height), slice(most + across, most + across + width)
    picture = F.pad(seen.picture[None], (most,) * 4, mode="replicate")[0, :, rows, columns]
    boxes = seen.boxes - seen.boxes.new_tensor([across, down, across, down])
    masks = seen.masks if seen.masks is None else F.pad(seen.masks, (most,) * 4)[:, rows, columns]
    return Seen(picture, _clipped(boxes, height, width), masks)


def _scale(seen: Seen, factor: float) -> Seen:
    height, width = seen.picture.shape[1:]
    size = max(1, round(height * factor)), max(1, round(width * factor))
    picture, masks = (
        part
        if part is None
        else F.interpolate(part[None], size, mode="bilinear", align_corners=False, antialias=factor < 1)[0]
        for part in (seen.picture, seen.masks)
    )
    assert picture is not None
    by = seen.boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    return Seen(picture, seen.boxes * by, masks)


def _clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Keep boxes inside the picture; one that has left it lies as a pixel at the border."""
    limits = boxes.new_tensor([width, height])
    low = boxes[:, :2].clamp(min=0).minimum(limits - 1)
    return torch.cat([low, boxes[:, 2:].minimum(limits).maximum(low + 1)], 1)
