"""Taps that the families share: levels under dense heads, region features, levels under regions, stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from whybox.detectors.base import Frame, Grids, Outputs, Tap, Target, Window
from whybox.detectors.dense import Places, Tower, chunks, gather_windows, pull_back

CHUNK_BYTES = 8 * 2**20
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
    picture = torch.tensor([frame.network_height, frame.network_width], device=levels.device)
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

    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """See `Tap.windows`; the window's side is 2·(reach + margin) + 1 cells."""
        seeds = seeds_of(targets, self.outputs, self.raw)
        reach = max(tower.reach for tower in self.head.towers)
        margin = min(margin, max(map(max, self.head.sizes)))
        channels, side = self.head.levels[0].shape[0], 2 * (reach + margin) + 1
        size = CHUNK_BYTES // (4 * len(targets) * channels * side * side)
        corner = torch.stack([self.places.columns, self.places.rows], 1) - (reach + margin)
        for part in chunks(len(self.boxes), size):
            picks = torch.arange(part.start, part.stop, device=corner.device)
            gradients = self._gradients({name: seed[part] for name, seed in seeds.items()}, picks, reach)
            yield Window(
                picks=picks,
                activations=gather_windows(self.head.levels, self.places[picks], reach + margin),
                gradients=F.pad(gradients, (margin,) * 4),
                origins=corner[part],
            )

    def _gradients(self, seeds: dict[str, Tensor], picks: Tensor, reach: int) -> Tensor:
        """Gradients of n candidates: (n, T, C, s, s) with s = 2·reach + 1."""
        count, targets = next(iter(seeds.values())).shape[:2]
        places = self.places[picks]
        level = self.head.levels[0]
        side = 2 * reach + 1
        total = level.new_zeros((count, targets, level.shape[0], side, side))
        for tower, factors in zip(self.head.towers, self.head.factors, strict=True):
            own = {name: seeds[name] for name in tower.outputs}
            acts = (
                torch.cat(list(own.values()), 2).any(2).any(0)
            )  # [T]: which targets this tower has a part in
            chosen = torch.where(acts)[0]
            if len(chosen):
                pulled = pull_back(
                    tower, factors, self.head.sizes, {n: seed[:, chosen] for n, seed in own.items()}, places
                )
                spare = reach - tower.reach
                total[:, chosen, :, spare : side - spare, spare : side - spare] += pulled
        return total


@dataclass(frozen=True)
class Regions:
    """N regions of one picture and how their features are pooled (RoIAlign, not aligned).

    Attributes:
        boxes: float (N, 4), network frame.
        levels: int64 (N,), the level each is pooled from.
        scales: of each level, cells per network pixel.
        output: (h, w) of the pooled features.
        sampling_ratio: samples per bin and axis.
    """

    boxes: Tensor
    levels: Tensor
    scales: Sequence[float]
    output: tuple[int, int]
    sampling_ratio: int

    def pool(self, levels: Sequence[Tensor], picks: Tensor) -> Tensor:
        """Pool chosen regions from levels (C, H, W) each: float (n, C, h, w)."""
        pooled = levels[0].new_zeros((len(picks), levels[0].shape[0], *self.output))
        for level in self.levels[picks].unique().tolist():
            here = torch.where(self.levels[picks] == level)[0]
            rois = F.pad(self.boxes[picks[here]], (1, 0))
            pooled[here] = roi_align(
                levels[level][None], rois, self.output, self.scales[level], self.sampling_ratio
            )
        return pooled


