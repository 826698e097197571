"""One map out of several: of the same cells, or of layers whose cells differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from whybox.methods.base import Map, normalise

FUSIONS = ("mean", "product", "max")


def fuse(maps: Tensor, fusion: str, *, signed: bool) -> Tensor:
    """Normalise maps and fuse them, cell by cell.

    Maps of 0 and more are min-max normalised. Signed maps are scaled by their largest magnitude, so that 0
    stays 0; their maximum is the value of the largest magnitude, and their product is 0 where signs differ.

    Args:
        maps: float (P, h, w).
        fusion: one of `FUSIONS`.
        signed: whether negative values mean "speaks against".

    Returns:
        float (h, w), within −1…1.
    """
    if not signed:
        scaled = torch.stack([normalise(values) for values in maps])
        if fusion == "product":
            return scaled.prod(0)
        return scaled.mean(0) if fusion == "mean" else scaled.amax(0)
    largest = maps.abs().amax((1, 2), keepdim=True)
    scaled = torch.where(largest > 0, maps / largest.clamp(min=torch.finfo(maps.dtype).tiny), 0)
    if fusion == "mean":
        return scaled.mean(0)
    if fusion == "max":
        return scaled.gather(0, scaled.abs().argmax(0, keepdim=True))[0]
    sign = scaled[0].sign()
    return torch.where((scaled.sign() == sign).all(0), sign * scaled.abs().prod(0), 0)


def fuse_layers(maps: Sequence[Map], fusion: str) -> Map:
    """Fuse the maps that several layers have of one detection and target.

    The raster has the smallest cells of all the maps and covers the regions of all of them; a map is 0 beyond
    its own region, and between the centres of its cells it is interpolated linearly.

    Args:
        maps: of the layers.
        fusion: one of `FUSIONS`.
    """
    regions = torch.tensor([made.region for made in maps], dtype=torch.float64)  # [L, 4]
    sizes = torch.tensor([made.values.shape for made in maps]).flip(1)  # [L, 2] columns, rows
    cell = ((regions[:, 2:] - regions[:, :2]) / sizes).amin(0)
    low, high = regions[:, :2].amin(0), regions[:, 2:].amax(0)
    columns, rows = (max(1, math.ceil(n - 1e-6)) for n in ((high - low) / cell).tolist())
    x1, y1, x2, y2 = (*low.tolist(), *high.tolist())
    region = (x1, y1, x2, y2)
    brought = torch.stack([_bring(made, region, columns, rows) for made in maps])
    return replace(maps[0], values=fuse(brought, fusion, signed=maps[0].signed), region=region)


def _bring(made: Map, region: tuple[float, float, float, float], columns: int, rows: int) -> Tensor:
    """Sample a map at the centres of a raster's cells: (rows, columns)."""
    axes, inside = [], []
    for low, high, first, last, cells in (
        (region[0], region[2], made.region[0], made.region[2], columns),
        (region[1], region[3], made.region[1], made.region[3], rows),
    ):
        centres = low + (torch.arange(cells, dtype=torch.float64) + 0.5) * (high - low) / cells
        axes.append(2 * (centres - first) / (last - first) - 1)  # −1…1 over the map's region
        inside.append((centres >= first) & (centres <= last))
    grid = torch.stack(torch.meshgrid(axes[0], axes[1], indexing="xy"), 2).to(made.values)
    sampled = F.grid_sample(made.values[None, None], grid[None], padding_mode="border", align_corners=False)
    on_map = (inside[1][:, None] & inside[0]).to(sampled.device)
    return torch.where(on_map, sampled[0, 0], 0)
