"""The cells of some levels, numbered through, and what is computed of windows of them.

Letters: N windows, L levels, C channels, T targets; i and j cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """All cells of some levels in one row of numbers, level by level, row by row; one more for "outside".

    Maps are gathered by whole cells, (C,) each, which lie side by side in a table: the fastest way on a CPU.

    Attributes:
        sizes: (H, W) of each level.
    """

    sizes: Sequence[tuple[int, int]]

    def table(self, maps: Sequence[Tensor]) -> Tensor:
        """Put maps (C, H, W), one for each level, into a table (cells + 1, C) whose last row is zero."""
        rows = [level.flatten(1).T for level in maps]
        return torch.cat([*rows, rows[0].new_zeros((1, rows[0].shape[1]))])

    @property
    def outside(self) -> int:
        """The number of what lies on no level."""
        return sum(h * w for h, w in self.sizes)

    def windows(self, levels: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
        """Number the cells of N windows.

        Args:
            levels: int64 (N,).
            corners: int64 (N, 2), column and row of the first cell; may lie outside the level.
            size: (h, w) of the windows.

        Returns:
            int64 (N, h, w).
        """
        device = corners.device
        limits = torch.tensor(self.sizes, device=device)  # [L, 2]
        starts = (limits.prod(1).cumsum(0) - limits.prod(1))[levels]
        limits = limits[levels]
        rows = corners[:, 1:] + torch.arange(size[0], device=device)  # [N, h]
        columns = corners[:, :1] + torch.arange(size[1], device=device)  # [N, w]
        on_level = ((rows >= 0) & (rows < limits[:, :1]))[:, :, None] & (
            (columns >= 0) & (columns < limits[:, 1:])
        )[:, None]
        numbers = starts[:, None, None] + rows[:, :, None] * limits[:, 1, None, None] + columns[:, None]
        return torch.where(on_level, numbers, self.outside)


def gather(table: Tensor, numbers: Tensor) -> Tensor:
    """Take cells out of a table of `Cells`: (*numbers.shape, C)."""
    return table.index_select(0, numbers.flatten()).view(*numbers.shape, -1)


def smoothed_heat(gradients: Tensor, activations: Tensor, weights: Tensor) -> Tensor:
    """Weigh activations with gradients that are spread or smoothed: Σ_j φ(i, j) Σ_k g_k(j) A_k(i).

    This is Σ_k Φ(g_k)(i) A_k(i), but Φ is applied after the sum over the channels, to far fewer numbers.

    Args:
        gradients: float (N, T, r, s, C), at cells j.
        activations: float (N, R, S, C), at cells i.
        weights: float (N, R·S, r·s), φ.

    Returns:
        float (N, T, R, S).
    """
    sources = gradients.flatten(1, 3).transpose(1, 2)  # [N, C, T·J]
    products = torch.bmm(activations.flatten(1, 2), sources).unflatten(2, (gradients.shape[1], -1))
    values = (products @ weights[..., None])[..., 0]  # [N, I, T]
    heat: Tensor = values.transpose(1, 2).unflatten(2, activations.shape[1:3])
    return heat


def outer(along_y: Tensor, along_x: Tensor) -> Tensor:
    """Weights (N, R, r) along y and (N, S, s) along x → (N, R·S, r·s) of both."""
    both = along_y[:, :, None, :, None] * along_x[:, None, :, None, :]  # [N, R, S, r, s]
    return both.flatten(3, 4).flatten(1, 2)
