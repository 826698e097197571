"""Taps that the families share: levels under dense heads, region features, levels under regions, stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from whybox.detectors.base import Frame, Grids, Heat, Outputs, Tap, Target, Window
from whybox.detectors.cells import Cells, gather, outer, smoothed_heat
from whybox.detectors.dense import Places, Tower, chunks, pull_back, transposed
from whybox.detectors.entry import entry_heat, pays
from whybox.gaussian import gaussian_weights, smoothing_radius

CHUNK_BYTES = 16 * 2**20
"""Aim for the largest tensor of a chunk of gradients. About four of its size are alive at once."""


def level_grids(
    frame: Frame, padded: tuple[int, int], sizes: Sequence[tuple[int, int]], levels: Tensor
) -> Grids:
    """Grids of whole feature maps.

    A strided convolution with symmetric padding centres its cell i on pixel i·stride of what it sees, so
    cell i of a map is centred on i·cell + ½, not on (i + ½)·cell.

    Args:
        frame: of the picture.
        padded: (H, W) of the network's input, padding included.
        sizes: (H, W) of each map.
        levels: int64 (N,), which map each candidate belongs to.
    """
    shapes = torch.tensor(sizes, dtype=torch.float32, device=levels.device)[levels]  # [N, 2] rows, columns
    cells = torch.tensor(padded, dtype=torch.float32, device=levels.device) / shapes
    return _grids(frame, cells, shapes)


def strided_grids(
    frame: Frame, strides: Sequence[int], sizes: Sequence[tuple[int, int]], levels: Tensor
) -> Grids:
    """Grids of whole feature maps whose strides are known, whatever the padding; see `level_grids`.

    Args:
        frame: of the picture.
        strides: network pixels per cell of each map.
        sizes: (H, W) of each map.
        levels: int64 (N,), which map each candidate belongs to.
    """
    shapes = torch.tensor(sizes, dtype=torch.float32, device=levels.device)[levels]
    cells = torch.tensor(strides, dtype=torch.float32, device=levels.device)[levels, None].expand(-1, 2)
    return _grids(frame, cells, shapes)


def _grids(frame: Frame, cells: Tensor, shapes: Tensor) -> Grids:
    """Grids of maps with cells and shapes (N, 2), rows and columns."""
    picture = torch.tensor([frame.network_height, frame.network_width], device=cells.device)
    covered = torch.minimum((picture / cells).ceil(), shapes).long()
    return Grids(offsets=(1 - cells.flip(1)) / 2, cells=cells.flip(1), sizes=covered.flip(1))


def seeds_of(
    targets: Sequence[Target], outputs: Callable[[Mapping[str, Tensor]], Outputs], raw: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradient of every target with respect to the candidates' raw outputs.

    Args:
        targets: T scalars of each candidate.
        outputs: raw outputs → decoded ones.
        raw: name → float (N, width).

    Returns:
        name → float (N, T, width).
    """
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in raw.items()}
        decoded = outputs(leaves)
        rows = [
            torch.autograd.grad(
                target(decoded).sum(), list(leaves.values()), retain_graph=True, materialize_grads=True
            )
            for target in targets
        ]
    return {name: torch.stack([row[i] for row in rows], 1) for i, name in enumerate(leaves)}


