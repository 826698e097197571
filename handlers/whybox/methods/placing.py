"""Where a layer's cells lie on the picture: cut to it, and placed; and how many of them there may be."""

from __future__ import annotations

import torch

from whybox.detectors.base import Frame, Grids, Heat
from whybox.methods.base import Map
from whybox_proto.errors import ContractError


class Room:
    """Counts the cells of the maps that a method makes, and refuses more than fit.

    Args:
        memory: bytes that the maps may take; None for no limit.
    """

    def __init__(self, memory: int | None) -> None:
        self._memory = memory
        self._cells = 0

    def take(self, cells: int) -> None:
        """Count float32 cells.

        Raises:
            ContractError: `response_too_large`.
        """
        self._cells += cells
        if self._memory is not None and 4 * self._cells > self._memory:
            raise ContractError(
                "response_too_large",
                "the heat maps are too large for the worker's memory",
                field="layer",
                expected=f"at most {self._memory // 4} cells in all maps: ask for fewer targets or "
                "detections, or for a coarser layer",
                got=f"more than {self._memory // 4} cells",
            )


def place(heat: Heat, row: int, grids: Grids, frame: Frame, *, signed: bool = False) -> list[Map]:
    """Cut the maps of one candidate to the cells that lie on the picture, and say which part that is.

    A candidate of the padding, whose window misses the picture, gets one cell of zeros in the corner next to
    it: nothing of the picture was looked at.

    Args:
        heat: of n candidates.
        row: which of the n.
        grids: of the tap that made the heat, for all its candidates.
        frame: of the picture.
        signed: what the maps say of themselves.

    Returns:
        A map for each target, float32 (h, w).
    """
    values, pick = heat.values[row], int(heat.picks[row])  # [T, h, w]
    column, line = heat.origins[row].tolist()
    columns, lines = grids.sizes[pick].tolist()
    left, top = max(0, column), max(0, line)
    right, bottom = min(columns, column + values.shape[2]), min(lines, line + values.shape[1])
    if right <= left or bottom <= top:
        values, column, line = torch.zeros_like(values[:, :1, :1]), columns - 1, lines - 1
        left, top, right, bottom = column, line, columns, lines
    corners = torch.tensor([left, top, right, bottom], dtype=torch.float32)
    cell, offset = grids.cells[pick].cpu(), grids.offsets[pick].cpu()
    region = frame.to_image(offset.repeat(2) + corners * cell.repeat(2)).tolist()
    cut = values[:, top - line : bottom - line, left - column : right - column].float()
    return [Map(one, (region[0], region[1], region[2], region[3]), signed) for one in cut]
