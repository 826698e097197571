"""Adds up what the chunks of a sampling method found, in the chunks' order, into heat maps.

A plan's samples are cut into rounds, and the detections into groups; one group of one round is a chunk.
Chunks are worked on anywhere and answered in any order, but those of one group are added in the order of
their rounds: so the same samples give the same map, bit for bit, whoever did the work. Groups share nothing,
so when the time is used up within a round, the maps of the groups that were reached keep their last sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from whybox_proto import maps
from whybox_proto.errors import ContractError
from whybox_proto.v1 import types_pb2, worker_pb2

Cells = NDArray[np.float64]
# Of a group's maps, by detection and target: height, width, and whether each cell has its own weight.
_Shapes: TypeAlias = dict[tuple[int, str], tuple[int, int, bool]]

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
        group: of detections; see `members`.
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


def members(detections: int, groups: int, group: int) -> range:
    """Return the positions of the detections that a group holds; groups cut them in order."""
    return range(detections * group // groups, detections * (group + 1) // groups)


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
    samples: int = 0

    @classmethod
    def empty(cls, part: worker_pb2.MapSum) -> _Total:
        shape = part.heat_map.height, part.heat_map.width
        over = shape if part.weights else (1, 1)
        return cls(part.heat_map, np.zeros(shape), np.zeros(over), np.zeros(shape), np.zeros(over, np.int32))

    def add(self, part: worker_pb2.MapSum, samples: int) -> None:
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
        self.samples += samples

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
    """

    plan: worker_pb2.Plan
    _rounds: dict[int, int] = field(default_factory=dict)
    _waiting: dict[int, tuple[Chunk, worker_pb2.Sums]] = field(default_factory=dict)
    _shapes: dict[int, _Shapes] = field(default_factory=dict)
    _totals: dict[tuple[int, str], _Total] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples that every map holds at least; 0 until each group has been reached."""
        return min(map(self.samples_of, range(self.plan.groups)), default=0)

    @property
    def started(self) -> bool:
        """Whether there is any map yet."""
        return bool(self._rounds)

    @property
    def waiting(self) -> int:
        """Chunks that were taken and are not added: an earlier one of their group is missing."""
        return len(self._waiting)

    def samples_of(self, group: int) -> int:
        """Return the samples that the maps of a group hold."""
        return min(self._rounds.get(group, 0) * self.plan.round_samples, self.plan.samples)

    def check(self, chunk: Chunk, sums: worker_pb2.Sums, detections: int, targets: Sequence[str]) -> int:
        """Check that sums from elsewhere are those of a chunk, before anything is made of them.

        They hold the maps of the chunk's group, each with all of its cells, and as many as in other rounds.

        Args:
            chunk: that was asked for.
            sums: that came.
            detections: of all groups.
            targets: as asked for.

        Returns:
            Cells of all the group's maps where it is its first chunk that is checked; 0 for further ones.

        Raises:
            ContractError: `internal`, where they are not.
        """
        shapes: _Shapes = {}
        for part in sums.sums:
            shape = part.heat_map.height, part.heat_map.width
            size = 4 * shape[0] * shape[1]
            if not size or len(part.values) != size or len(part.weights) not in (0, size):
                raise _strange("its bytes are not those of its cells")
            shapes[part.heat_map.detection_index, part.heat_map.target] = *shape, bool(part.weights)
        due = {(i, t) for i in members(detections, self.plan.groups, chunk.group) for t in targets}
        if shapes.keys() != due or len(sums.sums) != len(due):
            raise _strange("its maps are not those of its detections and targets")
        if chunk.group in self._shapes:
            if self._shapes[chunk.group] != shapes:
                raise _strange("its maps have other cells than in another round")
            return 0
        self._shapes[chunk.group] = shapes
        return sum(height * width for height, width, _ in shapes.values())

    def add(self, chunk: Chunk, sums: worker_pb2.Sums) -> bool:
        """Take a chunk's sums, in any order.

        Returns:
            Whether maps have changed: not while an earlier chunk of the same group is missing.
        """
        self._waiting[chunk.index] = chunk, sums
        group, changed = chunk.group, False
        while (index := self._rounds.get(group, 0) * self.plan.groups + group) in self._waiting:
            next_chunk, next_sums = self._waiting.pop(index)
            for part in next_sums.sums:
                key = part.heat_map.detection_index, part.heat_map.target
                if key not in self._totals:
                    self._totals[key] = _Total.empty(part)
                self._totals[key].add(part, next_chunk.count)
            self._rounds[group] = self._rounds.get(group, 0) + 1
            changed = True
        return changed

    def values(self, detection: int, target: str) -> NDArray[np.float32]:
        """Return one map so far: float32 (h, w).

        Raises:
            KeyError: if its group has not been reached yet.
        """
        return self._totals[detection, target].mean()

    def heat_maps(self, targets: Sequence[str], encoding: str) -> list[types_pb2.HeatMap]:
        """Write the maps so far, by detection and then in the order of the targets.

        Maps of a group that has not been reached are left out; `warnings` says so.

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
            heat_map.samples = total.samples
            if (error := total.standard_error()) is not None:
                heat_map.standard_error = error
            made.append(heat_map)
        return made

    def warnings(self, detections: int) -> list[str]:
        """Say what a reader of the maps must know: samples that were not drawn, maps that hold none.

        Args:
            detections: of the answer.
        """
        said = []
        groups = self.plan.groups
        drawn = [self.samples_of(group) for group in range(groups)] if detections else []
        reached = [samples for samples in drawn if samples]
        if drawn and min(drawn) < self.plan.samples:
            least, most = min(reached, default=0), max(drawn)
            number = f"{least}" if least == most else f"{least} to {most}"
            said.append(f"the time was used up after {number} of {self.plan.samples} samples")
        left = [i for g, n in enumerate(drawn) if not n for i in members(detections, groups, g)]
        if left:
            said.append(f"the time was used up before {_detections(left)} could be explained")
        empty = sorted({key[0] for key, total in self._totals.items() if not (total.weights > 0).any()})
        if empty:
            said.append(f"no sample counted for {_detections(empty)}: maps of zeros")
        return said


