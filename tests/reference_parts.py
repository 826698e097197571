"""What the tests of gradient methods share: a pass over one picture, and its gradients the slow way."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from builders import LABELS, random_image, random_model
from slow_reference import (
    all_outputs_of,
    full_levels,
    gradients_of,
    held,
    outputs_of,
    region_outputs_of,
    smooth,
)
from whybox.detectors.base import Forward, Taps
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.methods.base import SIDES, Map, scalar
from whybox.methods.odam import odam_maps


@contextmanager
def double_precision() -> Iterator[None]:
    """Rounding must not hide a wrong gradient."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class Seen:
    """A detector with random weights, and its pass over one picture."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.model = random_model(architecture)
        self.detector: TorchvisionDetector = wrap(self.model, LABELS, background=True)
        # Padded to 96 x 128: the last row and column of the finest level lie on the padding.
        ((_, batch),) = self.detector.prepare([random_image(90, 118)])
        self.forward: Forward = self.detector.forward(batch, keep=True)

    def gradients(
        self,
        layer: str,
        candidate: int,
        label: int,
        level: int,
        targets: Sequence[tuple[str, str]],
        *,
        exact: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """The layer's whole map (C, H, W) and each target's gradient by it, one backward pass per scalar.

        Args:
            layer: name.
            candidate: position among the detector's candidates.
            label: that it is explained for.
            level: of the pyramid, where the layer is ``level``.
            targets: each with its ``score`` or ``logit``.
            exact: the statistics of a GroupNorm are not held.
        """
        dense = hasattr(self.model, "head")
        model, norms = held(self.model) if dense and not exact else (self.model, [])
        pixels = self.forward.batch.pixels
        proposals = self.forward.extra.get("proposals", [None])[0]
        if norms:
            outputs_of(model, pixels, OrderedDict(self.forward.levels), proposals)  # records the statistics
        for norm in norms:
            norm.recording = False
        if layer == "roi":
            proposals = proposals[candidate : candidate + 1]
            candidate = 0
            size = (pixels.shape[2], pixels.shape[3])
            leaf = model.roi_heads.box_roi_pool(self.forward.levels, [proposals], [size]).requires_grad_()
            answer = region_outputs_of(model, leaf, proposals)
        else:
            levels = OrderedDict(self.forward.levels)
            if layer == "level":
                name = list(levels)[level]
                leaf = levels[name].clone().requires_grad_()
                levels[name] = leaf
            else:
                leaf = self.forward.stages[layer].clone().requires_grad_()
                levels = full_levels(model, self.forward.stages, layer, leaf)
            scores, boxes, logits = all_outputs_of(model, pixels, levels, proposals)
            if dense:
                scores, logits = scores[:, 1:], logits[:, 1:]
            answer = scores, boxes, logits
        return leaf.detach()[0], gradients_of(answer, leaf, targets, candidate, label)


class SeenPicture(Protocol):
    """A detector with random weights, its pass over one picture, and gradients the slow way."""

    model: Any
    detector: Any
    forward: Forward

    def gradients(
        self,
        layer: str,
        candidate: int,
        label: int,
        level: int,
        targets: Sequence[tuple[str, str]],
        *,
        exact: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Seen.gradients`."""


TARGETS = (
    ("class", "score"),
    ("class:gamma", "score"),
    ("class", "logit"),
    ("class:gamma", "logit"),
    *((side, "score") for side in SIDES),
)
"""What is explained, and by which score of a class."""


class Case:
    """Candidates at a picture's corners and in between, and what the slow reference says of their maps.

    Args:
        seen: what `Seen` has: a detector, its pass over one picture, and the gradients.
    """

    def __init__(self, seen: SeenPicture) -> None:
        self.seen = seen
        self.model, self.detector, self.forward = seen.model, seen.detector, seen.forward
        count = len(self.detector.candidates(self.forward, 0).scores)
        if "anchors" in self.forward.extra:
            sizes = [level.shape[2] * level.shape[3] for level in self.forward.levels.values()]
            per_cell = self.forward.extra["per_cell"]
            starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
            # The first and last cell of every level, where windows meet borders, and one inside.
            chosen = (
                [per_cell * s for s in starts[:-1]] + [per_cell * s - 1 for s in starts[1:]] + [count // 3]
            )
        else:
            chosen = list(range(0, count, max(1, count // 6)))
        self.candidates = torch.tensor(chosen)
        self.labels = torch.arange(len(chosen)) % len(LABELS)
        self.known: dict[tuple[str, int, bool], tuple[Tensor, list[Tensor]]] = {}

    def taps(self, *layers: str, exact: bool = False) -> Taps:
        return self.detector.taps(self.forward, 0, layers, self.candidates, self.labels, exact=exact)

    def reference(self, layer: str, pick: int, level: int, *, exact: bool) -> tuple[Tensor, list[Tensor]]:
        """The layer's whole map (C, H, W) and each target's gradient, one backward pass per scalar."""
        key = (layer, pick, exact)
        if key not in self.known:
            candidate, label = int(self.candidates[pick]), int(self.labels[pick])
            self.known[key] = self.seen.gradients(layer, candidate, label, level, TARGETS, exact=exact)
        return self.known[key]


def compare_odam(case: Case, layers: Sequence[str], smoothing: float, *, exact: bool = False) -> None:
    """Compare the signed maps of some layers, made together, with the reference."""
    taps = case.taps(*layers, exact=exact)
    targets = [scalar(target, LABELS, score=score) for target, score in TARGETS]
    frame = case.forward.batch.frames[0]
    made = odam_maps(taps, targets, frame, smoothing=smoothing, sign="signed")
    for layer, tap, rows in zip(layers, taps.taps, made, strict=True):
        levels = getattr(tap, "candidate_levels", torch.zeros_like(case.candidates))
        compared = 0
        for pick in range(len(case.candidates)):
            activation, gradients = case.reference(layer, pick, int(levels[pick]), exact=exact)
            cell = tap.grids.cells[pick]
            box = tap.boxes[pick]
            spans = torch.minimum((box[2:] - box[:2]).clamp(min=0) / cell, tap.grids.sizes[pick])
            sigmas = smoothing * spans
            for gradient, one in zip(gradients, rows[pick], strict=True):
                if smoothing:
                    gradient = smooth(gradient, float(sigmas[0]), float(sigmas[1]))
                expected = (gradient * activation).sum(0)
                placed = paste_map(one, tap.grids.offsets[pick], cell, expected.shape)
                expected = on_picture(expected, tap, pick)
                largest = expected.abs().max()
                assert float((placed - expected).abs().max()) <= 1e-5 * float(largest) + 1e-30
                assert one.signed
                compared += int(largest > 0)
        assert compared > len(case.candidates), "most maps must have something to compare"


def paste_map(made: Map, offset: Tensor, cell: Tensor, shape: torch.Size) -> Tensor:
    """Put a map back onto its layer's grid by its region alone (image and network frame agree here)."""
    column = round((made.region[0] - float(offset[0])) / float(cell[0]))
    row = round((made.region[1] - float(offset[1])) / float(cell[1]))
    full = torch.zeros(shape)
    full[row : row + made.values.shape[0], column : column + made.values.shape[1]] = made.values.double()
    return full


def on_picture(values: Tensor, tap: object, pick: int) -> Tensor:
    columns, rows = tap.grids.sizes[pick].tolist()  # type: ignore[attr-defined]
    cut = values.clone()
    cut[rows:], cut[:, columns:] = 0, 0
    return cut
