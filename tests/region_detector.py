"""A detector whose answers are arithmetic: each object's scores are the brightness of one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from whybox.detectors.base import (
    Batch,
    Candidates,
    Contenders,
    Forward,
    Frame,
    Layer,
    PostProcessing,
    Tap,
    WhiteBoxDetector,
)
from whybox.detectors.postprocess import contenders


@dataclass(frozen=True)
class Thing:
    """An object that is always looked for.

    Attributes:
        box: where it is found, in pixels.
        looks_at: [x1, y1, x2, y2] in cells of the grid: the score of its class is their mean brightness.
        label: of its class.
        other: what its other classes score, always.
    """

    box: tuple[float, float, float, float]
    looks_at: tuple[int, int, int, int]
    label: int = 0
    other: float = 0.0


class RegionDetector(WhiteBoxDetector):
    """Brightness at every `stride`-th pixel, 0 to 1, is the stage ``cells``; moved by `shift`, the level.

    Like that of a strided convolution with symmetric padding, cell i is centred on pixel i · stride. A thing
    looks at the level where its place has moved to, so pictures are answered as without the shift.
    """

    def __init__(
        self, *things: Thing, stride: int = 1, shift: tuple[int, int] = (0, 0), classes: int = 2
    ) -> None:
        self.labels = tuple(f"class {i}" for i in range(classes))
        self.defaults = PostProcessing(0.01, 100)
        self.layers = {
            "level": Layer("level", "level", 1),
            "cells": Layer("cells", "stage", 1, stride),
        }
        self.things = things
        self.stride = stride
        self.shift = shift
        self.passes = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        del device
        return self

    def prepare(self, images: Sequence[Tensor]) -> list[tuple[list[int], Batch]]:
        frames = tuple(Frame(i.shape[1], i.shape[0], i.shape[1], i.shape[0]) for i in images)
        return [
            ([n], Batch(image.permute(2, 0, 1)[None] / 255, frames[n : n + 1]))
            for n, image in enumerate(images)
        ]

    def forward(self, batch: Batch, *, keep: bool = False) -> Forward:
        del keep
        self.passes += len(batch.frames)
        stage = batch.pixels.mean(1, keepdim=True)[:, :, :: self.stride, :: self.stride]
        return Forward(batch, {"cells": stage}, {"0": self._level(stage)})

    def _level(self, stage: Tensor) -> Tensor:
        return stage.roll((self.shift[1], self.shift[0]), (2, 3))

    def resume(self, forward: Forward, image: int, layer: str, maps: Sequence[Tensor]) -> Forward:
        levels = maps[0] if layer == "level" else self._level(maps[0])
        return Forward(forward.batch.copies(image, len(levels)), {}, {"0": levels})

    def candidates(self, forward: Forward, image: int) -> Candidates:
        level = forward.levels["0"][image, 0].roll((-self.shift[1], -self.shift[0]), (0, 1))
        scores = level.new_zeros(len(self.things), len(self.labels))
        for row, thing in enumerate(self.things):
            x1, y1, x2, y2 = thing.looks_at
            scores[row] = thing.other
            scores[row, thing.label] = level[y1:y2, x1:x2].mean()
        boxes = torch.tensor([thing.box for thing in self.things], dtype=torch.float32)
        return Candidates(boxes, scores, torch.zeros(len(self.things), dtype=torch.int64))

    def contenders(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Contenders:
        return contenders(candidates, frame, settings)

    def tap(
        self,
        forward: Forward,
        image: int,
        layer: str,
        candidates: Tensor,
        labels: Tensor,
        *,
        exact: bool = False,
    ) -> Tap:
        raise NotImplementedError
