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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whybox.detectors.cells import Cells, gather

FEW_CELLS = 3
"""Windows of up to this side are convolved faster with their channels outermost, copies included."""


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
        for module in stack.modules():
            if module not in leaves and not isinstance(module, nn.Sequential):
                raise TypeError(f"expected layers that run one after the other in a tower; got {module}")
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
            if isinstance(layer, nn.GroupNorm):
                x, statistics = group_norm(layer, x)
                if keep:
                    factors.append(_by_channel(layer, statistics.scale))
                continue
            x = layer(x)
            if keep and isinstance(layer, nn.ReLU):
                factors.append(x > 0)
            elif keep and isinstance(layer, nn.BatchNorm2d):
                factors.append(_by_channel(layer, _running_scale(layer).expand(x.shape[0], -1)))
        return {name: conv(x) for name, conv in self.outputs.items()}, factors

    @property
    def entry(self) -> nn.Conv2d | None:
        """The convolution that the tower starts with, if it does."""
        first = self.layers[0] if self.layers else None
        return first if isinstance(first, nn.Conv2d) else None

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


@dataclass(frozen=True)
class Statistics:
    """What a GroupNorm of G groups found in its input: `mean`, and `scale` = 1/σ, each float (B, G)."""

    mean: Tensor
    scale: Tensor


def group_norm(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Statistics]:
    """Run a GroupNorm on (B, C, H, W): its own output, and the statistics that it computed for it."""
    batch, channels, height, width = x.shape
    y, mean, scale = torch.native_group_norm(
        x.contiguous(),
        layer.weight,
        layer.bias,
        batch,
        channels,
        height * width,
        layer.num_groups,
        layer.eps,
    )
    return y, Statistics(mean, scale)


def _running_scale(layer: nn.BatchNorm2d) -> Tensor:
    if layer.running_var is None:
        raise TypeError(f"expected BatchNorm2d with running statistics; got {layer}")
    return (layer.running_var + layer.eps).rsqrt()


def _by_channel(layer: nn.GroupNorm | nn.BatchNorm2d, scale: Tensor) -> Tensor:
    """The factor by which a norm multiplies each channel, its statistics held constant: (B, C, 1, 1)."""
    channels = layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features
    factor = scale.repeat_interleave(channels // scale.shape[1], 1)
    return (factor if layer.weight is None else factor * layer.weight)[:, :, None, None]


@dataclass(frozen=True)
class Places:
    """Where N candidates of one picture sit: their level, column, row and anchor, each int64 (N,)."""

    levels: Tensor
    columns: Tensor
    rows: Tensor
    anchors: Tensor

    def around(self, cells: Cells, radius: int) -> Tensor:
        """Number the cells of the windows around all places: int64 (N, s, s), s = 2·radius + 1."""
        corners = torch.stack([self.columns, self.rows], 1) - radius
        return cells.windows(self.levels, corners, (2 * radius + 1, 2 * radius + 1))

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


def pull_back(
    tower: Tower,
    factors: Sequence[Tensor],
    cells: Cells,
    seeds: Mapping[str, Tensor],
    places: Places,
    stop: int = 0,
) -> Tensor:
    """Pull gradients of a tower's outputs back to the tower's input.

    Args:
        tower: the tower.
        factors: for each layer that is no convolution, a table of `cells` for a ReLU, (L, C) for a norm.
        cells: of the L levels.
        seeds: output name → float (N, T, width), gradient of T scalars of each candidate by its outputs.
        places: of the N candidates.
        stop: how many of the tower's layers, from the first on, are not gone through.

    Returns:
        float (N, T, s, s, C) with s = 2·reach + 1, centred on the candidate's cell. Cells outside the level
        are not zero, but mean nothing. With `stop`, the gradient is by the input of the layer of that number:
        s is smaller by what the layers before it reach, and after a ReLU cells outside the level are zero.
    """
    gradient = seed_gradients(tower, seeds, places.anchors)
    radius = gradient.shape[2] // 2
    position = len(factors)
    for layer in reversed(tower.layers[stop:]):
        if isinstance(layer, nn.Conv2d):
            gradient = transposed(layer, gradient)
            radius += _radius(layer)
            continue
        position -= 1
        if isinstance(layer, nn.ReLU):
            kept = gather(factors[position], places.around(cells, radius)).to(gradient.dtype)
            gradient *= kept[:, None]
        else:
            gradient *= factors[position][places.levels][:, None, None, None]
    return gradient


def transposed(conv: nn.Conv2d, gradients: Tensor) -> Tensor:
    """Apply a transposed convolution: (N, T, s, s, C) → (N, T, s + k - 1, s + k - 1, K)."""
    # A view of layout (N·T, C, s, s) whose channels are innermost in memory.
    maps = gradients.flatten(0, 1).permute(0, 3, 1, 2)
    if gradients.shape[2] <= FEW_CELLS:
        maps = maps.contiguous()
    pulled = F.conv_transpose2d(maps, conv.weight).permute(0, 2, 3, 1).contiguous()
    return pulled.view(*gradients.shape[:2], *pulled.shape[1:])


def seed_gradients(tower: Tower, seeds: Mapping[str, Tensor], anchors: Tensor) -> Tensor:
    """Gradients by the input of a tower's output convolutions.

    Args:
        tower: the tower.
        seeds: output name → float (N, T, width), gradient by the candidates' outputs.
        anchors: int64 (N,), of the candidates.

    Returns:
        float (N, T, k, k, C), centred on the candidate's cell; k is the widest output convolution's.
    """
    radius = max(_radius(conv) for conv in tower.outputs.values())
    parts = [_seed(conv, seeds[name], anchors, radius) for name, conv in tower.outputs.items()]
    return torch.stack(parts).sum(0)


def _seed(conv: nn.Conv2d, seeds: Tensor, anchors: Tensor, radius: int) -> Tensor:
    """Gradient by an output convolution's input: (N, T, k, k, C), centred on the cell."""
    width, side = seeds.shape[2], int(conv.kernel_size[0])
    gradient = seeds.new_empty((*seeds.shape[:2], side, side, conv.in_channels))
    weights = conv.weight.unflatten(0, (-1, width)).permute(0, 1, 3, 4, 2)  # [A, width, k, k, C]
    for anchor in anchors.unique().tolist():
        here = torch.where(anchors == anchor)[0]
        gradient[here] = torch.tensordot(seeds[here], weights[anchor], 1)
    spare = radius - _radius(conv)
    return F.pad(gradient, (0, 0, *(spare,) * 4)) if spare else gradient


def chunks(length: int, size: int) -> Iterator[slice]:
    """Cut a range into slices of at most `size`."""
    for start in range(0, length, max(1, size)):
        yield slice(start, min(start + max(1, size), length))
