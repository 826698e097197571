"""What attention attends to, as maps: of attention to all cells, and of attention to sampled points.

Letters: n of the queries, H heads, P points of a head, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def samples_points(module: nn.Module) -> bool:
    """Whether an attention module looks at a few sampled points instead of all cells (Deformable DETR)."""
    return hasattr(module, "sampling_offsets")


def sampled_points(
    module: Any, given: Mapping[str, Any], weights: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Say where attention to sampled points looked, and how much each point weighed.

    Args:
        module: the library's, of any of its deformable attentions.
        given: its keyword arguments.
        weights: what it returned: float (1, Q, H, L, P / L) or (1, Q, H, P).
        rows: int64 (n,), positions among the Q.

    Returns:
        Places, float (n, H, P, 2), x and y as shares of the picture; weights, float (n, H, P).
    """
    hidden = given["hidden_states"]
    if given.get("position_embeddings") is not None:
        hidden = hidden + given["position_embeddings"]
    flat = weights[0, rows].flatten(2)  # [n, H, P]
    offsets = module.sampling_offsets(hidden[0, rows]).view(*flat.shape, 2)
    reference = given["reference_points"][0, rows]  # [n, L or 1, 2 or 4]
    sizes = given["spatial_shapes_list"]
    counts = getattr(module, "num_points_list", None) or [flat.shape[2] // len(sizes)] * len(sizes)
    levels = torch.arange(len(sizes), device=rows.device).repeat_interleave(
        torch.tensor(counts, device=rows.device)
    )  # [P]
    own = reference.expand(-1, len(sizes), -1)[:, levels]  # [n, P, 2 or 4]
    if own.shape[2] == 2:
        shape = offsets.new_tensor(sizes).flip(1)[levels]
        return own[:, None] + offsets / shape, flat
    share = offsets.new_tensor(counts)[levels, None].reciprocal()
    scale = getattr(module, "offset_scale", 0.5)
    return own[:, None, :, :2] + offsets * share * own[:, None, :, 2:] * scale, flat


def spread(places: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Lay weighted points out on a raster, each bilinearly on the four cells whose centres are around it.

    Args:
        places: float (n, H, P, 2), x and y as shares of the raster's width and height; points beyond it are
            left out.
        weights: float (n, H, P).
        size: (h, w).

    Returns:
        float (n, H, h, w).
    """
    height, width = size
    inside = ((places >= 0) & (places <= 1)).all(3)
    at = places * places.new_tensor([width, height]) - 0.5
    low = at.floor()
    part = at - low
    made = weights.new_zeros((*weights.shape[:2], height * width))
    for right in (0, 1):
        for down in (0, 1):
            x = (low[..., 0] + right).clamp(0, width - 1)
            y = (low[..., 1] + down).clamp(0, height - 1)
            share = (part[..., 0] if right else 1 - part[..., 0]) * (
                part[..., 1] if down else 1 - part[..., 1]
            )
            cells = torch.where(inside, y * width + x, 0).long()
            made.scatter_add_(2, cells, torch.where(inside, weights * share, 0))
    raster: Tensor = made.unflatten(2, size)
    return raster
