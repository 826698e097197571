"""What detectors that are one network share, whatever it looks like inside.

Where it is, how pictures of several sizes are batched for it, and that its layers are tapped together.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from whybox.detectors.base import Batch, Forward, Frame, Grids, Tap, Taps, WhiteBoxDetector
from whybox.detectors.taps import level_grids

PROBE = 128
"""Side of the picture that shows what the layers look like, in network pixels."""


class NetworkDetector(WhiteBoxDetector):
    """A detector that is one network.

    Attributes:
        model: the network, in evaluation mode, its weights frozen.
    """

    model: Any

    def __init__(self, model: Any, labels: Sequence[str]) -> None:
        """Take a network, which is put in evaluation mode, its weights frozen, and the classes' names."""
        self.model = model.eval().requires_grad_(False)
        self.labels = tuple(labels)

    @property
    def weight(self) -> Tensor:
        """Any of the weights: its device and dtype are the detector's."""
        parameter: Tensor = next(self.model.parameters())
        return parameter

    @property
    def device(self) -> torch.device:
        """See `Detector.device`."""
        return self.weight.device

    def to(self, device: torch.device | str) -> Self:
        """See `Detector.to`."""
        self.model.to(device)
        return self

    def require_labels(self, expected: int, hint: str = "") -> None:
        """Check the labels against the head.

        Args:
            expected: how many names the head has classes for.
            hint: what else might be meant, said at the end.

        Raises:
            ValueError: if there are not so many.
        """
        if len(self.labels) != expected:
            raise ValueError(f"labels: expected {expected} names for this head; got {len(self.labels)}{hint}")

    def require_layers(self, forward: Forward, layers: Sequence[str]) -> None:
        """Check that layers can be tapped.

        Raises:
            ValueError: if there is no such layer, or the pass was made without ``keep``.
        """
        for layer in layers:
            if layer not in self.layers:
                raise ValueError(f"layer is one of {', '.join(self.layers)}; got {layer!r}")
        if not forward.stages:
            raise ValueError("expected a forward pass made with keep=True")

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
        """See `WhiteBoxDetector.tap`: the only one of `taps`."""
        return self.taps(forward, image, [layer], candidates, labels, exact=exact).taps[0]

    @abstractmethod
    def taps(
        self,
        forward: Forward,
        image: int,
        layers: Sequence[str],
        candidates: Tensor,
        labels: Tensor,
        *,
        exact: bool = False,
    ) -> Taps:
        """See `WhiteBoxDetector.taps`; the layers are checked by `require_layers`."""

    def _grids(self, forward: Forward, image: int, names: Iterable[str], which: Tensor) -> Grids:
        """Grids of stages or levels by name, and which of them each candidate has: int64 (N,)."""
        padded = forward.batch.pixels.shape
        maps = [forward.levels[name] if name in forward.levels else forward.stages[name] for name in names]
        sizes = [(m.shape[-2], m.shape[-1]) for m in maps]
        return level_grids(forward.batch.frames[image], (padded[2], padded[3]), sizes, which)


def batches_of(prepared: Sequence[tuple[Tensor, Frame]]) -> list[tuple[list[int], Batch]]:
    """Batch prepared pictures (1, 3, H, W) that are of equal size; see `WhiteBoxDetector.prepare`."""
    groups: dict[torch.Size, list[int]] = {}
    for position, (pixels, _) in enumerate(prepared):
        groups.setdefault(pixels.shape, []).append(position)
    return [
        (group, Batch(torch.cat([prepared[i][0] for i in group]), tuple(prepared[i][1] for i in group)))
        for group in groups.values()
    ]
