"""Heads over every level of a pyramid, with a candidate for each anchor."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from whybox.detectors.base import (
    Batch,
    Candidates,
    Detections,
    Forward,
    Outputs,
    PostProcessing,
    Tap,
)
from whybox.detectors.dense import Tower, locate
from whybox.detectors.pyramid import PyramidDetector
from whybox.detectors.stage_outputs import StageOutputs
from whybox.detectors.taps import DenseHead, DenseLevelTap
from whybox.detectors.whole_level import WholeLevelTap, spans_level


class OneStageDetector(PyramidDetector):
    """Towers over every level, one candidate for each anchor.

    Attributes:
        first: the first of the head's classes that counts: 1 where there is a background before it.
    """

    first: int = 0
    dense = True
    stages = ("dense",)

    @cached_property
    def towers(self) -> list[Tower]:
        """The head's towers, checked once."""
        return self._towers()

    @abstractmethod
    def _towers(self) -> list[Tower]:
        """Take the head's towers."""

    @abstractmethod
    def _anchors(self, batch: Batch, levels: Sequence[Tensor]) -> Tensor:
        """Return the anchors of all levels, float (N, 4), network frame, the same for every picture."""

    @abstractmethod
    def _decode(self, raw: Mapping[str, Tensor], anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Decode raw outputs (..., width) into class scores (..., K) and boxes (..., 4)."""

    def run_head(self, forward: Forward, *, keep: bool = False) -> None:
        """See `PyramidDetector.run_head`."""
        levels = list(forward.levels.values())
        anchors = self._anchors(forward.batch, levels)
        per_cell = len(anchors) // sum(h * w for h, w in self._level_sizes(forward))
        outputs, factors = self._run_towers(levels, keep=keep)
        forward.extra["anchors"] = anchors
        forward.extra["per_cell"] = per_cell
        forward.extra["raw"] = {
            name: torch.cat([_by_candidate(output, per_cell) for output in of_levels], 1)
            for name, of_levels in outputs.items()
        }
        if keep:
            forward.extra["factors"] = factors

    def _run_towers(
        self, levels: Sequence[Tensor], *, keep: bool
    ) -> tuple[dict[str, list[Tensor]], list[list[list[Tensor]]]]:
        """Run the towers on all levels.

        Returns:
            Outputs of each level by name, and for each tower and level what `Tower.run` kept.
        """
        runs = [[tower.run(level, keep=keep) for level in levels] for tower in self.towers]
        outputs = {name: [made[name] for made, _ in run] for run in runs for name in run[0][0]}
        return outputs, [[kept for _, kept in run] for run in runs]

    def candidates(self, forward: Forward, image: int) -> Candidates:
        """See `WhiteBoxDetector.candidates`."""
        raw = {name: value[image] for name, value in forward.extra["raw"].items()}
        scores, boxes = self._decode(raw, forward.extra["anchors"])
        return Candidates(boxes, scores, self._groups(forward))

    def _groups(self, forward: Forward) -> Tensor:
        """The level of every candidate: int64 (N,)."""
        counts = torch.tensor([h * w * forward.extra["per_cell"] for h, w in self._level_sizes(forward)])
        return torch.arange(len(counts)).repeat_interleave(counts).to(self.device)

    def _stage_outputs(self, forward: Forward, regions: Tensor | None) -> list[StageOutputs]:
        del regions
        self.run_head(forward)
        raw = {name: value[0] for name, value in forward.extra["raw"].items()}
        anchors = forward.extra["anchors"]
        boxes = self._decode(raw, anchors)[1]
        logits, quality = raw["logits"][:, self.first :], raw.get("centerness")
        return [
            StageOutputs(
                "dense",
                logits,
                boxes,
                anchors,
                self._groups(forward),
                quality=None if quality is None else quality[:, 0],
            )
        ]

    def detections(
        self,
        forward: Forward,
        image: int,
        settings: PostProcessing,
        *,
        between: Callable[[], None] = lambda: None,
    ) -> Detections:
        """See `WhiteBoxDetector.detections`; only what can pass the threshold is decoded."""
        raw = {name: value[image] for name, value in forward.extra["raw"].items()}
        highest = raw["logits"][:, self.first :].amax(1)
        rows = torch.where(highest > self._least_logit(settings.score_threshold))[0]
        scores, boxes = self._decode(
            {name: value[rows] for name, value in raw.items()}, forward.extra["anchors"][rows]
        )
        counts = [h * w * forward.extra["per_cell"] for h, w in self._level_sizes(forward)]
        groups = torch.bucketize(rows, torch.tensor(counts, device=rows.device).cumsum(0), right=True)
        found = self.postprocess(
            Candidates(boxes, scores, groups), forward.batch.frames[image], settings, between=between
        )
        return replace(found, candidates=rows[found.candidates])

    def _least_logit(self, threshold: float) -> float:
        """Return a class logit that every candidate has passed whose score is above the threshold."""
        del threshold
        return -math.inf

    def class_maps(self, forward: Forward, image: int, *, score: bool = False) -> list[Tensor]:
        """See `WhiteBoxDetector.class_maps`."""
        logits = forward.extra["raw"]["logits"][image][:, self.first :]  # [N, K]
        values = self.candidates(forward, image).scores if score else logits
        sizes, anchors = self._level_sizes(forward), forward.extra["per_cell"]
        parts = values.split([h * w * anchors for h, w in sizes])
        return [
            part.view(h, w, anchors, -1).permute(2, 3, 0, 1)
            for part, (h, w) in zip(parts, sizes, strict=True)
        ]

    def _local_taps(
        self, forward: Forward, image: int, candidates: Tensor, labels: Tensor, *, exact: bool
    ) -> dict[str, Tap]:
        extra = forward.extra
        head = DenseHead(
            self.towers,
            [[[f[image] for f in level] for level in tower] for tower in extra["factors"]],
            [level[image] for level in forward.levels.values()],
        )
        places = locate(candidates, head.sizes, extra["per_cell"])
        anchors = extra["anchors"][candidates]
        raw = {name: value[image, candidates] for name, value in extra["raw"].items()}

        def outputs(raw: Mapping[str, Tensor]) -> Outputs:
            scores, sides = self._decode(raw, anchors)
            return Outputs(scores, sides, labels, raw["logits"][:, self.first :])

        grids = self._level_grids(forward, image, places.levels)
        kind = WholeLevelTap if exact and any(map(spans_level, self.towers)) else DenseLevelTap
        return {"level": kind(head, places, raw, outputs, grids, outputs(raw).sides)}


def root_of_sigmoids(logits: Tensor, quality: Tensor) -> Tensor:
    """FCOS' score, √(σ(class) · σ(centre-ness)); in logarithms, where its derivative stays finite."""
    return (0.5 * (logsigmoid(logits) + logsigmoid(quality))).exp()


def least_logit(score: float) -> float:
    """The inverse of the sigmoid, a little less for what rounding may do."""
    if not 0 < score < 1:
        return math.copysign(math.inf, score - 0.5)
    return math.log(score / (1 - score)) - 1e-3


def _by_candidate(output: Tensor, per_cell: int) -> Tensor:
    """Turn (B, A·width, H, W) into (B, H·W·A, width), anchors innermost."""
    split = output.unflatten(1, (per_cell, -1))  # [B, A, width, H, W]
    rows: Tensor = split.permute(0, 3, 4, 1, 2).flatten(1, 3)
    return rows
