"""Which part of an image to show, so that a small object and what explains it can be seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from whybox_client import colors

if TYPE_CHECKING:
    from whybox_client.results import Box, HeatMap

# Heat is shown from this share of a map's strongest on; what is weaker may fall outside the view.
_VISIBLE = 0.25
# Less zoom than this is not worth losing sight of the whole.
_LEAST_ZOOM = 1.5


def around(box: Box, heat_maps: Iterable[HeatMap], size: tuple[int, int]) -> Box:
    """Choose a view with the image's own proportions.

    It holds three times the box, and every cell where one of the maps is hot, however far from the box.

    Args:
        box: of the detection.
        heat_maps: its maps.
        size: (W, H) of the image.

    Returns:
        [x1, y1, x2, y2] within the image; all of it where zooming in would gain little.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    grown = box[0] - width, box[1] - height, box[2] + width, box[3] + height
    wanted = np.array([grown, *filter(None, map(_hot, heat_maps))])  # [N, 4]
    x1, y1 = np.maximum(wanted[:, :2].min(0), 0)
    x2, y2 = np.minimum(wanted[:, 2:].max(0), size)
    share = float(max((x2 - x1) / size[0], (y2 - y1) / size[1]))
    if not 0 < share <= 1 / _LEAST_ZOOM:
        return 0.0, 0.0, float(size[0]), float(size[1])
    left, right = _widened(x1, x2, share * size[0], size[0])
    top, bottom = _widened(y1, y2, share * size[1], size[1])
    return left, top, right, bottom


def _hot(heat_map: HeatMap) -> Box | None:
    """Return the extent of the hot cells, in image pixels; None where there is no heat."""
    levels = np.abs(colors.normalised(heat_map.values, signed=heat_map.signed))
    rows, columns = np.nonzero(levels >= _VISIBLE)
    if not rows.size:
        return None
    x1, y1, x2, y2 = heat_map.region
    cell_width, cell_height = (x2 - x1) / heat_map.width, (y2 - y1) / heat_map.height
    return (
        x1 + columns.min() * cell_width,
        y1 + rows.min() * cell_height,
        x1 + (columns.max() + 1) * cell_width,
        y1 + (rows.max() + 1) * cell_height,
    )


def _widened(start: float, stop: float, length: float, limit: float) -> tuple[float, float]:
    """Widen an interval to a length around its middle, and keep it within [0, limit]."""
    widened = float(min(max((start + stop - length) / 2, 0), limit - length))
    return widened, widened + length
