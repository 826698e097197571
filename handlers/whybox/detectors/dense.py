"""Dense heads of one-stage detectors: run them once, then pull gradients back through windows.

A dense head is a few towers, each a stack of convolutions with ReLU (and perhaps a norm) between, ending
in one or more output convolutions. What a candidate answers depends on a small window of its level, and
once the towers have run the way back is linear: multiply by the ReLU's mask and the norm's scale, apply the
transposed convolution, repeat. So the gradient of many outputs of many candidates, of all levels, is
one batch of small transposed convolutions, with no second forward pass.

GroupNorm's statistics span the whole level, which would make the gradient non-local; here they are held at
their true values (METHODS, "Cost"). Without GroupNorm the gradient is the exact one.

Letters: A anchors of a cell, s cells on a window's side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Tower:
    """One tower of a dense head.

    Attributes:
        layers: its Conv2d (stride 1), GroupNorm or BatchNorm2d, and ReLU modules in order.
        outputs: name → output convolution; its channels are grouped by anchor, A groups of equal width.
    """

    layers: tuple[nn.Module, ...]
    outputs: dict[str, nn.Conv2d]

    @classmethod
    def of(cls, stack: nn.Module, **outputs: nn.Conv2d) -> Tower:
        """Take a tower out of a module, flattening nested Sequentials.

        Raises:
            TypeError: for a layer whose way back is not known here, or convolutions with no ReLU between them
                (the ReLU's mask is what stops gradients outside the level).
        """
        leaves = tuple(m for m in stack.modules() if not next(m.children(), None))
        for leaf in leaves:
            if not isinstance(leaf, nn.Conv2d | nn.GroupNorm | nn.BatchNorm2d | nn.ReLU):
                raise TypeError(f"expected Conv2d, GroupNorm, BatchNorm2d or ReLU in a tower; got {leaf}")
        for conv in [*leaves, *outputs.values()]:
            if isinstance(conv, nn.Conv2d) and not _same_size(conv):
                raise TypeError(
                    f"expected plain convolutions that keep the level's size in a tower; got {conv}"
                )
        after = [type(m) for m in leaves if isinstance(m, nn.Conv2d | nn.ReLU)]
        if after[0::2] != [nn.Conv2d] * (len(after) // 2) or after[1::2] != [nn.ReLU] * (len(after) // 2):
            raise TypeError(f"expected a ReLU after each convolution of a tower; got {stack}")
        return cls(leaves, outputs)

    def run(self, level: Tensor, *, keep: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Run the tower on a level.

        Args:
            level: float (B, C, H, W).
            keep: also return what the way back needs.

        Returns:
            Outputs by name, float (B, A·width, H, W), and for each layer that is not a convolution the
            factor of the way back: bool (B, C, H, W) for a ReLU, float (B, C, 1, 1) for a norm.
        """
        factors = []
        x = level
        for layer in self.layers:
            y = layer(x)
            if keep and isinstance(layer, nn.ReLU):
                factors.append(y > 0)
            elif keep and not isinstance(layer, nn.Conv2d):
                factors.append(_norm_scale(layer, x))
            x = y
        return {name: conv(x) for name, conv in self.outputs.items()}, factors

    @property
    def reach(self) -> int:
        """Cells from a window's centre to its border."""
        convolutions = [m for m in self.layers if isinstance(m, nn.Conv2d)]
        widest = max(_radius(conv) for conv in self.outputs.values())
        return widest + sum(map(_radius, convolutions))


def _same_size(conv: nn.Conv2d) -> bool:
    """Whether a convolution is square, odd, of stride 1, undilated, ungrouped and padded by its radius."""
    side = conv.kernel_size[0]
    return (conv.kernel_size, conv.stride, conv.dilation, conv.groups, conv.padding) == (
        (side, side),
        (1, 1),
        (1, 1),
        1,
        (side // 2, side // 2),
    ) and side % 2 == 1


def _radius(conv: nn.Conv2d) -> int:
    return int(conv.kernel_size[0]) // 2


def _norm_scale(layer: nn.Module, x: Tensor) -> Tensor:
    """The factor by which a norm multiplies each channel of its input, its statistics held constant."""
    if isinstance(layer, nn.GroupNorm):
        variance = x.unflatten(1, (layer.num_groups, -1)).var((2, 3, 4), correction=0)  # [B, G]
        scale = (variance + layer.eps).rsqrt().repeat_interleave(x.shape[1] // layer.num_groups, 1)
    elif isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
        scale = (layer.running_var + layer.eps).rsqrt().expand(x.shape[0], -1)
    else:
        raise TypeError(f"expected GroupNorm, or BatchNorm2d with running statistics; got {layer}")
    if layer.weight is not None:
        scale = scale * layer.weight
    factor: Tensor = scale[:, :, None, None]
    return factor


@dataclass(frozen=True)
class Places:
    """Where N candidates of one picture sit: their level, column, row and anchor, each int64 (N,)."""

    levels: Tensor
    columns: Tensor
    rows: Tensor
    anchors: Tensor

    def __getitem__(self, keep: Tensor) -> Places:
        return Places(self.levels[keep], self.columns[keep], self.rows[keep], self.anchors[keep])


def locate(candidates: Tensor, sizes: Sequence[tuple[int, int]], anchors: int) -> Places:
    """Find level, cell and anchor of candidates numbered level by level, row by row, anchors innermost.

    Args:
        candidates: int64 (N,).
        sizes: (H, W) of each level.
        anchors: A, of each cell.
    """
    ends = torch.tensor([h * w * anchors for h, w in sizes], device=candidates.device).cumsum(0)
    levels = torch.searchsorted(ends, candidates, right=True)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    inside = candidates - starts[levels]
    widths = torch.tensor([w for _, w in sizes], device=candidates.device)[levels]
    cell = inside // anchors
    return Places(levels, cell % widths, cell // widths, inside % anchors)


def gather_windows(maps: Sequence[Tensor], places: Places, radius: int) -> Tensor:
    """Cut a window around each place out of its level's map, zero outside the map.

    Args:
        maps: for each level, (C, H, W).
        places: N of them.
        radius: windows have 2·radius + 1 cells on a side.

    Returns:
        (N, C, 2·radius + 1, 2·radius + 1), of the maps' dtype.
    """
    side = 2 * radius + 1
    steps = torch.arange(side, device=places.rows.device)
    windows = maps[0].new_zeros((len(places.rows), maps[0].shape[0], side, side))
    for level in places.levels.unique().tolist():
        here = torch.where(places.levels == level)[0]
        padded = F.pad(maps[level], (radius,) * 4)  # [C, H + 2r, W + 2r]
        rows = (places.rows[here, None] + steps)[:, :, None]
        columns = (places.columns[here, None] + steps)[:, None, :]
        windows[here] = padded[:, rows, columns].transpose(0, 1)
    return windows


def inside(sizes: Sequence[tuple[int, int]], places: Places, radius: int) -> Tensor:
    """Say which cells of the windows lie on their level: bool (N, 1, s, s), s = 2·radius + 1."""
    steps = torch.arange(-radius, radius + 1, device=places.rows.device)
    limits = torch.tensor(sizes, device=places.rows.device)[places.levels]  # [N, 2]
    rows, columns = places.rows[:, None] + steps, places.columns[:, None] + steps
    on_rows = (rows >= 0) & (rows < limits[:, :1])
    on_columns = (columns >= 0) & (columns < limits[:, 1:])
    return (on_rows[:, :, None] & on_columns[:, None, :])[:, None]


def pull_back(
    tower: Tower,
    factors: Sequence[Sequence[Tensor]],
    sizes: Sequence[tuple[int, int]],
    seeds: dict[str, Tensor],
    places: Places,
) -> Tensor:
    """Pull gradients of a tower's outputs back to the tower's input.

    Args:
        tower: the tower.
        factors: for each level, what `Tower.run` kept, of one picture: (C, H, W) or (C, 1, 1) each.
        sizes: (H, W) of each level.
        seeds: output name → float (N, T, width), gradient of T scalars of each candidate by its outputs.
        places: of the N candidates.

    Returns:
        float (N, T, C, s, s) with s = 2·reach + 1, centred on the candidate's cell. Cells outside the level
        are zero.
    """
    radius = max(_radius(conv) for conv in tower.outputs.values())
    gradient = torch.stack(
        [_seed(conv, seeds[name], places.anchors, radius) for name, conv in tower.outputs.items()]
    ).sum(0)  # [N, T, C, k, k]
    position = len(factors[0])
    for layer in reversed(tower.layers):
        if isinstance(layer, nn.Conv2d):
            pulled = F.conv_transpose2d(gradient.flatten(0, 1), layer.weight)
            gradient = pulled.unflatten(0, gradient.shape[:2])
            radius += _radius(layer)
            continue
        position -= 1
        kept = [level[position] for level in factors]
        if isinstance(layer, nn.ReLU):
            gradient *= gather_windows(kept, places, radius)[:, None]
        else:
            gradient *= torch.stack(kept)[places.levels][:, None]
    gradient *= inside(sizes, places, radius)[:, None]
    return gradient


def _seed(conv: nn.Conv2d, seeds: Tensor, anchors: Tensor, radius: int) -> Tensor:
    """Gradient by an output convolution's input: (N, T, C, k, k), centred on the cell."""
    width = seeds.shape[2]
    gradient = seeds.new_zeros((*seeds.shape[:2], conv.in_channels, *conv.kernel_size))
    for anchor in anchors.unique().tolist():
        here = torch.where(anchors == anchor)[0]
        weight = conv.weight[anchor * width : (anchor + 1) * width].flatten(1)  # [width, C·k·k]
        gradient[here] = (seeds[here] @ weight).unflatten(2, gradient.shape[2:])
    return F.pad(gradient, (radius - _radius(conv),) * 4)


def chunks(length: int, size: int) -> Iterator[slice]:
    """Cut a range into slices of at most `size`."""
    for start in range(0, length, max(1, size)):
        yield slice(start, min(start + max(1, size), length))
