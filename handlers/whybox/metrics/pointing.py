"""Where a map points and where its energy lies, against a truth that is known.

A map is float (H, W) in the image frame, not negative (see `energies`); its energy is the sum of its values.
A map without energy points nowhere, and every share of it is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]


def box_mask(box: Box, height: int, width: int) -> Mask:
    """Pixels whose centre lies in a box [x1, y1, x2, y2]: bool (H, W)."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    columns: Mask = (x >= box[0]) & (x < box[2])
    rows: Mask = (y >= box[1]) & (y < box[3])
    return rows[:, None] & columns[None, :]


def energies(values: Values, signed: bool) -> Values:
    """Make a map comparable with others: not negative, and nothing where it says least.

    Args:
        values: the map as it was made.
        signed: negative values mean "speaks against"; they have no energy. Of other maps the smallest value
            is taken off, so that a map that is high everywhere (D-RISE's) says no more than its differences.
    """
    low = np.float32(0) if signed else values.min()
    return np.maximum(values - low, np.float32(0))


def pointing_game(values: Values, mask: Mask) -> float:
    """Whether the map's maximum lies inside a mask: 1 or 0; equal maxima share the hit.

    Source: Zhang et al., "Top-down neural attention by excitation backprop", IJCV 2018.
    """
    top = values == values.max()
    return float(mask[top].mean()) if values.any() else 0.0


def energy_share(values: Values, mask: Mask) -> float:
    """Share of the map's energy inside a mask, 0 to 1: the energy-based pointing game.

    Source: Wang et al., "Score-CAM", CVPR workshops 2020, section 4.2.
    """
    total = float(values.sum())
    return float(values[mask].sum()) / total if total > 0 else 0.0


def evidence_ratio(values: Values, evidence: Mask, box: Box) -> float:
    """Share of the energy inside the evidence, over the evidence's share of the box's area.

    1 is no better than spreading the map evenly over the box; 0 is pointing elsewhere altogether.

    Args:
        values: the map.
        evidence: pixels that decide the class, bool (H, W), inside the box.
        box: of the object.

    Raises:
        ValueError: if no evidence lies in the box.
    """
    inside = box_mask(box, *values.shape)
    area = float((evidence & inside).sum()) / max(1.0, float(inside.sum()))
    if area == 0:
        raise ValueError("expected evidence inside the box; got none")
    return energy_share(values, evidence) / area


def own_half_share(values: Values, side: str, box: Box) -> float:
    """Share of the in-box energy that lies in a side's own half of the box, 0 to 1.

    Args:
        values: the map.
        side: ``x1`` (left), ``y1`` (top), ``x2`` (right) or ``y2`` (bottom).
        box: of the object.
    """
    height, width = values.shape
    x1, y1, x2, y2 = box
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    halves = {
        "x1": (x1, y1, centre_x, y2),
        "y1": (x1, y1, x2, centre_y),
        "x2": (centre_x, y1, x2, y2),
        "y2": (x1, centre_y, x2, y2),
    }
    if side not in halves:
        raise ValueError(f"side is one of {', '.join(halves)}; got {side!r}")
    whole = np.where(box_mask(box, height, width), values, np.float32(0))
    return energy_share(whole, box_mask(halves[side], height, width))
