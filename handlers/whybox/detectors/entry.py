"""Heat of windows without the way back through a tower's first convolution.

The gradient by a tower's input is the transposed first convolution W of the gradient g by its output. With
the sums in another order,

    Σ_j φ(i − j) Σ_k A_k(i) Σ_o Σ_c W[c, k, o] g_c(j − o) = Σ_o Σ_c B[c, o](i) Σ_j φ(i − j) g_c(j − o),
    B[c, o](i) = Σ_k W[c, k, o] A_k(i),

B depends on the level alone: it is computed once for each cell, for all targets and all windows that share
the cell, where the transposed convolution is computed for each of them. What is left for each target is
products over c with what Φ spreads along one axis.

Letters: N windows, T targets, K and C channels before and after the convolution, k its side, s cells on the
side of g's windows, S on that of the heat's; i cells of the latter, j of the input's gradient, o the taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whybox.detectors.dense import chunks

TILE = 8
"""Cells go through a 1x1 convolution as pictures of this side: on CPUs faster than a product of matrices."""

PRODUCT_BYTES = 4 * 2**20
"""Aim for the largest factor of the products of a part of the windows, so that it stays in a CPU's cache."""

SMALL = 4
"""What a multiplication in many small products of matrices costs, one in a convolution costing 1."""


def pays(conv: nn.Conv2d, cells: int, gradients: Tensor, wide: int) -> bool:
    """Count whether `entry_heat` multiplies less than the way back through the convolution does.

    Args:
        conv: the convolution.
        cells: how many different ones the windows have.
        gradients: as `entry_heat` takes them.
        wide: S.
    """
    count, targets, side = gradients.shape[:3]
    before, after, taps = conv.in_channels, conv.out_channels, conv.kernel_size[0]
    table = cells * taps**2 * before * after
    products = count * targets * after * wide * taps * side * (side + wide * taps)
    back = count * targets * before * (taps**2 * side**2 * after + wide**2 * (side + taps - 1) ** 2)
    return table + SMALL * products < back


def entry_heat(
    conv: nn.Conv2d,
    activations: Tensor,
    numbers: Tensor,
    gradients: Tensor,
    along_y: Tensor,
    along_x: Tensor,
    limit: int,
) -> Tensor:
    """Weigh activations with gradients that are pulled through a convolution and spread.

    Args:
        conv: square, of odd side.
        activations: float (cells, K), a table of `Cells`.
        numbers: int64 (N, S, S), the windows' cells in it.
        gradients: float (N, T, s, s, C), by the convolution's output, zero outside the level.
        along_y: float (N, S, s + k - 1), φ along y from cells j to cells i, 0 for j outside the level.
        along_x: the same along x.
        limit: bytes for B.

    Returns:
        float (N, T, S, S).
    """
    count, targets, side = gradients.shape[:3]
    wide, taps = numbers.shape[1], int(conv.kernel_size[0])
    heat = gradients.new_empty((count, targets, wide, wide))
    a_cell = gradients.element_size() * taps**2 * conv.out_channels
    parts = -(-len(numbers.unique()) * a_cell // limit)
    row = a_cell * wide * max(wide, -(-targets * side // taps))
    for part in chunks(count, -(-count // parts)):
        cells, rows = numbers[part].unique(return_inverse=True)
        table = _table(conv, activations[cells])
        for few in chunks(len(rows), PRODUCT_BYTES // row):
            own = slice(part.start + few.start, part.start + few.stop)
            heat[own] = _heat(table, rows[few], gradients[own], along_y[own], along_x[own])
    return heat


def _table(conv: nn.Conv2d, activations: Tensor) -> Tensor:
    """B of U cells (U, K), or of a few more: (U, k·k·C), taps along x first, then along y, then channels."""
    spare = -len(activations) % TILE**2
    pictures = F.pad(activations, (0, 0, 0, spare)).unflatten(0, (-1, TILE, TILE)).permute(0, 3, 1, 2)
    weight = conv.weight.permute(3, 2, 0, 1).flatten(0, 2)  # [k·k·C, K]
    return F.conv2d(pictures, weight[:, :, None, None]).permute(0, 2, 3, 1).flatten(0, 2)


def _heat(table: Tensor, rows: Tensor, gradients: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
    """`entry_heat` of windows whose cells are rows (N, S, S) of a table."""
    count, targets, side = gradients.shape[:3]
    wide = rows.shape[1]
    # A tap o moves a cell of g to j, so φ from there to i is that from j to i, looked at through the tap.
    to_y, to_x = (along.unfold(2, side, 1) for along in (along_y, along_x))  # [N, S, k, s]
    taps = to_y.shape[2]
    lines = gradients.permute(0, 2, 4, 1, 3).reshape(count, side, -1)  # [N, s, C·T·s]
    lines = torch.bmm(to_y.flatten(1, 2), lines).view(count * wide, -1, targets * side)  # [N·S, k·C, T·s]
    cells = table.index_select(0, rows.flatten()).view(count * wide, wide * taps, -1)  # [N·S, S·k, k·C]
    products = torch.bmm(cells, lines).view(count, wide, wide, taps, targets, side)
    heat: Tensor = torch.einsum("nyxotj,nxoj->ntyx", products, to_x)
    return heat
