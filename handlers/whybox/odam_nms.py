"""What Odam-NMS compares: the class maps of all contenders, on one small raster of the picture.

A map is made on the layer local to its candidate (region features, or the pyramid level that produced it),
without Φ, which the coarse raster makes up for. It is pasted into the picture as the served maps are,
resized to a short edge of 50 and flattened; two maps correlate by their cosine. Interpolation is linear and
acts along rows and columns apart, so a part of the candidates is pasted by two batched matrix products.

Source: Zhao and Chan, "ODAM", ICLR 2023, section 3.3.

Letters: N contenders, h x w cells of a map, R x S cells of the raster.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whybox.detectors.base import Contenders, Forward, Frame, Grids, Heat, WhiteBoxDetector
from whybox.methods.base import scalar
from whybox.nms import Correlate
from whybox_proto.errors import ContractError

SHORT_EDGE = 50
"""Cells of the raster along the picture's shorter side."""

LONG_EDGE = 500
"""Most cells along its longer side; pictures thinner than 1:10 get a coarser raster."""

SAMPLES = 4
"""Points along each side of a raster cell at which a map is read; the cell is their mean."""

MAX_CELLS = 2**28
"""Of all contenders' maps together: 1 GiB, and as much again while they are compared."""

_LOCAL_FIRST = ("roi", "level", "memory", "stage")


def correlation(
    detector: WhiteBoxDetector,
    forward: Forward,
    image: int,
    found: Contenders,
    *,
    between: Callable[[], None] = lambda: None,
) -> Correlate:
    """Return what correlates the contenders' class maps; each map is made when it is first asked for.

    Args:
        detector: that found them.
        forward: its pass, made with ``keep=True``.
        image: position of the picture in that pass.
        found: the contenders.
        between: called between parts of the work; may raise to stop it.

    Raises:
        ContractError: if the contenders are too many to be compared.
    """
    height, width = raster(forward.batch.frames[image])
    if len(found.scores) > (most := MAX_CELLS // (height * width)):
        raise ContractError(
            "invalid_argument",
            "too many boxes are above the threshold for Odam-NMS",
            field="select.score_threshold",
            expected=f"a threshold that at most {most} boxes pass, or another nms.kind",
            got=f"{len(found.scores)} boxes",
        )
    vectors = found.scores.new_zeros(
        (len(found.scores), height * width)
    )  # memory is taken as rows are filled
    made = torch.zeros_like(found.labels, dtype=torch.bool)

    def correlate(first: Tensor, second: Tensor) -> Tensor:
        needed = torch.cat([first, second]).unique()
        new = needed[~made[needed]]
        if len(new):
            vectors[new] = unit_maps(
                detector, forward, image, found.candidates[new], found.labels[new], between=between
            )
            made[new] = True
        # Rounding must not carry two equal maps over 1.
        return (vectors[first] @ vectors[second].T).clamp(0, 1)

    return correlate


def unit_maps(
    detector: WhiteBoxDetector,
    forward: Forward,
    image: int,
    candidates: Tensor,
    labels: Tensor,
    *,
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """Make the class maps of candidates, each a vector of length 1; a map of zeros stays zeros.

    Args:
        detector: that found them.
        forward: its pass, made with ``keep=True``.
        image: position of the picture in that pass.
        candidates: int64 (N,).
        labels: int64 (N,), the class that each is explained for.
        between: called between parts of the work.

    Returns:
        float (N, R·S), not negative.
    """
    frame = forward.batch.frames[image]
    height, width = raster(frame)
    if not len(candidates):
        return torch.zeros((0, height * width), device=candidates.device)
    tap = detector.tap(forward, image, local_layer(detector), candidates, labels)
    vectors = None
    for heat in tap.heat([scalar("class", detector.labels)]):
        between()
        cells = paste(heat, tap.grids, frame, (height, width)).flatten(1)
        cells /= cells.amax(1, keepdim=True).clamp(min=torch.finfo(cells.dtype).tiny)  # or squares underflow
        cells /= cells.norm(dim=1, keepdim=True).clamp(min=1)  # the largest is 1 now, or all are 0
        if vectors is None:
            vectors = cells.new_zeros((len(candidates), height * width))
        vectors[heat.picks] = cells
    assert vectors is not None  # there are candidates, and a tap yields each of them
    return vectors


def local_layer(detector: WhiteBoxDetector) -> str:
    """Name the layer whose gradients cost least: region features, else the level, else an encoder's
    memory, else a stage.
    """
    return min(detector.layers.values(), key=lambda layer: _LOCAL_FIRST.index(layer.kind)).name


def raster(frame: Frame) -> tuple[int, int]:
    """Return the raster's (R, S): the picture's shape, its short edge `SHORT_EDGE` cells."""
    scale = min(SHORT_EDGE / min(frame.width, frame.height), LONG_EDGE / max(frame.width, frame.height))
    return max(1, round(frame.height * scale)), max(1, round(frame.width * scale))


def paste(heat: Heat, grids: Grids, frame: Frame, size: tuple[int, int]) -> Tensor:
    """Put the positive part of maps onto a raster of the whole picture.

    As in `whybox_proto.maps.enlarge`: bilinear between the centres of the cells that lie on the picture,
    constant beyond the outermost ones, zero outside the region that they cover.

    Args:
        heat: n maps of one target.
        grids: of all candidates of the tap.
        frame: of the picture.
        size: (R, S).

    Returns:
        float (n, R, S).
    """
    values = heat.values[:, 0].relu()  # [n, h, w]
    picks = heat.picks
    lengths = (frame.network_width, frame.network_height)
    columns, rows = (
        _reading(
            first=heat.origins[:, axis],
            cells=values.shape[2 - axis],
            on_picture=grids.sizes[picks, axis],
            offset=grids.offsets[picks, axis],
            cell=grids.cells[picks, axis],
            points=torch.linspace(0, length, SAMPLES * size[1 - axis] + 1).to(values),
        )
        for axis, length in enumerate(lengths)
    )
    return rows @ values @ columns.transpose(1, 2)


def _reading(
    *, first: Tensor, cells: int, on_picture: Tensor, offset: Tensor, cell: Tensor, points: Tensor
) -> Tensor:
    """Matrices that read maps along one axis at points of the network frame, a mean over every `SAMPLES`.

    Args:
        first: int64 (n,), position of each map's first cell on its grid.
        cells: of a map along the axis.
        on_picture: int64 (n,), how many of the grid's cells lie on the picture.
        offset: float (n,), where cell 0 of the grid begins.
        cell: float (n,), length of a cell.
        points: float (P + 1,), the borders of P equal parts, read at their middles.

    Returns:
        float (n, P / SAMPLES, cells).
    """
    low = first.clamp(min=0)
    high = torch.minimum(first + cells, on_picture)
    start, stop = offset + low * cell, offset + high * cell
    middle = (points[:-1] + points[1:]) / 2
    inside = (middle >= start[:, None]) & (middle <= stop[:, None])  # [n, P]; none where high <= low
    position = (middle - offset[:, None]) / cell[:, None] - 0.5 - first[:, None]  # in cells of the map
    lowest, highest = (low - first)[:, None], (high - 1 - first)[:, None]
    position = torch.minimum(torch.maximum(position, lowest), highest)
    steps = torch.arange(cells, device=position.device)
    weights = (1 - (position[:, :, None] - steps).abs()).clamp(min=0) * inside[:, :, None]
    matrices: Tensor = weights.unflatten(1, (-1, SAMPLES)).mean(2)
    return matrices
