"""Heads over regions that are pooled from the levels of a pyramid, with a candidate for each proposal."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from whybox.detectors.base import Forward, Outputs, Tap
from whybox.detectors.pyramid import PyramidDetector
from whybox.detectors.roi_taps import Regions, RoiLevelTap, RoiTap


@dataclass(frozen=True)
class RegionHead:
    """The box head as chosen candidates of one picture see it.

    Attributes:
        regions: of n candidates, how their features are pooled.
        features: region features (m, C, h, w) → raw outputs, name → (m, width).
        outputs: raw outputs, and which of the candidates (int64 (m,)) they are of → decoded.
        raw: name → (n, width), what the forward pass left.
    """

    regions: Regions
    features: Callable[[Tensor], Mapping[str, Tensor]]
    outputs: Callable[[Mapping[str, Tensor], Tensor], Outputs]
    raw: Mapping[str, Tensor]


class TwoStageDetector(PyramidDetector):
    """Proposals, and region features through a box head."""

    stages = ("rpn", "roi")

    def run_head(self, forward: Forward, *, keep: bool = False) -> None:
        """See `PyramidDetector.run_head`."""
        del keep  # regions are pooled again for the chosen candidates: cheaper than keeping all of them
        self._run_regions(forward, self._propose(forward))

    @abstractmethod
    def _propose(self, forward: Forward) -> list[Tensor]:
        """Run the RPN: the proposals of each picture, float (N, 4), network frame."""

    @abstractmethod
    def _run_regions(self, forward: Forward, proposals: list[Tensor]) -> None:
        """Run the box head over proposals of each picture, as `_propose` returns or `hold` holds them."""

    @abstractmethod
    def _region_head(self, forward: Forward, image: int, candidates: Tensor, labels: Tensor) -> RegionHead:
        """Return the box head of chosen candidates, int64 (n,), as labels (n,)."""

    def hold(self, forward: Forward, image: int, candidates: Tensor) -> dict[str, Tensor]:
        """See `WhiteBoxDetector.hold`: the proposals of the candidates, in the network frame."""
        return {
            "candidates": torch.arange(len(candidates), device=candidates.device),
            "proposals": forward.extra["proposals"][image][candidates],
        }

    def _held_head(self, forward: Forward, held: Mapping[str, Tensor]) -> None:
        if "proposals" not in held:
            self.run_head(forward, keep=True)
        else:
            self._run_regions(forward, [held["proposals"]] * len(forward.batch.frames))

    def _local_taps(
        self, forward: Forward, image: int, candidates: Tensor, labels: Tensor, *, exact: bool
    ) -> dict[str, Tap]:
        del exact  # a box head sees one region: nothing of it is held
        head = self._region_head(forward, image, candidates, labels)
        levels = [level[image] for level in forward.levels.values()]
        boxes = head.outputs(head.raw, torch.arange(len(candidates), device=candidates.device)).sides
        tap = RoiTap(head.regions, levels, head.features, head.outputs, boxes)
        return {"level": RoiLevelTap(tap, self._level_grids(forward, image, head.regions.levels)), "roi": tap}