@dataclass
class DenseHead:
    """A dense head after its forward pass over one picture.

    Attributes:
        towers: its towers.
        factors: for each tower, for each level, what `Tower.run` kept.
        levels: for each level, float (C, H, W), the towers' input.
    """

    towers: Sequence[Tower]
    factors: Sequence[Sequence[Sequence[Tensor]]]
    levels: Sequence[Tensor]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each level."""
        return [(level.shape[1], level.shape[2]) for level in self.levels]


class DenseLevelTap(Tap):
    """The level under a dense head: the window that decides a candidate, the exact gradient in it."""

    def __init__(
        self,
        head: DenseHead,
        places: Places,
        raw: Mapping[str, Tensor],
        outputs: Callable[[Mapping[str, Tensor]], Outputs],
        grids: Grids,
        boxes: Tensor,
    ) -> None:
        """Take a head that ran, N candidates' places, raw outputs (name → (N, width)) and their decoding."""
        self.head = head
        self.places = places
        self.candidate_levels = places.levels
        self.raw = raw
        self.outputs = outputs
        self.grids = grids
        self.boxes = boxes

    def whole(self, pick: int) -> Tensor:
        """See `Tap.whole`."""
        return self.head.levels[int(self.places.levels[pick])]

    @cached_property
    def _cells(self) -> Cells:
        return Cells(self.head.sizes)

    @cached_property
    def _activations(self) -> Tensor:
        return self._cells.table(self.head.levels)

    @cached_property
    def _factors(self) -> list[list[Tensor]]:
        """What `pull_back` takes, for each tower."""
        return [
            [
                self._cells.table(kept) if kept[0].dtype == torch.bool else torch.stack(kept)[:, :, 0, 0]
                for kept in zip(*levels, strict=True)
            ]
            for levels in self.head.factors
        ]

    @property
    def _reach(self) -> int:
        return max(tower.reach for tower in self.head.towers)

    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """See `Tap.windows`; the window's side is 2·(reach + margin) + 1 cells."""
        margins = torch.full_like(self.places.rows, min(margin, self._widest))
        for picks, radius, own in self._parts(targets, margins):
            places = self.places[picks]
            spare = radius - self._reach
            gradients = F.pad(self._gradients(own, places), (0, 0, *(spare,) * 4))
            activations = gather(self._activations, places.around(self._cells, radius))
            yield Window(
                picks=picks,
                activations=activations.permute(0, 3, 1, 2),
                gradients=gradients.permute(0, 1, 4, 2, 3),
                origins=torch.stack([places.columns, places.rows], 1) - radius,
            )

    def heat(self, targets: Sequence[Target], sigmas: Tensor | None = None) -> Iterator[Heat]:
        """See `Tap.heat`; Φ is applied by `entry_heat` or `smoothed_heat`, whichever multiplies less."""
        margins = torch.zeros_like(self.places.rows)
        if sigmas is not None:
            margins = smoothing_radius(sigmas).amax(1).long().clamp(max=self._widest)
        else:
            sigmas = self.boxes.new_zeros((len(margins), 2))  # Φ is the identity
        for picks, radius, own in self._parts(targets, margins):
            places, side = self.places[picks], 2 * radius + 1
            numbers = places.around(self._cells, radius)
            values = self._activations.new_zeros((len(picks), len(targets), side, side))
            for tower, factors, chosen, seeds in self._shares(own):
                weights = self._weights(sigmas[picks], places, radius, tower.reach)
                values[:, chosen] += self._tower_heat(tower, factors, seeds, places, numbers, weights)
            yield Heat(picks, values, torch.stack([places.columns, places.rows], 1) - radius)

    def _tower_heat(
        self,
        tower: Tower,
        factors: Sequence[Tensor],
        seeds: Mapping[str, Tensor],
        places: Places,
        numbers: Tensor,
        weights: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Heat (n, T', s, s) of n candidates on their windows' cells, int64 (n, s, s), by one tower."""
        entry = tower.entry
        if entry is None:
            gradients = pull_back(tower, factors, self._cells, seeds, places)
        else:
            gradients = pull_back(tower, factors, self._cells, seeds, places, 1)
            if pays(entry, len(numbers.unique()), gradients, numbers.shape[1]):
                return entry_heat(entry, self._activations, numbers, gradients, *weights, 2 * CHUNK_BYTES)
            gradients = transposed(entry, gradients)
        return smoothed_heat(gradients, gather(self._activations, numbers), outer(*weights))

    @property
    def _widest(self) -> int:
        return max(map(max, self.head.sizes))

    def _parts(
        self, targets: Sequence[Target], margins: Tensor
    ) -> Iterator[tuple[Tensor, int, dict[str, Tensor]]]:
        """Cut the candidates into parts of one margin: their picks, the windows' radius, their seeds.

        Candidates that are near each other come together, since their windows share cells.
        """
        order = self.places.around(self._cells, 0).flatten().argsort(stable=True)
        seeds = seeds_of(targets, self.outputs, self.raw)
        channels, cells = self.head.levels[0].shape[0], (2 * self._reach + 1) ** 2
        for margin in margins.unique().tolist():
            here, radius = order[margins[order] == margin], self._reach + margin
            row = 4 * len(targets) * cells * max(channels, (2 * radius + 1) ** 2)
            for part in chunks(len(here), CHUNK_BYTES // row):
                yield here[part], radius, {name: seed[here[part]] for name, seed in seeds.items()}

    def _shares(
        self, seeds: Mapping[str, Tensor]
    ) -> Iterator[tuple[Tower, list[Tensor], Tensor, dict[str, Tensor]]]:
        """Yield each tower with its factors, which targets it has a part in, and its seeds (n, T', width)."""
        for tower, factors in zip(self.head.towers, self._factors, strict=True):
            own = {name: seeds[name] for name in tower.outputs}
            chosen = torch.where(torch.cat(list(own.values()), 2).any(2).any(0))[0]
            if len(chosen):
                yield tower, factors, chosen, {name: seed[:, chosen] for name, seed in own.items()}

    def _gradients(self, seeds: dict[str, Tensor], places: Places) -> Tensor:
        """Gradients of n candidates: (n, T, s, s, C) with s = 2·reach + 1, zero outside the level."""
        count, targets = next(iter(seeds.values())).shape[:2]
        level, side = self.head.levels[0], 2 * self._reach + 1
        total = level.new_zeros((count, targets, side, side, level.shape[0]))
        for tower, factors, chosen, own in self._shares(seeds):
            pulled = pull_back(tower, factors, self._cells, own, places)
            spare = (side - pulled.shape[2]) // 2
            total[:, chosen, spare : side - spare, spare : side - spare] += pulled
        on_level = places.around(self._cells, self._reach) != self._cells.outside
        total *= on_level[:, None, :, :, None]
        return total

    def _weights(self, sigmas: Tensor, places: Places, wide: int, narrow: int) -> tuple[Tensor, Tensor]:
        """Weights φ of Φ from the cells j of a window of one radius to the cells i of another.

        0 for j outside the level: (n, 2·wide + 1, 2·narrow + 1) along y and along x.
        """
        to, source = (torch.arange(-r, r + 1, device=sigmas.device) for r in (wide, narrow))
        distances = (to[:, None] - source).expand(len(sigmas), -1, -1)
        limits = torch.tensor(self.head.sizes, device=sigmas.device)[places.levels]
        y, x = (
            gaussian_weights(sigmas[:, 1 - axis].contiguous(), distances)
            * ((cells >= 0) & (cells < limits[:, axis, None]))[:, None]
            for axis, cells in enumerate((places.rows[:, None] + source, places.columns[:, None] + source))
        )
        return y, x


class PerLevelTap(Tap):
    """Levels that have heads of their own, so that each is tapped by itself."""

    def __init__(
        self,
        tap: Callable[[int, Tensor], DenseLevelTap],
        levels: Tensor,
        grids: Grids,
        boxes: Tensor,
    ) -> None:
        """Take what taps a level for some of N candidates (int64 (n,)), and the level of each, int64 (N,)."""
        self.candidate_levels = levels
        self.grids = grids
        self.boxes = boxes
        self._parts: list[tuple[Tensor, DenseLevelTap]] = [
            (here, tap(level, here))
            for level in levels.unique().tolist()
            for here in [torch.where(levels == level)[0]]
        ]

    def whole(self, pick: int) -> Tensor:
        """See `Tap.whole`."""
        here, tap = next((here, tap) for here, tap in self._parts if bool((here == pick).any()))
        return tap.whole(int(torch.where(here == pick)[0]))

    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """See `Tap.windows`."""
        for here, tap in self._parts:
            for window in tap.windows(targets, margin=margin):
                yield replace(window, picks=here[window.picks])

    def heat(self, targets: Sequence[Target], sigmas: Tensor | None = None) -> Iterator[Heat]:
        """See `Tap.heat`."""
        for here, tap in self._parts:
            for heat in tap.heat(targets, None if sigmas is None else sigmas[here]):
                yield replace(heat, picks=here[heat.picks])
