"""Sums of chunks add up to maps: in their order, whatever order they come in."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from whybox_proto import maps
from whybox_proto.errors import ContractError
from whybox_proto.sums import Chunk, Totals, _filled, chunks, members, seconds_of
from whybox_proto.v1 import types_pb2, worker_pb2

Array = NDArray[np.float32]


def part(
    values: Array, weight: float | Array, detection: int = 0, target: str = "class"
) -> worker_pb2.MapSum:
    """One map's sum over a chunk."""
    height, width = values.shape
    header = types_pb2.HeatMap(detection_index=detection, target=target, width=width, height=height)
    made = worker_pb2.MapSum(heat_map=header, values=values.astype("<f4").tobytes())
    if isinstance(weight, np.ndarray):
        made.weights = weight.astype("<f4").tobytes()
    else:
        made.weight = weight
    return made


def one(*args: object, **fields: object) -> worker_pb2.Sums:
    """A chunk's sums of a single map."""
    return worker_pb2.Sums(sums=[part(*args, **fields)])  # type: ignore[arg-type]


def filled_slowly(values: NDArray[np.float64], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The obvious way: the nearest cell among all that were seen, the first of equals."""
    rows, columns = np.nonzero(seen)
    filled = values.copy()
    for row, column in zip(*np.nonzero(~seen), strict=True):
        nearest = np.argmin((rows - row) ** 2 + (columns - column) ** 2)
        filled[row, column] = values[rows[nearest], columns[nearest]]
    return filled


def test_a_plan_is_cut_round_by_round_and_in_each_by_groups() -> None:
    plan = worker_pb2.Plan(samples=7, round_samples=3, groups=2)
    assert list(chunks(plan)) == [
        Chunk(0, 0, 3, 0),
        Chunk(1, 0, 3, 1),
        Chunk(2, 3, 3, 0),
        Chunk(3, 3, 3, 1),
        Chunk(4, 6, 1, 0),
        Chunk(5, 6, 1, 1),
    ]


@pytest.mark.parametrize(("detections", "groups"), [(1, 1), (5, 2), (7, 7), (100, 9)])
def test_groups_share_the_detections_out_in_order(detections: int, groups: int) -> None:
    cut = [list(members(detections, groups, group)) for group in range(groups)]
    assert list(itertools.chain(*cut)) == list(range(detections))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1
    assert all(cut)


def test_the_order_of_arrival_changes_no_bit() -> None:
    random = np.random.default_rng(0)
    plan = worker_pb2.Plan(samples=9, round_samples=2, groups=2)
    sums = {}
    for chunk in chunks(plan):
        # Sizes apart by many orders of magnitude: in another order the sums would round otherwise.
        values = random.normal(size=(2, 3, 4)) * 10.0 ** random.integers(-6, 7, (2, 3, 4))
        weights = random.random((3, 4)) * chunk.count
        sums[chunk] = worker_pb2.Sums(
            sums=[
                part(v.astype(np.float32), weights, chunk.group, t) for v, t in zip(values, "ab", strict=True)
            ]
        )
    expected: list[types_pb2.HeatMap] = []
    for trial in range(20):
        order = list(sums)
        if trial:
            random.shuffle(order)
        totals = Totals(plan)
        for chunk in order:
            totals.add(chunk, sums[chunk])
        made = totals.heat_maps(["b", "a"], "f32")
        expected = expected or made
        assert made == expected
        assert totals.samples == 9
    assert [(m.detection_index, m.target) for m in expected] == [(0, "b"), (0, "a"), (1, "b"), (1, "a")]


def test_a_map_is_the_sum_over_the_weights() -> None:
    plan = worker_pb2.Plan(samples=4, round_samples=2, groups=1)
    totals = Totals(plan)
    first, second = chunks(plan)
    totals.add(first, one(np.array([[1.0, 2.0]], np.float32), 2.0))
    totals.add(second, one(np.array([[3.0, 6.0]], np.float32), 2.0))
    assert totals.values(0, "class").tolist() == [[1.0, 2.0]]
    (made,) = totals.heat_maps(["class"], "f32")
    assert made.samples == 4
    assert maps.decode(made).tolist() == [[1.0, 2.0]]


def test_the_standard_error_is_that_of_a_mean() -> None:
    """Rounds of one sample: the textbook's s / √n, its root mean square over the cells."""
    random = np.random.default_rng(1)
    samples = random.normal(3.0, 2.0, (50, 4, 5)).astype(np.float32)
    plan = worker_pb2.Plan(samples=50, round_samples=1, groups=1)
    totals = Totals(plan)
    for chunk, values in zip(chunks(plan), samples, strict=True):
        totals.add(chunk, one(values, 1.0))
    error = samples.astype(np.float64).std(0, ddof=1) / np.sqrt(50)
    (made,) = totals.heat_maps(["class"], "f32")
    assert made.standard_error == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-6)


