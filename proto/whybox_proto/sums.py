"""Adds up what the chunks of a sampling method found, in the chunks' order, into heat maps.

A plan's samples are cut into rounds, and the maps into groups; one group of one round is a chunk. Chunks are
worked on anywhere and answered in any order, but added in their own: so the same samples give the same
map, bit for bit, whoever did the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from whybox_proto import maps
from whybox_proto.v1 import types_pb2, worker_pb2

Cells = NDArray[np.float64]

MAX_CELLS = 16 * 2**20
"""Of all maps of one answer together: adding them up takes 16 to 36 bytes a cell."""

SHARE_OF_DEADLINE = 0.8
"""Of the time that is left when no budget is given, or a larger one; the rest is for sending the answer."""


@dataclass(frozen=True)
class Chunk:
    """One unit of work.

    Attributes:
        index: its place in the order of adding.
        first: position of its first sample.
        count: of its samples.
        group: of maps.
    """

    index: int
    first: int
    count: int
    group: int


def chunks(plan: worker_pb2.Plan) -> Iterator[Chunk]:
    """Yield a plan's chunks in their order: round by round, and in each the groups."""
    index = 0
    for first in range(0, plan.samples, plan.round_samples):
        for group in range(plan.groups):
            yield Chunk(index, first, min(plan.round_samples, plan.samples - first), group)
            index += 1


def seconds_of(budget: types_pb2.Budget, remaining: float) -> float:
    """Return how long to go on drawing samples.

    Args:
        budget: asked for.
        remaining: seconds until nobody waits any more.
    """
    most = SHARE_OF_DEADLINE * remaining
    return min(budget.seconds, most) if budget.HasField("seconds") else most


@dataclass
class _Total:
    """What one map's rounds add up to."""

    header: types_pb2.HeatMap
    values: Cells
    weights: Cells
    squares: Cells
    rounds: NDArray[np.int32]

    @classmethod
    def empty(cls, part: worker_pb2.MapSum) -> _Total:
        shape = part.heat_map.height, part.heat_map.width
        over = shape if part.weights else (1, 1)
        return cls(part.heat_map, np.zeros(shape), np.zeros(over), np.zeros(shape), np.zeros(over, np.int32))

    def add(self, part: worker_pb2.MapSum) -> None:
        values = np.frombuffer(part.values, "<f4").astype(np.float64).reshape(self.values.shape)
        if part.weights:
            weights = np.frombuffer(part.weights, "<f4").astype(np.float64).reshape(self.weights.shape)
        else:
            weights = np.full((1, 1), part.weight)
        seen = weights > 0
        self.values += values
        self.weights += weights
        self.squares += np.divide(values**2, weights, out=np.zeros_like(values), where=seen)
        self.rounds += seen

    def mean(self) -> NDArray[np.float32]:
        """Values over weights; a cell without weight takes the nearest one that has some."""
        seen = np.broadcast_to(self.weights > 0, self.values.shape)
        mean = np.divide(self.values, self.weights, out=np.zeros_like(self.values), where=seen)
        return _filled(mean, seen).astype(np.float32)

    def standard_error(self) -> float | None:
        """Root mean square over the cells that two rounds or more have seen; None if there are none.

        The rounds' means scatter about their common mean with a variance in inverse proportion to their
        weights; from that scatter the common mean's own variance follows.
        """
        enough = np.broadcast_to(self.rounds > 1, self.values.shape)
        if not enough.any():
            return None
        weights = np.broadcast_to(self.weights, self.values.shape)[enough]
        rounds = np.broadcast_to(self.rounds, self.values.shape)[enough]
        scatter = np.maximum(self.squares[enough] - self.values[enough] ** 2 / weights, 0)
        return float(np.sqrt(np.mean(scatter / ((rounds - 1) * weights))))


@dataclass
class Totals:
    """The sums of a plan's chunks so far.

    Attributes:
        plan: whose chunks are added.
        samples: drawn in the rounds that are complete; only these count.
    """

    plan: worker_pb2.Plan
    samples: int = 0
    _next: int = 0
    _waiting: dict[int, worker_pb2.Sums] = field(default_factory=dict)
    _totals: dict[tuple[int, str], _Total] = field(default_factory=dict)

    def add(self, chunk: Chunk, sums: worker_pb2.Sums) -> bool:
        """Take a chunk's sums, in any order.

        Returns:
            Whether a round has become complete by it, and the maps have changed.
        """
        self._waiting[chunk.index] = sums
        before = self.samples
        groups = self.plan.groups
        while all(self._next + group in self._waiting for group in range(groups)):
            for index in range(self._next, self._next + groups):
                for part in self._waiting.pop(index).sums:
                    self._add(part)
            self._next += groups
            self.samples = min(self.samples + self.plan.round_samples, self.plan.samples)
        return self.samples > before

    def _add(self, part: worker_pb2.MapSum) -> None:
        key = part.heat_map.detection_index, part.heat_map.target
        if key not in self._totals:
            self._totals[key] = _Total.empty(part)
        self._totals[key].add(part)

    def values(self, detection: int, target: str) -> NDArray[np.float32]:
        """Return one map so far: float32 (h, w)."""
        return self._totals[detection, target].mean()

    def heat_maps(self, targets: Sequence[str], encoding: str) -> list[types_pb2.HeatMap]:
        """Write the maps so far, by detection and then in the order of the targets.

        Args:
            targets: as asked for.
            encoding: ``u8``, ``f32`` or ``png``.
        """
        made = []
        for detection, target in sorted(self._totals, key=lambda key: (key[0], targets.index(key[1]))):
            total = self._totals[detection, target]
            heat_map = types_pb2.HeatMap()
            heat_map.CopyFrom(total.header)
            maps.encode(total.mean(), heat_map, encoding)
            heat_map.samples = self.samples
            if (error := total.standard_error()) is not None:
                heat_map.standard_error = error
            made.append(heat_map)
        return made


def _filled(values: Cells, seen: NDArray[np.bool_]) -> Cells:
    """Give each cell that was not seen the value of the nearest one that was (ties: the first by rows)."""
    if seen.all() or not seen.any():
        return values
    rows, columns = np.nonzero(seen)
    filled = values.copy()
    for row, column in zip(*np.nonzero(~seen), strict=True):
        nearest = np.argmin((rows - row) ** 2 + (columns - column) ** 2)
        filled[row, column] = values[rows[nearest], columns[nearest]]
    return filled
