"""What detectors with a pyramid share: a backbone's stages, the levels made of them, a head on the levels.

A family says how pictures are prepared, which modules the backbone is a chain of, how levels are made of its
stages, and what the head is; the passes, traces and taps are here. Heads over every level are in
`whybox.detectors.one_stage`, heads over regions in `whybox.detectors.two_stage`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from whybox.detectors.base import (
    Batch,
    Forward,
    Frame,
    Grids,
    Layer,
    Tap,
    Trace,
)
from whybox.detectors.network import PROBE, NetworkDetector
from whybox.detectors.roi_taps import RoiLevelTap
from whybox.detectors.stage_outputs import StageOutputs
from whybox.detectors.stage_taps import SharedTaps, StageTap, Upward
from whybox.detectors.taps import DenseLevelTap, PerLevelTap


class PyramidDetector(NetworkDetector):
    """A detector with stages, levels and a head.

    Attributes:
        model: see `NetworkDetector`; its ``backbone`` is below the heads.
    """

    traces = True

    @torch.no_grad()
    def forward(self, batch: Batch, *, keep: bool = False) -> Forward:
        """See `WhiteBoxDetector.forward`."""
        stages = self._body(batch.pixels)
        levels = self._pyramid(stages)
        forward = Forward(batch, stages, levels)
        self.run_head(forward, keep=keep)
        if not keep:
            forward.stages = {}
        return forward

    def trace(self, batch: Batch, held: Mapping[str, Tensor]) -> Trace:
        """See `WhiteBoxDetector.trace`."""
        with torch.enable_grad():
            pixels = batch.pixels.detach().requires_grad_()
            stages = self._body(pixels)
            levels = self._pyramid(stages)
        own = {name: level.detach() for name, level in levels.items()}
        forward = Forward(batch, {name: stage.detach() for name, stage in stages.items()}, own)
        with torch.no_grad():
            self._held_head(forward, held)
        return Trace(forward, pixels, list(levels.values()))

    @property
    def backbone(self) -> nn.Module:
        """See `WhiteBoxDetector.backbone`."""
        backbone: nn.Module = self.model.backbone
        return backbone

    @torch.enable_grad()
    def stage_outputs(self, batch: Batch, regions: Tensor | None = None) -> list[StageOutputs]:
        """See `WhiteBoxDetector.stage_outputs`."""
        forward = Forward(batch, {}, self._pyramid(self._body(batch.pixels)))
        return self._stage_outputs(forward, regions)

    @abstractmethod
    def _stage_outputs(self, forward: Forward, regions: Tensor | None) -> list[StageOutputs]:
        """Run the head over levels that have their graph; see `WhiteBoxDetector.stage_outputs`."""

    def _held_head(self, forward: Forward, held: Mapping[str, Tensor]) -> None:
        """Run the head for a trace; anchors are the same in every pass."""
        del held
        self.run_head(forward, keep=True)

    def taps(
        self,
        forward: Forward,
        image: int,
        layers: Sequence[str],
        candidates: Tensor,
        labels: Tensor,
        *,
        exact: bool = False,
    ) -> SharedTaps:
        """See `WhiteBoxDetector.taps`; the head's part is computed once for all layers."""
        self.require_layers(forward, layers)
        local = self._local_taps(forward, image, candidates, labels, exact=exact)
        names = [name for name in self.layers if name in layers and self.layers[name].kind == "stage"]
        stages = [forward.stages[name][image] for name in names]
        level_tap = local["level"]
        assert isinstance(level_tap, DenseLevelTap | PerLevelTap | RoiLevelTap)
        upward = Upward(
            level_tap,
            stages,
            lambda lowest: self._upward(names, lowest, forward, image),
        )
        one = torch.zeros_like(candidates)  # every candidate sees the same, only map
        for position, name in enumerate(names):
            local[name] = StageTap(upward, position, self._grids(forward, image, [name], one))
        return SharedTaps([local[layer] for layer in layers], upward)

    def _body(self, pixels: Tensor) -> dict[str, Tensor]:
        """Run the backbone: its stages, in order."""
        stages: dict[str, Tensor] = {}
        x = pixels
        for name, module, is_stage in self._chain():
            x = module(x)
            if is_stage:
                stages[name] = x
        return stages

    @torch.no_grad()
    def resume(self, forward: Forward, image: int, layer: str, maps: Sequence[Tensor]) -> Forward:
        """See `WhiteBoxDetector.resume`."""
        if not forward.stages:
            raise ValueError("expected a forward pass made with keep=True")
        if layer != "level" and layer not in forward.stages:
            raise ValueError(f"layer is one of level, {', '.join(forward.stages)}; got {layer!r}")
        own = list(forward.levels.values()) if layer == "level" else [forward.stages[layer]]
        if [m.shape[1:] for m in maps] != [m.shape[1:] for m in own]:
            raise ValueError(f"expected maps of the shapes of layer {layer!r}")
        levels = list(maps) if layer == "level" else self._upper(layer, maps[0], forward, image)
        count = len(maps[0])
        levels = [x.expand(count, -1, -1, -1) for x in levels]  # one that does not depend on the maps is one
        batch = forward.batch.copies(image, count)
        resumed = Forward(batch, {}, dict(zip(forward.levels, levels, strict=True)))
        self.run_head(resumed)
        return resumed

    def _upper(self, stage: str, activation: Tensor, forward: Forward, image: int) -> list[Tensor]:
        """Run the network from a stage's map (1, C, H, W) to all levels."""
        return self._upward([stage], activation, forward, image)[0]

    def _upward(
        self, names: Sequence[str], activation: Tensor, forward: Forward, image: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the network from the map (1, C, H, W) of the first of some stages, which come in order.

        Returns:
            All levels, and the maps of the stages.
        """
        below = True
        stages = {}
        x = activation
        for name, module, _ in self._chain():
            if name == names[0]:
                stages[name] = x
                below = False
            elif below and name in forward.stages:
                stages[name] = forward.stages[name][image : image + 1]
            elif not below:
                x = module(x)
                stages[name] = x
        return list(self._pyramid(stages).values()), [stages[name] for name in names]

    def _find_layers(self) -> dict[str, Layer]:
        """Run a small black picture through the network to see what its layers look like."""
        batch = Batch(self.weight.new_zeros(1, 3, PROBE, PROBE), (Frame(PROBE, PROBE, PROBE, PROBE),))
        forward = self.forward(batch, keep=True)
        level = next(iter(forward.levels.values()))
        local = [Layer("level", "level", level.shape[1])]
        if "roi" in self.stages:
            local.append(Layer("roi", "roi", level.shape[1]))
        stages = [
            Layer(name, "stage", stage.shape[1], PROBE / stage.shape[3])
            for name, stage in forward.stages.items()
        ]
        return {layer.name: layer for layer in [*local, *stages]}

    def _level_sizes(self, forward: Forward) -> list[tuple[int, int]]:
        return [(level.shape[2], level.shape[3]) for level in forward.levels.values()]

    def _level_grids(self, forward: Forward, image: int, which: Tensor) -> Grids:
        """Grids of the levels, and which of them each candidate has: int64 (N,)."""
        return self._grids(forward, image, forward.levels, which)

    @abstractmethod
    def _chain(self) -> Iterable[tuple[str, nn.Module, bool]]:
        """Return the backbone's modules, each run on the output of the one before.

        Each with its name, and whether its output is a stage.
        """

    @abstractmethod
    def _pyramid(self, stages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make the levels of the stages, finest first."""

    @abstractmethod
    def run_head(self, forward: Forward, *, keep: bool = False) -> None:
        """Run the head over all levels and leave its outputs in `forward.extra`."""

    @abstractmethod
    def _local_taps(
        self, forward: Forward, image: int, candidates: Tensor, labels: Tensor, *, exact: bool
    ) -> dict[str, Tap]:
        """Tap ``level``, and the other layers that are local to the candidate, by name."""