class RoiTap(Tap):
    """Region features: local for each candidate, through the box head by autograd."""

    def __init__(
        self,
        regions: Regions,
        levels: Sequence[Tensor],
        head: Callable[[Tensor], Mapping[str, Tensor]],
        outputs: Callable[[Mapping[str, Tensor], Tensor], Outputs],
        boxes: Tensor,
    ) -> None:
        """Take N regions, the levels (C, H, W) each, the box head and the decoding of its raw outputs.

        `head` maps features (n, C, h, w) to raw outputs, name → (n, width); `outputs` decodes them for given
        picks; `boxes` are the candidates' own boxes (N, 4).
        """
        self.regions = regions
        self.levels = levels
        self.head = head
        self.outputs = outputs
        self.boxes = boxes
        sides = torch.stack(
            [regions.boxes[:, 2] - regions.boxes[:, 0], regions.boxes[:, 3] - regions.boxes[:, 1]], 1
        )
        # RoIAlign without `aligned` never pools less than one cell of the level.
        least = 1 / torch.tensor(regions.scales, device=sides.device)[regions.levels, None]
        grid = torch.tensor([regions.output[1], regions.output[0]], device=sides.device)
        self.grids = Grids(
            offsets=regions.boxes[:, :2],
            cells=torch.maximum(sides, least) / grid,
            sizes=grid.expand(len(sides), 2),
        )

    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """See `Tap.windows`; the window is the whole region, which needs no margin."""
        del margin
        row = 4 * len(targets) * self.levels[0].shape[0] * self.regions.output[0] * self.regions.output[1]
        for part in chunks(len(self.boxes), CHUNK_BYTES // row):
            picks = torch.arange(part.start, part.stop, device=self.boxes.device)
            features = self.regions.pool(self.levels, picks)
            with torch.enable_grad():
                features.requires_grad_()
                decoded = self.outputs(self.head(features), picks)
                sums = torch.stack([target(decoded).sum() for target in targets])  # [T]
            one_each = torch.eye(len(targets), dtype=sums.dtype, device=sums.device)
            (gradients,) = torch.autograd.grad(
                sums, features, one_each, is_grads_batched=True
            )  # [T, n, C, h, w]
            yield Window(
                picks=picks,
                activations=features.detach(),
                gradients=gradients.transpose(0, 1),
                origins=torch.zeros((len(picks), 2), dtype=torch.int64, device=picks.device),
            )


class RoiLevelTap(Tap):
    """The level a region was pooled from: region gradients spread through RoIAlign onto a window of it."""

    def __init__(self, roi: RoiTap, grids: Grids) -> None:
        """Take the tap of the region features and the grids of the levels."""
        self.roi = roi
        self.grids = grids
        self.boxes = roi.boxes
        self.candidate_levels = roi.regions.levels

    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """See `Tap.windows`; windows of one level share a size and lie on the level but for the margin."""
        regions, levels = self.roi.regions, self.roi.levels
        margin = min(margin, max(max(level.shape[1:]) for level in levels))
        for window in self.roi.windows(targets):
            for level in regions.levels[window.picks].unique().tolist():
                here = torch.where(regions.levels[window.picks] == level)[0]
                row = 4 * window.gradients.shape[1] * levels[level].numel()
                for part in chunks(len(here), max(1, CHUNK_BYTES // row)):
                    yield self._spread(window, here[part], level, margin)

    def _spread(self, window: Window, rows: Tensor, level: int, margin: int) -> Window:
        regions, maps = self.roi.regions, self.roi.levels[level]
        height, width = maps.shape[1:]
        picks = window.picks[rows]
        scaled = regions.boxes[picks] * regions.scales[level]
        # Two cells beyond the region hold all bilinear samples, and keep RoIAlign's clamping at the map's
        # border from acting at the window's.
        low = scaled[:, :2].floor().long() - 2
        high = torch.maximum(scaled[:, 2:], scaled[:, :2] + 1).ceil().long() + 3
        extent = (high - low).amax(0)
        size = torch.minimum(extent, torch.tensor([width, height], device=extent.device))
        limit = torch.tensor([width, height], device=extent.device) - size
        origins = torch.minimum(low.clamp(min=0), limit)  # [n, 2] column, row
        w, h = size.tolist()
        count, targets = window.gradients[rows].shape[:2]
        shifted = regions.boxes[picks] - origins.repeat(1, 2) / regions.scales[level]
        index = torch.arange(count * targets, device=picks.device)[:, None].to(shifted)
        gradients = torch.ops.torchvision._roi_align_backward(
            window.gradients[rows].flatten(0, 1),
            torch.cat([index, shifted.repeat_interleave(targets, 0)], 1),
            regions.scales[level],
            *regions.output,
            count * targets,
            maps.shape[0],
            h,
            w,
            regions.sampling_ratio,
            False,
        )
        padded = F.pad(maps, (margin,) * 4)
        activations = torch.stack(
            [padded[:, y : y + h + 2 * margin, x : x + w + 2 * margin] for x, y in origins.tolist()]
        )
        return Window(
            picks=picks,
            activations=activations,
            gradients=F.pad(gradients.unflatten(0, (count, targets)), (margin,) * 4),
            origins=origins - margin,
        )


class StageTap(Tap):
    """A stage of the backbone, seen through everything above it.

    The head's part of the gradient comes from a tap of the levels, local and cheap; only the way from the
    levels to the stage goes over whole maps, many gradients in one vectorised backward pass.
    """

    def __init__(
        self,
        level_tap: DenseLevelTap | RoiLevelTap,
        upper: Callable[[Tensor], Sequence[Tensor]],
        activation: Tensor,
        grids: Grids,
    ) -> None:
        """Take a tap of the levels and the way from the stage to them.

        `upper` maps the stage's map (1, C, H, W) to all levels, (1, C, H, W) each; `activation` is (C, H, W).
        """
        self.level_tap = level_tap
        self.levels = level_tap.candidate_levels
        self.upper = upper
        self.activation = activation
        self.grids = grids
        self.boxes = level_tap.boxes

    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """See `Tap.windows`; the window is the whole stage, which needs no margin."""
        del margin
        with torch.enable_grad():
            leaf = self.activation[None].detach().requires_grad_()
            tops = self.upper(leaf)
        for window in self.level_tap.windows(targets):
            for level in self.levels[window.picks].unique().tolist():
                here = torch.where(self.levels[window.picks] == level)[0]
                top = tops[level]
                row = 4 * len(targets) * max(top.numel(), 4 * leaf.numel())
                for part in chunks(len(here), CHUNK_BYTES // row):
                    rows = here[part]
                    dense = _paste(window.gradients[rows].flatten(0, 1), window.origins[rows], top.shape[2:])
                    (pulled,) = torch.autograd.grad(
                        top, leaf, dense[:, None], retain_graph=True, is_grads_batched=True
                    )
                    gradients = pulled[:, 0].unflatten(0, (len(rows), len(targets)))
                    yield Window(
                        picks=window.picks[rows],
                        activations=self.activation.expand(len(rows), *self.activation.shape),
                        gradients=gradients,
                        origins=torch.zeros((len(rows), 2), dtype=torch.int64, device=leaf.device),
                    )


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
