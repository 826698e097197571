"""Taps of query-based detectors: every query sees the whole of every layer, through all that lies above it.

Each gradient is a backward pass of its own, and what can be shared is: the network runs upwards once, the
candidates' seeds are taken by their raw outputs, and many of them go back in one vectorised pass, to all the
layers that were asked for.

Letters: N candidates, T targets, S = n·T seeds of a part of them, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whybox.detectors.base import Grids, Heat, Outputs, Tap, Taps, Target, Window
from whybox.detectors.dense import chunks
from whybox.detectors.taps import seeds_of

GRADIENT_BYTES = 64 * 2**20
"""Aim for the largest tensor of a vectorised backward pass."""


@dataclass(frozen=True)
class Below:
    """A layer in the graph of an `Ascent`, or what a layer goes through to enter it.

    Attributes:
        tensor: to differentiate by.
        to_map: lays gradients (S, *tensor.shape) out as maps (S, C, h, w).
    """

    tensor: Tensor
    to_map: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """The only way out of a layer: a 1x1 convolution W.

    The gradient by the layer is Wᵀ g with g that by the convolution's output, and Φ works on each channel
    alone, so that Σ_k Φ(Wᵀ g)_k A_k = Σ_c Φ(g_c) (W A)_c: fewer channels to spread and to multiply.

    Attributes:
        below: the convolution's output, in the graph.
        values: float (C', h, w), W A without a bias.
    """

    below: Below
    values: Tensor


@dataclass(frozen=True)
class Ascent:
    """The way up from the lowest of some layers, with its graph.

    Attributes:
        raw: name → float (1, Q, width), what the network says of its queries.
        layers: name → layer.
        entries: name → entry, for layers that have one.
    """

    raw: Mapping[str, Tensor]
    layers: Mapping[str, Below]
    entries: Mapping[str, Entry]


class QueryViews:
    """N chosen queries of one picture and the layers they are seen from."""

    def __init__(
        self,
        ascend: Callable[[], Ascent],
        candidates: Tensor,
        raw: Mapping[str, Tensor],
        outputs: Callable[[Mapping[str, Tensor]], Outputs],
        row_bytes: int,
    ) -> None:
        """Take the way up, the candidates int64 (N,), their raw outputs (N, width) and their decoding.

        `row_bytes` is of the largest tensor that one gradient needs on its way.
        """
        self._ascend = ascend
        self.candidates = candidates
        self._raw = raw
        self._outputs = outputs
        self._row_bytes = row_bytes
        self.boxes = outputs(raw).sides

    def gradients(
        self, targets: Sequence[Target], names: Sequence[str], *, entries: bool = False
    ) -> Iterator[tuple[Tensor, list[tuple[Tensor | None, Tensor]]]]:
        """Yield gradients of a part of the candidates by some layers.

        Args:
            targets: T scalars of each candidate.
            names: of the layers.
            entries: by the entries of the layers that have one, instead of the layers themselves.

        Yields:
            picks, int64 (n,); for each layer what stands for its activations where that is an entry's values
            (C', h, w), else None, and the gradients (n, T, C, h, w).
        """
        seeds = seeds_of(targets, self._outputs, self._raw)
        ascent = self._ascend()
        tops = [ascent.raw[name] for name in seeds]
        taken = [ascent.entries.get(name) if entries else None for name in names]
        belows = [
            ascent.layers[name] if entry is None else entry.below
            for name, entry in zip(names, taken, strict=True)
        ]
        for part in chunks(len(self.candidates), GRADIENT_BYTES // (self._row_bytes * len(targets))):
            picks = torch.arange(part.start, part.stop, device=self.candidates.device)
            count = len(picks) * len(targets)
            queries = self.candidates[picks].repeat_interleave(len(targets))
            rows = torch.arange(count, device=queries.device)
            starts = []
            for top, seed in zip(tops, seeds.values(), strict=True):
                start = top.new_zeros((count, *top.shape))  # [S, 1, Q, width]
                start[rows, 0, queries] = seed[picks].flatten(0, 1)
                starts.append(start)
            pulled = torch.autograd.grad(
                tops,
                [below.tensor for below in belows],
                starts,
                retain_graph=True,
                is_grads_batched=True,
                allow_unused=True,
                materialize_grads=True,
            )
            yield (
                picks,
                [
                    (
                        None if entry is None else entry.values,
                        below.to_map(gradient).unflatten(0, (len(picks), len(targets))),
                    )
                    for entry, below, gradient in zip(taken, belows, pulled, strict=True)
                ],
            )


class QueryTap(Tap):
    """One layer, seen from queries; a window is the whole map, which needs no margin."""

    def __init__(self, views: QueryViews, name: str, activation: Tensor, grids: Grids) -> None:
        """Take the views, the layer's name, its map (C, h, w) and its grid."""
        self.views = views
        self.name = name
        self.activation = activation
        self.grids = grids
        self.boxes = views.boxes

    def whole(self, pick: int) -> Tensor:
        """See `Tap.whole`: every candidate sees the same map."""
        del pick
        return self.activation

    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """See `Tap.windows`."""
        del margin
        for picks, ((_, gradients),) in self.views.gradients(targets, [self.name]):
            yield self.window(picks, None, gradients)

    def heat(self, targets: Sequence[Target], sigmas: Tensor | None = None) -> Iterator[Heat]:
        """See `Tap.heat`; through the layer's entry where it has one."""
        for _, heat in QueryTaps([self]).heat(targets, [sigmas]):
            yield heat

    def window(self, picks: Tensor, values: Tensor | None, gradients: Tensor) -> Window:
        """Return the window of n candidates: the whole map."""
        shown = self.activation if values is None else values
        return Window(
            picks=picks,
            activations=shown.expand(len(picks), *shown.shape),
            gradients=gradients,
            origins=torch.zeros((len(picks), 2), dtype=torch.int64, device=picks.device),
        )


class QueryTaps(Taps):
    """Several layers, seen from the same queries: one way back leads to all of them."""

    def __init__(self, taps: Sequence[QueryTap]) -> None:
        """Take taps of the same views."""
        super().__init__(taps)
        self._layers = taps

    def heat(self, targets: Sequence[Target], sigmas: Sequence[Tensor | None]) -> Iterator[tuple[int, Heat]]:
        """See `Taps.heat`."""
        names = [tap.name for tap in self._layers]
        for picks, made in self._layers[0].views.gradients(targets, names, entries=True):
            for position, (tap, sigma, (values, gradients)) in enumerate(
                zip(self._layers, sigmas, made, strict=True)
            ):
                yield position, tap.window(picks, values, gradients).heat(sigma)
