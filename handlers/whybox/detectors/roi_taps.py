"""Taps of two-stage detectors: region features, and the level that they were pooled from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from whybox.detectors.base import Grids, Heat, Outputs, Tap, Target, Window
from whybox.detectors.cells import Cells, gather, outer, smoothed_heat
from whybox.detectors.dense import chunks
from whybox.detectors.taps import CHUNK_BYTES
from whybox.gaussian import gaussian_weights, smoothing_margin

LEAST_ALIGNED = 1e-3
"""Of a cell: a region that has no width or height has cells all the same."""


@dataclass(frozen=True)
class Regions:
    """N regions of one picture and how their features are pooled by RoIAlign.

    Attributes:
        boxes: float (N, 4), network frame.
        levels: int64 (N,), the level each is pooled from.
        scales: of each level, cells per network pixel.
        output: (h, w) of the pooled features.
        sampling_ratio: samples per bin and axis; 0 for as many as a bin has cells, rounded up.
        aligned: cell i lies at i + ½ and not at i, and regions may be smaller than a cell.
    """

    boxes: Tensor
    levels: Tensor
    scales: Sequence[float]
    output: tuple[int, int]
    sampling_ratio: int
    aligned: bool = False

    def pool(self, levels: Sequence[Tensor], picks: Tensor) -> Tensor:
        """Pool chosen regions from levels (C, H, W) each: float (n, C, h, w)."""
        pooled = levels[0].new_zeros((len(picks), levels[0].shape[0], *self.output))
        for level in self.levels[picks].unique().tolist():
            here = torch.where(self.levels[picks] == level)[0]
            rois = F.pad(self.boxes[picks[here]], (1, 0))
            pooled[here] = roi_align(
                levels[level][None], rois, self.output, self.scales[level], self.sampling_ratio, self.aligned
            )
        return pooled

    def weights(self, picks: Tensor, axis: int, start: Tensor, size: int, cells: Cells) -> Tensor:
        """Weights with which cells enter the bins, along one axis; RoIAlign's are products of both axes'.

        Args:
            picks: int64 (n,), regions of one level.
            axis: 0 for x, 1 for y.
            start: int64 (n,), the first cell to weigh.
            size: number of cells to weigh.
            cells: of the levels.

        Returns:
            float (n, size, bins).
        """
        level = int(self.levels[picks[0]])
        length, bins = cells.sizes[level][1 - axis], self.output[1 - axis]
        at, counted = self._samples(picks, axis, level, bins)  # [n, bins · samples]
        counts = (at >= -1) & (at <= length)
        at = at.clamp(0, length - 1)
        nearest = at.floor()
        fraction = at - nearest
        here = (start[:, None] + torch.arange(size, device=picks.device))[:, :, None]  # [n, size, 1]
        weights = (here == nearest[:, None]) * (1 - fraction[:, None])
        weights = weights + (here == nearest[:, None] + 1) * fraction[:, None]
        binned: Tensor
        if counted is None:
            binned = (weights * counts[:, None]).unflatten(2, (bins, -1)).mean(3)
        else:
            shares = counted / counted.sum(1, keepdim=True).div(bins).clamp(min=1)
            binned = (weights * (counts * shares)[:, None]).unflatten(2, (bins, -1)).sum(3)
        return binned

    def _samples(self, picks: Tensor, axis: int, level: int, bins: int) -> tuple[Tensor, Tensor | None]:
        """Where RoIAlign samples along one axis, in cells.

        Returns:
            float (n, bins · samples); and where the number of samples differs between regions, which of them
            there are, bool of the same shape.
        """
        low, high = (self.boxes[picks][:, [axis, axis + 2]] * self.scales[level]).unbind(1)
        if self.aligned:
            low, high = low - 0.5, high - 0.5
        length = high - low if self.aligned else (high - low).clamp(min=1)
        if self.sampling_ratio > 0:
            samples = torch.arange(bins * self.sampling_ratio, device=picks.device) + 0.5
            step = length / len(samples)
            return low[:, None] + samples * step[:, None], None
        own = (length / bins).ceil()  # of each bin, [n]
        most = max(1, int(own.max()))
        number = torch.arange(most, device=picks.device).expand(bins, -1)  # [bins, samples]
        within = (number + 0.5) / own.clamp(min=1)[:, None, None]  # [n, bins, samples]
        places = torch.arange(bins, device=picks.device)[:, None] + within
        at = low[:, None] + (places * (length / bins)[:, None, None]).flatten(1)
        return at, (number < own[:, None, None]).flatten(1)


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
        if regions.aligned:
            least = least * LEAST_ALIGNED
        grid = torch.tensor([regions.output[1], regions.output[0]], device=sides.device)
        self.grids = Grids(
            offsets=regions.boxes[:, :2],
            cells=torch.maximum(sides, least) / grid,
            sizes=grid.expand(len(sides), 2),
        )

    def whole(self, pick: int) -> Tensor:
        """See `Tap.whole`: the region's own features."""
        return self.regions.pool(self.levels, torch.tensor([pick], device=self.boxes.device))[0]

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

    def whole(self, pick: int) -> Tensor:
        """See `Tap.whole`."""
        return self.roi.levels[int(self.candidate_levels[pick])]

    @cached_property
    def _cells(self) -> Cells:
        return Cells([(level.shape[1], level.shape[2]) for level in self.roi.levels])

    @cached_property
    def _activations(self) -> Tensor:
        return self._cells.table(self.roi.levels)

    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """See `Tap.windows`; windows lie on the level but for the margin."""
        for window in self.roi.windows(targets):
            yield from self.follow(window, margin=margin)

    def follow(self, window: Window, *, margin: int = 0) -> Iterator[Window]:
        """Spread the gradients of one of `RoiTap`'s windows; see `windows`."""
        regions, levels = self.roi.regions, self.roi.levels
        margin = min(margin, max(max(level.shape[1:]) for level in levels))
        for rows, origins, (height, width) in self._groups(window, levels[0].shape[0], margin):
            picks = window.picks[rows]
            level = int(regions.levels[picks[0]])
            count, targets = window.gradients[rows].shape[:2]
            shifted = regions.boxes[picks] - origins.repeat(1, 2) / regions.scales[level]
            index = torch.arange(count * targets, device=picks.device)[:, None].to(shifted)
            gradients = torch.ops.torchvision._roi_align_backward(
                window.gradients[rows].flatten(0, 1),
                torch.cat([index, shifted.repeat_interleave(targets, 0)], 1),
                regions.scales[level],
                *regions.output,
                count * targets,
                levels[level].shape[0],
                height,
                width,
                regions.sampling_ratio,
                regions.aligned,
            )
            corners, size = origins - margin, (height + 2 * margin, width + 2 * margin)
            numbers = self._cells.windows(regions.levels[picks], corners, size)
            yield Window(
                picks=picks,
                activations=gather(self._activations, numbers).permute(0, 3, 1, 2),
                gradients=F.pad(gradients.unflatten(0, (count, targets)), (margin,) * 4),
                origins=corners,
            )

    def heat(self, targets: Sequence[Target], sigmas: Tensor | None = None) -> Iterator[Heat]:
        """See `Tap.heat`.

        RoIAlign is a sum of cells with weights that are products of one for the row and one for the column,
        and so is Φ: both are applied by `smoothed_heat`, after the sum over the channels.
        """
        regions = self.roi.regions
        bins = regions.output[0] * regions.output[1]
        margin = min(smoothing_margin(sigmas), max(map(max, self._cells.sizes)))
        for window in self.roi.windows(targets):
            width_of_row = max(self.roi.levels[0].shape[0], len(targets) * bins)
            for rows, origins, size in self._groups(window, width_of_row, margin):
                picks = window.picks[rows]
                levels, corners = regions.levels[picks], origins - margin
                weights = []
                for axis in (1, 0):
                    spread = regions.weights(picks, axis, origins[:, axis], size[1 - axis], self._cells)
                    if sigmas is not None:
                        cells = torch.arange(-margin, size[1 - axis] + margin, device=picks.device)
                        distances = cells[:, None] - cells[margin : len(cells) - margin]
                        spread = gaussian_weights(
                            sigmas[picks, axis], distances.expand(len(picks), -1, -1)
                        ) @ spread.to(sigmas)
                    weights.append(spread)
                numbers = self._cells.windows(levels, corners, (size[0] + 2 * margin, size[1] + 2 * margin))
                gradients = window.gradients[rows].permute(0, 1, 3, 4, 2)
                activations = gather(self._activations, numbers)
                yield Heat(picks, smoothed_heat(gradients, activations, outer(*weights)), corners)

    def _groups(
        self, window: Window, width: int, margin: int
    ) -> Iterator[tuple[Tensor, Tensor, tuple[int, int]]]:
        """Group the regions of one of `RoiTap`'s windows by level and size.

        Args:
            window: of n regions.
            width: numbers for each cell and target that the work on a group takes.
            margin: of the windows.

        Yields:
            Rows of the window, int64 (m,); for each the column and row where its cells begin, int64 (m, 2);
            and (h, w) that hold all of its cells. What begins there lies on the level.
        """
        regions = self.roi.regions
        levels = regions.levels[window.picks]
        limits = torch.tensor(self._cells.sizes, device=levels.device).flip(1)[levels]  # [n, 2]
        scaled = (
            regions.boxes[window.picks]
            * limits.new_tensor(regions.scales, dtype=regions.boxes.dtype)[levels, None]
        )
        # Two cells beyond the region hold all bilinear samples, and keep RoIAlign's clamping at the map's
        # border from acting at the window's.
        low = scaled[:, :2].floor().long() - 2
        high = torch.maximum(scaled[:, 2:], scaled[:, :2] + 1).ceil().long() + 3
        extents = torch.minimum(high - low, limits)
        kinds = torch.cat([levels[:, None], extents.log2().ceil().long()], 1)
        for kind in kinds.unique(dim=0):
            here = torch.where((kinds == kind).all(1))[0]
            columns, rows = extents[here].amax(0).tolist()
            cells = (columns + 2 * margin) * (rows + 2 * margin)
            for part in chunks(len(here), CHUNK_BYTES // (4 * window.gradients.shape[1] * width * cells)):
                chosen = here[part]
                columns, rows = extents[chosen].amax(0).tolist()
                limit = limits[chosen] - limits.new_tensor([columns, rows])
                yield chosen, torch.minimum(low[chosen].clamp(min=0), limit), (rows, columns)