def test_the_standard_error_covers_the_truth_as_often_as_it_says() -> None:
    """Rounds of unequal weight: over many trials the squared error is, on average, what was estimated."""
    random = np.random.default_rng(2)
    plan = worker_pb2.Plan(samples=11, round_samples=4, groups=1)  # rounds of 4, 4 and 3
    estimated, real = [], []
    for _ in range(400):
        totals = Totals(plan)
        for chunk in chunks(plan):
            drawn = random.normal(1.0, 1.0, (chunk.count, 3, 3))
            totals.add(chunk, one(drawn.sum(0).astype(np.float32), float(chunk.count)))
        (made,) = totals.heat_maps(["class"], "f32")
        estimated.append(made.standard_error**2)
        real.append(float(((totals.values(0, "class") - 1.0) ** 2).mean()))
    assert np.mean(estimated) == pytest.approx(np.mean(real), rel=0.1)
    assert np.mean(real) == pytest.approx(1 / 11, rel=0.1)


def test_one_round_has_no_standard_error() -> None:
    plan = worker_pb2.Plan(samples=2, round_samples=2, groups=1)
    totals = Totals(plan)
    totals.add(next(chunks(plan)), one(np.ones((2, 2), np.float32), 2.0))
    (made,) = totals.heat_maps(["class"], "f32")
    assert not made.HasField("standard_error")


class TestCheck:
    """Sums that came from elsewhere: of the chunk's maps, with the cells of the chunks before."""

    plan = worker_pb2.Plan(samples=4, round_samples=2, groups=2)
    asked = 3, ("class", "x1")
    """Detections, of which the first group has one, the second two; and targets."""

    def sums(self, group: int, shape: tuple[int, int] = (2, 3), weight: Any = 2.0) -> worker_pb2.Sums:
        values = np.ones(shape, np.float32)
        detections, targets = self.asked
        keys = itertools.product(members(detections, 2, group), targets)
        return worker_pb2.Sums(sums=[part(values, weight, i, target) for i, target in keys])

    def test_the_cells_of_a_group_are_told_once(self) -> None:
        totals, told = Totals(self.plan), []
        for chunk in chunks(self.plan):
            sums = self.sums(chunk.group)
            told.append(totals.check(chunk, sums, *self.asked))
            totals.add(chunk, sums)
        assert told == [2 * 6, 4 * 6, 0, 0]
        assert len(totals.heat_maps(["class", "x1"], "u8")) == 6

    @pytest.mark.parametrize("first", [False, True], ids=["a later round", "the first round"])
    @pytest.mark.parametrize(
        ("field", "value", "why"),
        [
            ("detection_index", 1, "maps"),
            ("target", "y1", "maps"),
            ("target", "x1", "maps"),
            ("width", 4, "bytes"),
            ("height", 0, "bytes"),
            ("width", 2**31, "bytes"),
        ],
    )
    def test_another_map_is_an_internal_error(self, field: str, value: Any, why: str, first: bool) -> None:
        totals = Totals(self.plan)
        one, _, other, _ = chunks(self.plan)
        if not first:
            totals.check(one, self.sums(0), *self.asked)
        sums = self.sums(0)
        setattr(sums.sums[0].heat_map, field, value)
        with pytest.raises(ContractError, match=f"cannot be added up: its {why}") as caught:
            totals.check(one if first else other, sums, *self.asked)
        assert caught.value.type == "internal"

    def test_a_map_too_many_or_too_few(self) -> None:
        chunk = next(chunks(self.plan))
        for change in (lambda sums: sums.append(sums[0]), lambda sums: sums.pop()):
            sums = self.sums(0)
            change(sums.sums)
            with pytest.raises(ContractError, match="its maps are not"):
                Totals(self.plan).check(chunk, sums, *self.asked)

    @pytest.mark.parametrize(
        ("shape", "weight"), [((3, 2), 2.0), ((4, 4), 2.0), ((2, 3), np.ones((2, 3), np.float32))]
    )
    def test_other_cells_in_another_round(self, shape: tuple[int, int], weight: Any) -> None:
        totals = Totals(self.plan)
        first, _, second, _ = chunks(self.plan)
        totals.check(first, self.sums(0), *self.asked)
        with pytest.raises(ContractError, match="other cells than in another round"):
            totals.check(second, self.sums(0, shape, weight), *self.asked)

    def test_weights_for_other_cells(self) -> None:
        sums = self.sums(0, weight=np.ones((2, 2), np.float32))
        with pytest.raises(ContractError, match="its bytes are not"):
            Totals(self.plan).check(next(chunks(self.plan)), sums, *self.asked)


