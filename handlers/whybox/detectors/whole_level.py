"""The exact gradient of dense heads with GroupNorm, whose statistics span the level: over whole levels.

One backward pass per scalar with autograd goes through every level and both towers' output convolutions. Here
only the candidate's own level and the towers that a target depends on are gone through, many gradients in a
batch, from the output's few cells on; what the statistics contribute follows from GroupNorm's own derivative,

    ∂Y/∂x = (γg − mean(γg) − x̂ · mean(γg · x̂)) / σ,        means over the group's channels and all cells.

Letters: G groups, M gradients, as in `whybox.detectors.dense` besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whybox.detectors.base import Heat, Tap, Target, Window
from whybox.detectors.dense import Tower, chunks, group_norm, seed_gradients
from whybox.detectors.taps import CHUNK_BYTES, DenseLevelTap, seeds_of


def spans_level(tower: Tower) -> bool:
    """Whether a tower's gradient reaches beyond the window of its convolutions."""
    return any(isinstance(layer, nn.GroupNorm) for layer in tower.layers)


class WholeLevelTap(DenseLevelTap):
    """The level under a dense head, GroupNorm's statistics differentiated: windows are whole levels."""

    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """See `Tap.windows`; the window is the whole level, which needs no margin."""
        del margin
        seeds = seeds_of(targets, self.outputs, self.raw)
        for level in self.places.levels.unique().tolist():
            maps = self.head.levels[level]
            inputs = [norm_inputs(tower, maps) for tower in self.head.towers]
            here = torch.where(self.places.levels == level)[0]
            for part in chunks(len(here), CHUNK_BYTES // (4 * len(targets) * maps.numel())):
                picks = here[part]
                own = {name: seed[picks] for name, seed in seeds.items()}
                yield Window(
                    picks=picks,
                    activations=maps.expand(len(picks), *maps.shape),
                    gradients=self._whole(own, picks, level, inputs),
                    origins=torch.zeros((len(picks), 2), dtype=torch.int64, device=picks.device),
                )

    def heat(self, targets: Sequence[Target], sigmas: Tensor | None = None) -> Iterator[Heat]:
        """See `Tap.heat`."""
        return Tap.heat(self, targets, sigmas)

    def _whole(
        self, seeds: dict[str, Tensor], picks: Tensor, level: int, inputs: Sequence[Sequence[NormInput]]
    ) -> Tensor:
        """Gradients of n candidates of one level: (n, T, C, H, W)."""
        count, targets = next(iter(seeds.values())).shape[:2]
        maps = self.head.levels[level]
        total = maps.new_zeros((count, targets, *maps.shape))
        for tower, factors, norms in zip(self.head.towers, self.head.factors, inputs, strict=True):
            own = {name: seeds[name] for name in tower.outputs}
            chosen = torch.where(torch.cat(list(own.values()), 2).any(2).any(0))[0]
            if not len(chosen):  # no target depends on this tower
                continue
            places = self.places[picks]
            local = seed_gradients(tower, {n: seed[:, chosen] for n, seed in own.items()}, places.anchors)
            for row in range(count):
                spot = (int(places.columns[row]), int(places.rows[row]))
                start = _paste(local[row].permute(0, 3, 1, 2), spot, maps.shape[1:])
                for part in chunks(len(chosen), max(1, CHUNK_BYTES // (4 * start[0].numel()))):
                    total[row, chosen[part]] += pull_back_level(tower, factors[level], norms, start[part])
        return total


def pull_back_level(
    tower: Tower, factors: Sequence[Tensor], inputs: Sequence[NormInput], gradient: Tensor
) -> Tensor:
    """Pull gradients back through a tower, over the whole level.

    Args:
        tower: the tower.
        factors: what `Tower.run` kept of the level, of one picture.
        inputs: of `norm_inputs`, on that level.
        gradient: float (M, C, H, W), by the last layer's output.

    Returns:
        float (M, C, H, W), by the tower's input.
    """
    position, norm = len(factors), len(inputs)
    for layer in reversed(tower.layers):
        if isinstance(layer, nn.Conv2d):
            gradient = F.conv_transpose2d(gradient, layer.weight, padding=layer.kernel_size[0] // 2)
            continue
        position -= 1
        if isinstance(layer, nn.GroupNorm):
            norm -= 1
            gradient = _through_norm(layer, inputs[norm], gradient)
        else:
            gradient = gradient * factors[position]
    return gradient


def _through_norm(norm: nn.GroupNorm, seen: NormInput, gradient: Tensor) -> Tensor:
    """GroupNorm's derivative: gradients (M, C, H, W) by its output → by its input."""
    count, channels, height, width = gradient.shape
    pulled: Tensor = torch.ops.aten.native_group_norm_backward(
        gradient.contiguous(),
        *(part.expand(count, *part.shape[1:]).contiguous() for part in (seen.x, seen.mean, seen.scale)),
        norm.weight,
        count,
        channels,
        height * width,
        norm.num_groups,
        [True, False, False],
    )[0]
    return pulled


@dataclass(frozen=True)
class NormInput:
    """What entered a GroupNorm: `x`, float (1, C, H, W), and its statistics, (1, G) each."""

    x: Tensor
    mean: Tensor
    scale: Tensor


def norm_inputs(tower: Tower, level: Tensor) -> list[NormInput]:
    """Run a tower on a level (C, H, W) again and keep what enters its GroupNorms, in order.

    They are not kept by the forward pass: they are as large as all levels, for each norm of each tower.
    """
    inputs = []
    x = level[None]
    for layer in tower.layers:
        if isinstance(layer, nn.GroupNorm):
            y, statistics = group_norm(layer, x)
            inputs.append(NormInput(x, statistics.mean, statistics.scale))
            x = y
        else:
            x = layer(x)
    return inputs


def _paste(gradients: Tensor, spot: tuple[int, int], size: Sequence[int]) -> Tensor:
    """Put gradients (M, C, k, k) around a cell (column, row) of an empty level: (M, C, H, W)."""
    radius = gradients.shape[2] // 2
    padded = F.pad(gradients.new_zeros((*gradients.shape[:2], *size)), (radius,) * 4)
    side = gradients.shape[2]
    padded[:, :, spot[1] : spot[1] + side, spot[0] : spot[0] + side] = gradients
    return padded[:, :, radius : radius + size[0], radius : radius + size[1]]
