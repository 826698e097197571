"""Spatial shift: how far a detector moves what decides on its way from the picture to a feature map.

D-RISE with the same masks on the image and on a layer gives two maps of one detection. Where a network keeps
things in their place they have the same centre; where it gathers them, towards the middle of the object for
instance, the map made on the layer has moved, and maps of that layer mislead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from whybox.methods.base import Map

LIMIT = 0.25
"""Of a shift that matters, in units of the box. What lies in one half of a box has its centre a quarter of
the box from the middle: a map moved by more no longer tells which half it points at."""


@dataclass(frozen=True)
class Shift:
    """From the centre of the evidence in the image to that in feature space.

    Attributes:
        x, y: in widths and heights of the detection's box; positive to the right and down.
    """

    x: float
    y: float

    @property
    def distance(self) -> float:
        """Length of the shift, in units of the box."""
        return math.hypot(self.x, self.y)


def spatial_shift(in_image: Map, in_features: Map, box: tuple[float, float, float, float]) -> Shift:
    """Compare the centres of energy of two maps of a detection.

    Args:
        in_image: made by hiding pixels.
        in_features: made by hiding features.
        box: of the detection, [x1, y1, x2, y2] in the image frame.

    Raises:
        ValueError: if the box has no area.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    if not (width > 0 and height > 0):
        raise ValueError(f"expected a box with x1 < x2 and y1 < y2; got {box}")
    (x, y), (moved_x, moved_y) = centre_of_energy(in_image), centre_of_energy(in_features)
    return Shift((moved_x - x) / width, (moved_y - y) / height)


def centre_of_energy(made: Map) -> tuple[float, float]:
    """Return where a map's energy is centred, (x, y) in the image frame.

    Energy is what rises above the middle between the map's median and its largest value: D-RISE's maps have a
    level that says nothing of place, and noise around it. A constant map is centred in the middle.
    """
    values = made.values.double()
    energy = (values - (values.median() + values.max()) / 2).clamp(min=0)
    if not float(energy.sum()):
        energy = torch.ones_like(energy)
    energy = energy / energy.sum()
    x1, y1, x2, y2 = made.region
    height, width = values.shape
    x = x1 + (torch.arange(width, device=values.device) + 0.5) * (x2 - x1) / width
    y = y1 + (torch.arange(height, device=values.device) + 0.5) * (y2 - y1) / height
    return float((energy.sum(0) * x).sum()), float((energy.sum(1) * y).sum())