def _strange(why: str) -> ContractError:
    return ContractError("internal", f"the worker's chunk of samples cannot be added up: {why}")


def _detections(positions: Sequence[int]) -> str:
    """Name detections, neighbours together."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][-1] == position - 1:
            runs[-1] = [runs[-1][0], position]
        else:
            runs.append([position])
    named = ", ".join(" to ".join(map(str, run)) for run in runs)
    return f"detection{'s' if len(positions) > 1 else ''} {named}"


def _filled(values: Cells, seen: NDArray[np.bool_]) -> Cells:
    """Give each cell that was not seen the value of the nearest one that was (ties: the first by rows).

    The nearest one of each column is found first; then the columns are looked at by their distance, until no
    cell can find a nearer one.
    """
    if seen.all() or not seen.any():
        return values
    height, width = seen.shape
    cells, far = height * width, 2**62
    rows, columns = np.arange(height)[:, None], np.arange(width)

    def keys(source: NDArray[np.int64]) -> NDArray[np.int64]:
        # Squared distance first, then the source's place by rows: the least key is the nearest, ties settled.
        return np.where(source < 0, far, (rows - source) ** 2 * cells + source * width + columns)

    above = np.maximum.accumulate(np.where(seen, rows, -1), 0)
    below = height - 1 - np.maximum.accumulate(np.where(seen, height - 1 - rows, -1)[::-1], 0)[::-1]
    nearest = np.minimum(keys(above), keys(np.where(below < height, below, -1)))
    missing = np.nonzero(~seen)
    best = nearest[missing]
    open_ = np.arange(len(best))
    for step in range(1, width):
        open_ = open_[best[open_] >= step**2 * cells]
        if not len(open_):
            break
        row, column = missing[0][open_], missing[1][open_]
        for side in (column - step, column + step):
            inside = (side >= 0) & (side < width)
            found = nearest[row[inside], side[inside]] + step**2 * cells
            best[open_[inside]] = np.minimum(best[open_[inside]], found)
    filled = values.copy()
    filled[missing] = values.ravel()[best % cells]
    return filled
