"""Look again at a masked picture: what all methods that hide parts of it share.

A mask is a function of the position in the image, so the same mask can hide pixels, or cells of a feature
map, in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from whybox.detectors.base import Batch, Forward, PostProcessing, WhiteBoxDetector
from whybox.detectors.taps import level_grids
from whybox.matching import Found
from whybox.memory import forward_footprint
from whybox.methods.base import Param, Question
from whybox.methods.sampling import Sum, Task

IMAGE = "image"
"""The layer of methods that hide pixels."""

FILLS = ("black", "mean")

MAX_BATCH = {"cpu": 8, "cuda": 64}
"""Pictures of a forward pass, by kind of device: on a CPU, larger batches leave the cache and are slower."""

CPU_ROUND_BYTES = 512 * 2**20
"""Of the forward passes of a round on a CPU, taken one by one: about a second or two of two cores."""

GPU_ROUND_BYTES = 32 * CPU_ROUND_BYTES

GROUP_CELLS = 4 * 2**20
"""Of the maps of a chunk's answer: 16 MiB, and as much again where every cell has a weight."""

MIN_FEATURE_ROUND = 8
"""Samples of a round on a feature map: each round needs a pass of its own to get there."""


def fill_param(default: str) -> Param:
    """Return the parameter that says what hides the pixels."""
    return Param(
        "fill",
        default,
        "what hidden pixels are filled with: black, or the picture's mean colour; feature maps are set to 0",
        choices=FILLS,
    )


def threshold_param() -> Param:
    """Return the parameter that says which detections of a masked picture count."""
    return Param(
        "score_threshold",
        0.05,
        "detections of a masked picture count above this score",
        minimum=0.0,
        maximum=1.0,
    )


