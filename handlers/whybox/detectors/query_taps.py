"""Taps of query-based detectors: every query sees the whole of every layer, through all that lies above it.

Each gradient is a way back of its own through the network. What can be shared is: the network runs upwards
once, on copies of the layer that do not know of each other, and every backward pass takes a seed in each
copy, to all the layers that were asked for. So a pass has the operations, and the attention kernels, of a
forward pass over a batch.

Letters: N candidates, T targets, B copies, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whybox.detectors.base import Grids, Heat, Outputs, Tap, Taps, Target, Window
from whybox.detectors.dense import chunks
from whybox.detectors.taps import seeds_of

GRAPH_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}
"""Aim for what all copies of a graph keep, by the kind of device."""

HEAT_BYTES = 4 * 2**20
"""Aim for the gradients that are smoothed and weighed at a time, which takes three times as much besides."""

MAX_COPIES = 64

PASSES = 4
"""Backward passes that share a pass up, at least: with fewer, it would cost too much."""


@dataclass(frozen=True)
class Below:
    """A layer in the graph of an `Ascent`, or what a layer goes through to enter it.

    Attributes:
        tensor: to differentiate by; the copies come first.
        to_maps: lays gradients, of the tensor's shape, out as maps (B, C, h, w).
    """

    tensor: Tensor
    to_maps: Callable[[Tensor], Tensor] = lambda gradient: gradient


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
    """The way up from the lowest of some layers, with its graph, for B copies.

    Attributes:
        raw: name → float (B, Q, width), what the network says of its queries.
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
        ascend: Callable[[int], Ascent],
        candidates: Tensor,
        raw: Mapping[str, Tensor],
        outputs: Callable[[Mapping[str, Tensor]], Outputs],
        weights: Iterable[Tensor],
    ) -> None:
        """Take the way up for so many copies, the candidates int64 (N,), their raw outputs and decoding.

        Raw outputs are name → float (N, width). Of the weights there is one copy, whatever the graph keeps.
        """
        self._weights = weights
        self._ascend = ascend
        self.candidates = candidates
        self._raw = raw
        self._outputs = outputs
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
        count = len(targets)
        ascent, copies = self._copies(len(self.candidates), count)
        taken = [ascent.entries.get(name) if entries else None for name in names]
        belows = [
            ascent.layers[name] if entry is None else entry.below
            for name, entry in zip(names, taken, strict=True)
        ]
        shown = [None if entry is None else entry.values for entry in taken]
        # So many candidates that their seeds fill the copies.
        for part in chunks(len(self.candidates), copies // math.gcd(copies, count)):
            picks = torch.arange(part.start, part.stop, device=self.candidates.device)
            queries = self.candidates[picks].repeat_interleave(count)
            rows = {name: seed[picks].flatten(0, 1) for name, seed in seeds.items()}  # [n·T, width]
            pulled = _pull_all(ascent, belows, queries, rows, copies)
            made = [gradients.unflatten(0, (len(picks), count)) for gradients in pulled]
            yield picks, list(zip(shown, made, strict=True))
            del pulled, made  # before the next ones are made

    def _copies(self, candidates: int, targets: int) -> tuple[Ascent, int]:
        """Run upwards on as many copies as pay and fit: whole candidates, or less than one's targets."""
        own = {weight.untyped_storage().data_ptr() for weight in self._weights}
        kept: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            one = self._ascend(1)
        limit = GRAPH_BYTES.get(self.candidates.device.type, GRAPH_BYTES["cpu"])
        fit = limit // max(1, sum(kept.values()))
        copies = max(1, min(candidates * targets // PASSES, MAX_COPIES, fit))
        if copies > targets:
            copies -= copies % targets
        if copies == 1:
            return one, 1
        del one  # before what it is replaced by is made
        return self._ascend(copies), copies


def _pull_all(
    ascent: Ascent, belows: Sequence[Below], queries: Tensor, seeds: Mapping[str, Tensor], copies: int
) -> list[Tensor]:
    """Take m seeds back, so many at a time as there are copies: gradients (m, C, h, w) by each layer."""
    whole: list[Tensor] = []
    for few in chunks(len(queries), copies):
        pulled = _pull(ascent, belows, queries[few], {name: seed[few] for name, seed in seeds.items()})
        if not whole:
            whole = [part.new_empty((len(queries), *part.shape[1:])) for part in pulled]
        for gradients, part in zip(whole, pulled, strict=True):
            gradients[few] = part
    return whole


def _pull(
    ascent: Ascent, belows: Sequence[Below], queries: Tensor, seeds: Mapping[str, Tensor]
) -> list[Tensor]:
    """Take m seeds back, m <= B, each in a copy of its own: gradients (m, C, h, w) by each layer."""
    rows = torch.arange(len(queries), device=queries.device)
    starts = []
    for name, seed in seeds.items():
        start = torch.zeros_like(ascent.raw[name])  # [B, Q, width]
        start[rows, queries] = seed
        starts.append(start)
    pulled = torch.autograd.grad(
        [ascent.raw[name] for name in seeds],
        [below.tensor for below in belows],
        starts,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return [below.to_maps(gradient)[: len(queries)] for below, gradient in zip(belows, pulled, strict=True)]


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

    def heat_of(self, picks: Tensor, values: Tensor | None, gradients: Tensor, sigmas: Tensor | None) -> Heat:
        """Return the heat of n candidates, some of the T targets at a time; see `Window.heat`."""
        rows = max(1, HEAT_BYTES // gradients[:, :1].nbytes)
        parts = [
            self.window(picks, values, gradients[:, few]).heat(sigmas)
            for few in chunks(gradients.shape[1], rows)
        ]
        return replace(parts[0], values=torch.cat([part.values for part in parts], 1))

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
            for position, (tap, sigma) in enumerate(zip(self._layers, sigmas, strict=True)):
                yield position, tap.heat_of(picks, *made[position], sigma)
            del made  # before the next ones are made
