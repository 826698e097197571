"""torchvision's SSD: stages of the backbone as they are, each with a head of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from whybox.detectors.base import Candidates, Contenders, Forward, Frame, Outputs, PostProcessing, Tap
from whybox.detectors.dense import Places, Tower, locate
from whybox.detectors.postprocess import contenders
from whybox.detectors.stage_outputs import StageOutputs
from whybox.detectors.taps import DenseHead, DenseLevelTap, PerLevelTap
from whybox.detectors.torchvision import TorchvisionOneStage


class SsdDetector(TorchvisionOneStage):
    """torchvision's SSD, on a backbone that has a ``body`` and an ``fpn`` (which may do nothing).

    The levels differ in their channels, so each has its own towers: single convolutions. torchvision's own
    ``ssd300_vgg16`` hides its stages in its backbone and cannot be looked into.
    """

    def __init__(self, model: Any, labels: Sequence[str], *, background: bool) -> None:
        """See `wrap`; an SSD's head always has a background class.

        Raises:
            ValueError: for a backbone without ``body`` and ``fpn``, or as `wrap` says.
        """
        del background
        if not (hasattr(model.backbone, "body") and hasattr(model.backbone, "fpn")):
            raise ValueError(
                f"expected an SSD whose backbone has body and fpn; got {type(model.backbone).__name__}"
            )
        super().__init__(model, labels, background=True)

    @cached_property
    def level_towers(self) -> list[list[Tower]]:
        """For each level its two towers."""
        head = self.model.head
        return [
            [Tower((), {"logits": logits}), Tower((), {"deltas": deltas})]
            for logits, deltas in zip(
                head.classification_head.module_list, head.regression_head.module_list, strict=True
            )
        ]

    def _towers(self) -> list[Tower]:
        return [tower for towers in self.level_towers for tower in towers]

    def _head_classes(self) -> int:
        return int(self.model.head.classification_head.num_columns)

    def _decode(self, raw: Mapping[str, Tensor], anchors: Tensor) -> tuple[Tensor, Tensor]:
        scores = raw["logits"].softmax(-1)[..., self.first :]
        return scores, self.model.box_coder.decode_single(raw["deltas"], anchors)

    def _run_towers(
        self, levels: Sequence[Tensor], *, keep: bool
    ) -> tuple[dict[str, list[Tensor]], list[list[list[Tensor]]]]:
        del keep  # a single convolution leaves nothing to keep
        runs = [
            {name: output for tower in towers for name, output in tower.run(level, keep=False)[0].items()}
            for towers, level in zip(self.level_towers, levels, strict=True)
        ]
        return {name: [run[name] for run in runs] for name in runs[0]}, []

    def _stage_outputs(self, forward: Forward, regions: Tensor | None) -> list[StageOutputs]:
        (dense,) = super()._stage_outputs(forward, regions)
        logits = forward.extra["raw"]["logits"][0]  # background first
        return [replace(dense, logits=logits, softmax=True)]

    def contenders(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Contenders:
        """See `WhiteBoxDetector.contenders`; the limit is on each class."""
        return contenders(candidates, frame, settings, class_limit=self.model.topk_candidates)

    def _local_taps(
        self, forward: Forward, image: int, candidates: Tensor, labels: Tensor, *, exact: bool
    ) -> dict[str, Tap]:
        del exact  # a head without norms
        extra = forward.extra
        levels = [level[image] for level in forward.levels.values()]
        places = locate(candidates, [(x.shape[1], x.shape[2]) for x in levels], extra["per_cell"])
        grids = self._level_grids(forward, image, places.levels)
        anchors = extra["anchors"][candidates]
        raw = {name: value[image, candidates] for name, value in extra["raw"].items()}
        boxes = self._decode(raw, anchors)[1]

        def tap(level: int, here: Tensor) -> DenseLevelTap:
            def outputs(raw: Mapping[str, Tensor]) -> Outputs:
                scores, sides = self._decode(raw, anchors[here])
                return Outputs(scores, sides, labels[here], raw["logits"][:, self.first :])

            own = places[here]
            alone = Places(torch.zeros_like(own.levels), own.columns, own.rows, own.anchors)
            head = DenseHead(self.level_towers[level], [[[]], [[]]], [levels[level]])
            rows = {name: value[here] for name, value in raw.items()}
            return DenseLevelTap(head, alone, rows, outputs, grids[here], boxes[here])

        return {"level": PerLevelTap(tap, places.levels, grids, boxes)}