class Masks(Protocol):
    """B masks."""

    def at(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the share that is kept, 0 to 1: float (B, h, w).

        Args:
            x: float (w,), positions in the image frame; may lie beyond the picture.
            y: float (h,).
        """


class Perturbed:
    """One picture, to be hidden in parts and looked at again.

    In the image, hidden pixels blend into the fill in the network's frame, after resizing and normalising:
    one picture is prepared instead of one for each mask. On a layer, the features are multiplied by the mask
    at the centres of its cells, and the network runs on from there.

    Attributes:
        batch: the picture itself, as the network sees it.
    """

    def __init__(
        self,
        detector: WhiteBoxDetector,
        picture: Tensor,
        *,
        layer: str = IMAGE,
        fill: str = FILLS[0],
        settings: PostProcessing,
    ) -> None:
        """Prepare the picture.

        Args:
            detector: that looks.
            picture: uint8 (H, W, 3).
            layer: `IMAGE`, a stage of the backbone, or ``level``.
            fill: one of `FILLS`.
            settings: of the masked pictures' post-processing; see `settings_of`.
        """
        self._detector = detector
        self._settings = settings
        self._layer = layer
        ((_, batch),) = detector.prepare([picture])
        self.batch = batch
        device = batch.pixels.device
        frame = batch.frames[0]
        columns = torch.arange(frame.network_width, device=device)
        rows = torch.arange(frame.network_height, device=device)
        if layer == IMAGE:
            ((_, blank),) = detector.prepare([_blank(picture, fill)])
            self._blank = blank.pixels
            self._places = [((columns + 0.5) / frame.scale[0], (rows + 0.5) / frame.scale[1])]
        else:
            self._forward = detector.forward(batch, keep=True)
            self._maps = feature_maps(self._forward, layer)
            self._places = [cell_centres(batch, m) for m in self._maps]

    def found(self, masks: Masks, *, between: Callable[[], None] = lambda: None) -> Found:
        """Find the objects in each of the B masked pictures; `between` as in `find`."""
        forward = self._run(masks)
        pictures = range(len(forward.batch.frames))
        return find(self._detector, forward, pictures, self._settings, between=between)

    @torch.no_grad()
    def _run(self, masks: Masks) -> Forward:
        kept = [masks.at(x, y)[:, None] for x, y in self._places]  # each [B, 1, h, w]
        if self._layer != IMAGE:
            masked = [m * k.to(m) for m, k in zip(self._maps, kept, strict=True)]
            return self._detector.resume(self._forward, 0, self._layer, masked)
        pixels = self.batch.pixels
        height, width = kept[0].shape[2:]
        masked_pixels = pixels.repeat(len(kept[0]), 1, 1, 1)
        inside = (..., slice(height), slice(width))  # the padding stays as it is
        masked_pixels[inside] = torch.lerp(self._blank[inside], pixels[inside], kept[0].to(pixels))
        return self._detector.forward(Batch(masked_pixels, self.batch.frames * len(kept[0])))


def settings_of(detector: WhiteBoxDetector, asked: Question | Task) -> PostProcessing:
    """Return the post-processing of masked pictures: the request's, with two changes.

    The score threshold is the method's own parameter, and the limit on detections the model's, lest the
    detection explained be cut off by others. Odam-NMS, for which every masked picture would need heat maps,
    is greedy NMS here.
    """
    settings = asked.settings or detector.defaults
    return replace(
        settings,
        score_threshold=float(asked.params["score_threshold"]),
        max_detections=detector.defaults.max_detections,
        nms="iou" if settings.nms == "odam" else settings.nms,
    )


def find(
    detector: WhiteBoxDetector,
    forward: Forward,
    images: Sequence[int],
    settings: PostProcessing,
    *,
    between: Callable[[], None] = lambda: None,
) -> Found:
    """Post-process some pictures of a pass; `between` is called between parts of it and may raise."""
    return Found.of([detector.detections(forward, image, settings, between=between) for image in images])


def feature_maps(forward: Forward, layer: str) -> list[Tensor]:
    """Return a stage's map or, for ``level``, all levels': each float (B, C, H, W)."""
    return list(forward.levels.values()) if layer == "level" else [forward.stages[layer]]


def cell_centres(batch: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the cells of a map (1, C, h, w) are centred: x (w,) and y (h,), image frame."""
    frame, padded = batch.frames[0], batch.pixels.shape
    height, width = features.shape[2:]
    one = torch.zeros(1, dtype=torch.int64, device=features.device)
    grids = level_grids(frame, (padded[2], padded[3]), [(height, width)], one)
    (offset_x, offset_y), (cell_x, cell_y) = grids.offsets[0], grids.cells[0]
    x = offset_x + (torch.arange(width, device=features.device) + 0.5) * cell_x
    y = offset_y + (torch.arange(height, device=features.device) + 0.5) * cell_y
    return x / frame.scale[0], y / frame.scale[1]


def batches(detector: WhiteBoxDetector, batch: Batch, task: Task) -> Iterator[range]:
    """Cut a task's samples into even parts that go through the network together.

    Args:
        detector: that looks.
        batch: the picture itself, as the network sees it.
        task: its samples, and the memory that they may take.
    """
    pixels = batch.pixels.shape[2] * batch.pixels.shape[3]
    most = min(MAX_BATCH[detector.device.type], forward_footprint(detector).pictures(pixels, task.memory))
    parts = -(-task.count // most)
    for part in range(parts):
        yield range(task.first + task.count * part // parts, task.first + task.count * (part + 1) // parts)


def round_size(detector: WhiteBoxDetector, batch: Batch, layer: str = IMAGE) -> int:
    """Return how many masked copies of a batch's picture make a chunk of one or two seconds.

    The bytes that a forward pass takes stand for its cost: they depend on the network and the picture alone.
    """
    pixels = batch.pixels.shape[2] * batch.pixels.shape[3]
    total = CPU_ROUND_BYTES if detector.device.type == "cpu" else GPU_ROUND_BYTES
    count = forward_footprint(detector).pictures(pixels, total)
    return count if layer == IMAGE else max(MIN_FEATURE_ROUND, count)


def group_count(question: Question, cells: tuple[int, int]) -> int:
    """Return into how many groups the detections are cut, each of which looks at all samples for itself.

    Args:
        question: says the detections and targets.
        cells: (h, w) of the maps.
    """
    count = len(question.detections)
    return min(count, -(-count * len(question.targets) * cells[0] * cells[1] // GROUP_CELLS))


def by_detection(values: Sequence[Sum], targets: int) -> list[list[Sum]]:
    """Cut a list of sums, the targets innermost, into a row for each detection."""
    return [list(values[i : i + targets]) for i in range(0, len(values), targets)]


def _blank(picture: Tensor, fill: str) -> Tensor:
    """Return a picture of the same size that holds the fill alone."""
    if fill == "black":
        return torch.zeros_like(picture)
    if fill == "mean":
        return picture.double().mean((0, 1)).round().to(picture).expand_as(picture).contiguous()
    raise ValueError(f"fill is one of {', '.join(FILLS)}; got {fill!r}")
