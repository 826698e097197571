"""Maps of a whole layer, placed on the picture or cut to a box."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from whybox.detectors.base import Attention, Frame, Heat, Tap
from whybox.methods.base import Map
from whybox.methods.placing import place


def place_whole(values: Tensor, pick: int, tap: Tap | Attention, frame: Frame) -> list[Map]:
    """Place T maps of the whole layer, float (T, H, W), of one candidate of a tap; see `place`."""
    heat = Heat(torch.tensor([pick]), values[None], torch.zeros((1, 2), dtype=torch.int64))
    return place(heat, 0, tap.grids, frame)


def cut_to_box(made: Map, box: Tensor) -> Map:
    """Cut a map to the cells whose centres lie in a box, at least to the one nearest to its centre.

    Args:
        made: float (h, w).
        box: float (4,), image frame.
    """
    x1, y1, x2, y2 = made.region
    rows, columns = made.values.shape
    left, top, right, bottom = box.tolist()
    first_column, last_column = _inside(x1, (x2 - x1) / columns, columns, left, right)
    first_row, last_row = _inside(y1, (y2 - y1) / rows, rows, top, bottom)
    width, height = (x2 - x1) / columns, (y2 - y1) / rows
    region = (
        x1 + first_column * width,
        y1 + first_row * height,
        x1 + last_column * width,
        y1 + last_row * height,
    )
    return replace(made, values=made.values[first_row:last_row, first_column:last_column], region=region)


def _inside(start: float, cell: float, count: int, low: float, high: float) -> tuple[int, int]:
    """Return the range of the cells along one axis whose centres lie in low … high."""
    inside = [i for i in range(count) if low <= start + (i + 0.5) * cell <= high]
    if not inside:
        nearest = min(range(count), key=lambda i: abs(start + (i + 0.5) * cell - (low + high) / 2))
        return nearest, nearest + 1
    return inside[0], inside[-1] + 1