class TestWeightsByCell:
    """Sums with a number for each cell."""

    plan = worker_pb2.Plan(samples=3, round_samples=1, groups=1)

    def totals(self, rounds: list[tuple[list[float], list[float]]]) -> Totals:
        totals = Totals(self.plan)
        for chunk, (values, weights) in zip(chunks(self.plan), rounds, strict=False):
            totals.add(chunk, one(np.array([values], np.float32), np.array([weights], np.float32)))
        return totals

    def test_each_cell_has_its_own_mean(self) -> None:
        totals = self.totals([([2, 0, 1], [1, 0, 4]), ([4, 6, 0], [1, 2, 0])])
        assert totals.values(0, "class").tolist() == [[3.0, 3.0, 0.25]]

    def test_cells_without_weight_take_their_nearest_neighbour(self) -> None:
        totals = self.totals([([5, 0, 0], [1, 0, 0]), ([0, 0, 8], [0, 0, 1])])
        assert totals.values(0, "class").tolist() == [[5.0, 5.0, 8.0]]

    def test_only_cells_of_two_rounds_have_an_error(self) -> None:
        totals = self.totals([([1, 9, 0], [1, 1, 0]), ([3, 0, 0], [1, 0, 0])])
        (made,) = totals.heat_maps(["class"], "f32")
        assert made.standard_error == pytest.approx(1.0)  # of 1 and 3: s = √2, over √2

    def test_a_map_without_any_weight_is_zero_and_said_to_be(self) -> None:
        totals = self.totals([([0, 0, 0], [0, 0, 0])])
        assert totals.values(0, "class").tolist() == [[0.0, 0.0, 0.0]]
        assert totals.warnings(1)[-1] == "no sample counted for detection 0: maps of zeros"


@pytest.mark.parametrize("seed", range(20))
def test_filling_is_that_of_the_obvious_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 24, 2))
    seen = random.random(shape) < random.choice([0.02, 0.2, 0.7])
    values = np.where(seen, random.random(shape), 0)
    assert np.array_equal(_filled(values, seen), filled_slowly(values, seen))


def test_filling_settles_ties_by_rows_then_columns() -> None:
    seen = np.zeros((3, 3), bool)
    seen[0, 1] = seen[1, 0] = seen[1, 2] = seen[2, 1] = True
    values = np.arange(9.0).reshape(3, 3) * seen
    filled = _filled(values, seen)
    assert filled[1, 1] == 1  # (0, 1), (1, 0), (1, 2) and (2, 1) are equally near
    assert filled[2, 2] == 5  # (1, 2) before (2, 1)


def test_filling_a_large_map() -> None:
    seen = np.zeros((512, 512), bool)
    seen[::16, ::16] = True
    values = np.random.default_rng(0).random(seen.shape) * seen
    filled = _filled(values, seen)
    assert np.array_equal(filled[:40, :40], filled_slowly(values[:48, :48], seen[:48, :48])[:40, :40])


class TestGroups:
    """Each group of detections is added for itself."""

    plan = worker_pb2.Plan(samples=3, round_samples=1, groups=2)

    def sums(self, chunk: Chunk) -> worker_pb2.Sums:
        return one(np.full((1, 1), 1.0 + chunk.index, np.float32), 1.0, chunk.group)

    def test_a_chunk_waits_for_the_earlier_ones_of_its_group(self) -> None:
        totals = Totals(self.plan)
        c = list(chunks(self.plan))
        assert not totals.started
        assert not totals.add(c[2], self.sums(c[2]))  # round 1 of group 0, before its round 0
        assert totals.heat_maps(["class"], "f32") == []
        assert totals.add(c[1], self.sums(c[1]))
        assert totals.started
        assert (totals.samples, totals.samples_of(0), totals.samples_of(1)) == (0, 0, 1)
        assert totals.add(c[0], self.sums(c[0]))
        assert (totals.samples, totals.samples_of(0), totals.samples_of(1)) == (1, 2, 1)
        assert [m.samples for m in totals.heat_maps(["class"], "f32")] == [2, 1]
        assert totals.values(0, "class").tolist() == [[2.0]]  # of 1 and 3

    def test_warnings_say_what_was_not_drawn(self) -> None:
        totals = Totals(self.plan)
        c = list(chunks(self.plan))
        assert totals.warnings(0) == []
        totals.add(c[0], self.sums(c[0]))
        assert totals.warnings(5) == [
            "the time was used up after 1 of 3 samples",
            "the time was used up before detections 2 to 4 could be explained",
        ]
        totals.add(c[1], self.sums(c[1]))
        assert totals.warnings(5) == ["the time was used up after 1 of 3 samples"]
        totals.add(c[2], self.sums(c[2]))
        assert totals.warnings(5) == ["the time was used up after 1 to 2 of 3 samples"]
        for chunk in c[3:]:
            totals.add(chunk, self.sums(chunk))
        assert totals.warnings(5) == []

    def test_a_last_round_that_is_not_full_counts_what_it_has(self) -> None:
        plan = worker_pb2.Plan(samples=5, round_samples=3, groups=1)
        totals = Totals(plan)
        for chunk in chunks(plan):
            totals.add(chunk, one(np.ones((1, 1), np.float32), float(chunk.count)))
        assert totals.samples == 5
        assert totals.heat_maps(["class"], "f32")[0].samples == 5


def test_the_time_for_samples() -> None:
    assert seconds_of(types_pb2.Budget(seconds=3.0), 60.0) == 3.0
    assert seconds_of(types_pb2.Budget(seconds=100.0), 60.0) == pytest.approx(48.0)
    assert seconds_of(types_pb2.Budget(samples=4), 60.0) == pytest.approx(48.0)
    assert seconds_of(types_pb2.Budget(), float("inf")) == float("inf")
