"""Backbone stages under a tap of the levels, and layers of one detector that share their work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whybox.detectors.base import Grids, Heat, Tap, Taps, Target, Window
from whybox.detectors.dense import chunks
from whybox.detectors.roi_taps import RoiLevelTap
from whybox.detectors.taps import CHUNK_BYTES, DenseLevelTap, PerLevelTap
from whybox.gaussian import smoothing_margin


class Upward:
    """The way from one or several stages of the backbone up to the levels, and back.

    The head's part of the gradient comes from a tap of the levels, local and cheap; only the way from the
    levels to the stages goes over whole maps, many gradients in one vectorised backward pass for all stages.
    """

    def __init__(
        self,
        level_tap: DenseLevelTap | PerLevelTap | RoiLevelTap,
        activations: Sequence[Tensor],
        upper: Callable[[Tensor], tuple[Sequence[Tensor], Sequence[Tensor]]],
    ) -> None:
        """Take a tap of the levels, S stages' maps (C, H, W) in the network's order, and the way up.

        `upper` maps the first stage's map (1, C, H, W) to all levels and the S stages' maps, itself first.
        """
        self.level_tap = level_tap
        self.activations = activations
        self.upper = upper

    def climb(self) -> Climb:
        """Run the network from the first stage, with the graph."""
        with torch.enable_grad():
            return Climb(*self.upper(self.activations[0][None].detach().requires_grad_()))

    def follow(self, window: Window, climb: Climb, positions: Sequence[int]) -> Iterator[list[Window]]:
        """Pull the gradients of one window of the levels back to some of the stages.

        Args:
            window: of `level_tap`.
            climb: from `climb`.
            positions: of the stages.

        Yields:
            For a part of the window's candidates, a window that is the whole map, for each stage.
        """
        levels, targets = self.level_tap.candidate_levels[window.picks], window.gradients.shape[1]
        stages = [climb.stages[position] for position in positions]
        for level in levels.unique().tolist():
            here = torch.where(levels == level)[0]
            top = climb.levels[level]
            row = 4 * targets * max(top.numel(), *(4 * stage.numel() for stage in stages))
            for part in chunks(len(here), CHUNK_BYTES // row):
                rows = here[part]
                dense = _paste(window.gradients[rows].flatten(0, 1), window.origins[rows], top.shape[2:])
                pulled: Sequence[Tensor | None] = [None] * len(stages)
                if top.requires_grad:  # a level below the first stage does not depend on it
                    pulled = torch.autograd.grad(
                        top,
                        stages,
                        dense[:, None],
                        retain_graph=True,
                        is_grads_batched=True,
                        allow_unused=True,
                    )
                yield [
                    self._window(window.picks[rows], position, gradients, targets)
                    for position, gradients in zip(positions, pulled, strict=True)
                ]

    def _window(self, picks: Tensor, position: int, gradients: Tensor | None, targets: int) -> Window:
        activation = self.activations[position]
        if gradients is None:  # no way leads from this stage to that level
            gradients = activation.new_zeros(1).expand(len(picks) * targets, 1, *activation.shape)
        return Window(
            picks=picks,
            activations=activation.expand(len(picks), *activation.shape),
            gradients=gradients[:, 0].unflatten(0, (len(picks), targets)),
            origins=torch.zeros((len(picks), 2), dtype=torch.int64, device=picks.device),
        )


@dataclass(frozen=True)
class Climb:
    """Maps with the graph between them: all levels, and the stages of an `Upward`; (1, C, H, W) each."""

    levels: Sequence[Tensor]
    stages: Sequence[Tensor]


class StageTap(Tap):
    """A stage of the backbone, seen through everything above it."""

    def __init__(self, upward: Upward, position: int, grids: Grids) -> None:
        """Take the way up, which of its stages this is, and the stage's grid."""
        self.upward = upward
        self.position = position
        self.grids = grids
        self.boxes = upward.level_tap.boxes
        self.candidate_levels = upward.level_tap.candidate_levels

    def whole(self, pick: int) -> Tensor:
        """See `Tap.whole`: every candidate sees the same map."""
        del pick
        return self.upward.activations[self.position]

    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """See `Tap.windows`; the window is the whole stage, which needs no margin."""
        del margin
        climb = self.upward.climb()
        for window in self.upward.level_tap.windows(targets):
            for (made,) in self.upward.follow(window, climb, [self.position]):
                yield made


class SharedTaps(Taps):
    """Layers of one detector: region features, the level, and stages of one `Upward`.

    The head's part of the gradient is computed once and handed down from layer to layer.
    """

    def __init__(self, taps: Sequence[Tap], upward: Upward) -> None:
        """Take the layers' taps and the way up, whose tap of the levels is that of layer ``level``."""
        super().__init__(taps)
        self.upward = upward

    def heat(self, targets: Sequence[Target], sigmas: Sequence[Tensor | None]) -> Iterator[tuple[int, Heat]]:
        """See `Taps.heat`."""
        if len(self.taps) == 1:  # it may know a cheaper way than through its windows
            yield from super().heat(targets, sigmas)
            return
        for position, window in self._windows(targets, sigmas):
            yield position, window.heat(sigmas[position])

    def _windows(
        self, targets: Sequence[Target], sigmas: Sequence[Tensor | None]
    ) -> Iterator[tuple[int, Window]]:
        level = self.upward.level_tap
        positions = {tap: position for position, tap in enumerate(self.taps)}
        margin = smoothing_margin(sigmas[positions[level]]) if level in positions else 0
        stages = [tap for tap in self.taps if isinstance(tap, StageTap)]
        climb = self.upward.climb() if stages else None

        def further(window: Window) -> Iterator[tuple[int, Window]]:
            if level in positions:
                yield positions[level], window
            if climb is not None:
                for made in self.upward.follow(window, climb, [tap.position for tap in stages]):
                    yield from zip([positions[tap] for tap in stages], made, strict=True)

        if not isinstance(level, RoiLevelTap):
            for window in level.windows(targets, margin=margin):
                yield from further(window)
            return
        for region in level.roi.windows(targets):
            if level.roi in positions:
                yield positions[level.roi], region
            for window in level.follow(region, margin=margin):
                yield from further(window)


def _paste(windows: Tensor, origins: Tensor, size: Sequence[int]) -> Tensor:
    """Put windows (n·T, C, h, w) at their origins (n, 2) onto empty maps: (n·T, C, H, W)."""
    height, width = size
    count = len(origins)
    grouped = windows.unflatten(0, (count, -1))
    maps = windows.new_zeros((*grouped.shape[:3], height, width))
    h, w = windows.shape[2:]
    for row, (x, y) in enumerate(origins.tolist()):
        top, left = max(0, y), max(0, x)
        bottom, right = min(height, y + h), min(width, x + w)
        maps[row, :, :, top:bottom, left:right] = grouped[
            row, :, :, top - y : bottom - y, left - x : right - x
        ]
    return maps.flatten(0, 1)
