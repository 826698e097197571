"""Measures of maps: arithmetic on small maps, and obvious references on random ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from whybox.metrics import overlap, perturbation
from whybox.metrics.measures import MEASURES, Subject, Truth, take
from whybox.metrics.pointing import Mask, Values, box_mask, energies, energy_share, pointing_game
from whybox.metrics.shape import compactness, object_discrimination, sparsity


def map_of(*rows: Iterable[float]) -> Values:
    return np.array([list(row) for row in rows], np.float32)


def mask_of(*rows: str) -> Mask:
    """Rows of ``#`` and ``.``."""
    return np.array([[cell == "#" for cell in row] for row in rows])


def random_map(seed: int, height: int = 11, width: int = 14) -> Values:
    values = np.random.default_rng(seed).random((height, width), np.float32)
    return np.maximum(values - np.float32(0.3), np.float32(0))


def random_mask(seed: int, height: int = 11, width: int = 14) -> Mask:
    mask: Mask = np.random.default_rng(seed + 100).random((height, width)) < 0.3
    return mask


class TestEnergies:
    def test_what_speaks_against_has_none(self) -> None:
        assert energies(map_of([-1, 2, 0]), signed=True).tolist() == [[0, 2, 0]]

    def test_an_even_level_has_none(self) -> None:
        assert energies(map_of([3, 5, 4]), signed=False).tolist() == [[0, 2, 1]]
        assert not energies(map_of([3, 3]), signed=False).any()


class TestPointing:
    def test_a_hit_and_a_miss(self) -> None:
        values = map_of([0, 1, 0], [0, 0, 3])
        assert pointing_game(values, mask_of("...", "..#")) == 1
        assert pointing_game(values, mask_of("###", "##.")) == 0

    def test_equal_maxima_share_the_hit(self) -> None:
        assert pointing_game(map_of([2, 2, 0, 2]), mask_of("#..#")) == pytest.approx(2 / 3)

    def test_a_map_without_energy_points_nowhere(self) -> None:
        assert pointing_game(map_of([0, 0]), mask_of("##")) == 0
        assert energy_share(map_of([0, 0]), mask_of("##")) == 0

    def test_energy(self) -> None:
        assert energy_share(map_of([1, 2], [3, 4]), mask_of("#.", ".#")) == pytest.approx(0.5)


class TestCompactness:
    def test_one_pixel_is_a_point(self) -> None:
        assert compactness(map_of([0, 0], [0, 5]), (0, 0, 3, 4)) == 0

    def test_by_hand(self) -> None:
        # Half the energy at the peak, half 3 pixels to its right and 4 below: mean squared distance 25 / 2.
        values = np.zeros((6, 6), np.float32)
        values[1, 1] = values[5, 4] = 2  # of equal maxima the first by rows
        # Half the diagonal of a box of 6 by 8 is 5.
        assert compactness(values, (10, 10, 16, 18)) == pytest.approx(math.sqrt(12.5) / 5)

    def test_the_loop(self) -> None:
        values = random_map(1)
        peak = divmod(int(values.argmax()), values.shape[1])
        total = sum(
            values[y, x] * ((y - peak[0]) ** 2 + (x - peak[1]) ** 2)
            for y in range(values.shape[0])
            for x in range(values.shape[1])
        )
        expected = math.sqrt(total / values.sum() / (0.25 * (5**2 + 7**2)))
        assert compactness(values, (1, 2, 6, 9)) == pytest.approx(expected, rel=1e-5)

    def test_no_energy_and_no_box(self) -> None:
        assert math.isnan(compactness(map_of([0, 0]), (0, 0, 1, 1)))
        assert math.isnan(compactness(map_of([0, 1]), (2, 3, 2, 3)))


class TestSparsity:
    def test_even_and_single(self) -> None:
        assert sparsity(map_of([2, 2], [2, 2])) == pytest.approx(0)
        assert sparsity(map_of([0, 0], [0, 2])) == pytest.approx(1 - 1 / 4)

    def test_the_mean_difference(self) -> None:
        """Gini's index is the mean absolute difference of all pairs over twice the mean."""
        values = random_map(2).ravel().astype(np.float64)
        pairs = np.abs(values[:, None] - values[None]).mean()
        assert sparsity(random_map(2)) == pytest.approx(pairs / (2 * values.mean()))

    def test_no_energy(self) -> None:
        assert math.isnan(sparsity(map_of([0, 0])))


class TestObjectDiscrimination:
    def test_by_hand(self) -> None:
        values = map_of([1, 2, 4, 8])
        # Objects hold 1 + 2 + 4; the shared pixel counts as the other's.
        assert object_discrimination(values, mask_of("##.."), mask_of(".##.")) == pytest.approx(6 / 7)

    def test_not_defined(self) -> None:
        assert math.isnan(object_discrimination(map_of([1, 2]), mask_of("#."), None))
        assert math.isnan(object_discrimination(map_of([0, 0, 1]), mask_of("#.."), mask_of(".#.")))


class TestExplanationAccuracy:
    def test_by_hand(self) -> None:
        curve = overlap.explanation_accuracy(map_of([4, 2, 1, 0]), mask_of("##.."))
        at = dict(zip(np.round(overlap.THRESHOLDS, 2).tolist(), curve.tolist(), strict=True))
        assert at[0] == pytest.approx(2 / 4)
        assert at[0.25] == pytest.approx(2 / 3)
        assert at[0.26] == pytest.approx(1)
        assert at[0.5] == pytest.approx(1)
        assert at[0.51] == pytest.approx(1 / 2)
        assert at[1] == pytest.approx(1 / 2)

    @pytest.mark.parametrize("seed", range(3))
    def test_the_loop(self, seed: int) -> None:
        values, mask = random_map(seed), random_mask(seed)
        expected = []
        for threshold in overlap.THRESHOLDS:
            above = values / values.max() >= threshold
            expected.append((above & mask).sum() / (above | mask).sum())
        curve = overlap.explanation_accuracy(values, mask)
        assert np.allclose(curve, expected)
        area = float(np.mean((np.array(expected[1:]) + expected[:-1]) / 2))
        assert overlap.explanation_accuracy_area(values, mask) == pytest.approx(area)

    def test_no_energy_and_no_mask(self) -> None:
        assert overlap.explanation_accuracy(map_of([0, 0]), mask_of("#."))[50] == 0
        assert overlap.explanation_accuracy_area(map_of([1, 0]), mask_of("..")) == 0


class TestThirds:
    """The object's mask spans columns 1 to 6 and rows 0 to 2."""

    MASK = mask_of("........", ".######.", "........")

    @pytest.mark.parametrize(
        ("side", "expected"),
        [("x1", ".##....."), ("x2", ".....##.")],
    )
    def test_of_a_wide_object(self, side: str, expected: str) -> None:
        assert np.array_equal(overlap.third(self.MASK, side)[1:2], mask_of(expected))
        assert np.array_equal(overlap.third(self.MASK, side, middle=True)[1:2], mask_of("...##..."))

    def test_of_a_high_object(self) -> None:
        mask = self.MASK.T
        assert np.array_equal(overlap.third(mask, "y1"), overlap.third(self.MASK, "x1").T)
        assert np.array_equal(overlap.third(mask, "y2"), overlap.third(self.MASK, "x2").T)

    def test_thirds_are_the_whole(self) -> None:
        mask = random_mask(5)
        for low, high in (("x1", "x2"), ("y1", "y2")):
            parts = [
                overlap.third(mask, low),
                overlap.third(mask, low, middle=True),
                overlap.third(mask, high),
            ]
            assert np.array_equal(sum(part.astype(int) for part in parts), mask.astype(int))

    def test_no_such_side(self) -> None:
        with pytest.raises(ValueError, match="x1, y1, x2, y2; got 'left'"):
            overlap.third(self.MASK, "left")

    def test_the_blur_is_a_gaussian(self) -> None:
        """Against a convolution with the whole kernel, borders mirrored by hand."""
        values = np.where(random_map(4, 40, 50) > 0.68, 1.0, 0.0)  # a few pixels
        steps = np.arange(-8, 9)
        kernel = np.exp(-0.5 * (steps[:, None] ** 2 + steps**2) / overlap.BLUR**2)
        padded = torch.from_numpy(np.pad(values, 8, mode="symmetric"))[None, None]
        expected = torch.nn.functional.conv2d(padded, torch.from_numpy(kernel / kernel.sum())[None, None])
        smooth = expected[0, 0].numpy()
        assert np.array_equal(overlap.foreground(values), smooth > 0.32 * smooth.max())
        assert 0 < overlap.foreground(values).mean() < 1

    def test_over_foreground(self) -> None:
        values = np.zeros((40, 40), np.float32)
        values[20, 20] = 1
        # exp(-r²/8) > 0.32 within r² < 9.1, a disc of 29 pixels.
        assert overlap.foreground(values).sum() == 29
        part = np.zeros((40, 40), bool)
        part[:20] = True  # the 11 pixels above the middle row of 7
        assert overlap.over_foreground(values, part) == pytest.approx(11 / 29)
        assert math.isnan(overlap.over_foreground(np.zeros((4, 4), np.float32), part[:4, :4]))


class TestPerturbation:
    def test_the_order(self) -> None:
        values = map_of([1, 3], [2, 0])
        assert perturbation.importance(values, np.random.default_rng(0)).tolist() == [1, 2, 0, 3]

    def test_equal_pixels_are_in_random_order(self) -> None:
        orders = {
            tuple(perturbation.importance(map_of([1, 1, 5, 1]), np.random.default_rng(s))) for s in range(20)
        }
        assert len(orders) == 6
        assert {order[0] for order in orders} == {2}

    def test_pictures(self) -> None:
        picture = np.arange(1, 13, dtype=np.uint8).reshape(2, 2, 3)
        fill = np.full_like(picture, 99)
        order = np.array([3, 0, 1, 2], np.int32)
        gone = perturbation.deleted(picture, order, 0.5, fill)
        assert gone[:, :, 0].tolist() == [[99, 4], [7, 99]]
        kept = perturbation.inserted(picture, order, 0.5)
        assert kept[:, :, 0].tolist() == [[1, 0], [0, 10]]
        assert np.array_equal(perturbation.deleted(picture, order, 0, fill), picture)
        assert np.array_equal(perturbation.inserted(picture, order, 1), picture)
        assert not perturbation.inserted(picture, order, 0).any()

    def test_the_steps_begin_small_and_end_at_all(self) -> None:
        assert perturbation.SHARES[0] == 0
        assert perturbation.SHARES[1] == pytest.approx(1 / 400)
        assert perturbation.SHARES[-1] == 1

    def test_the_noise_is_of_all_values(self) -> None:
        fill = perturbation.noise((64, 64, 3), np.random.default_rng(3))
        assert len(np.unique(fill)) == 256
        assert abs(fill.mean() - 127.5) < 2

    def test_areas_of_a_detector_that_counts_pixels(self) -> None:
        """The score is the share of the object's pixels that are as they were, times 0.8."""
        picture = np.full((20, 20, 3), 255, np.uint8)
        picture[:, :, 0] = 7
        own = np.zeros((20, 20), bool)
        own[:, :5] = True

        def follow(pictures: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
            return np.array([0.8 * (p == picture).all(2)[own].mean() for p in pictures])

        shares = perturbation.SHARES
        right, wrong = own.astype(np.float32), (~own).astype(np.float32)
        random = np.random.default_rng(0)
        # The map is right: all is gone at a quarter of the pixels, linearly.
        left = np.maximum(1 - np.round(shares * 400) / 100, 0)
        expected = float(np.sum(np.diff(shares) * (left[1:] + left[:-1]) / 2))
        assert perturbation.deletion(picture, right, follow, random) == pytest.approx(expected, abs=1e-6)
        assert expected == pytest.approx(0.125, abs=0.005)
        assert perturbation.deletion(picture, wrong, follow, random) == pytest.approx(0.875, abs=0.005)
        assert perturbation.insertion(picture, right, follow, random) == pytest.approx(0.875, abs=0.005)
        assert perturbation.insertion(picture, wrong, follow, random) == pytest.approx(0.125, abs=0.005)

    def test_a_detection_that_is_not_there(self) -> None:
        def nothing(pictures: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
            return np.zeros(len(list(pictures)))

        picture = np.zeros((4, 4, 3), np.uint8)
        random = np.random.default_rng(0)
        assert math.isnan(perturbation.deletion(picture, random_map(0, 4, 4), nothing, random))
        assert math.isnan(perturbation.insertion(picture, random_map(0, 4, 4), nothing, random))


def subject(target: str = "class", truth: Truth | None = None, *, values: Values | None = None) -> Subject:
    values = random_map(7) if values is None else values
    picture = np.random.default_rng(0).integers(0, 256, (*values.shape, 3), dtype=np.uint8)

    def follow(pictures: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
        return np.array([(p == picture).mean() for p in pictures])

    return Subject(values, False, target, (1, 2, 9, 8), picture, follow, truth)


TRUTH = Truth((1, 2, 9, 8), random_mask(1), random_mask(2), random_mask(3), random_mask(4))


class TestMeasures:
    def test_all_have_a_protocol_and_a_direction(self) -> None:
        for name, measure in MEASURES.items():
            assert name == measure.name
            assert measure.better in ("higher", "lower")
            assert measure.needs in ("", "box", "mask", "evidence")
            assert len(measure.protocol) > 40
            assert "  " not in measure.protocol
        for words in ("random values", "20 steps", "unchanged picture", "0.5"):
            assert words in MEASURES["deletion"].protocol

    def test_without_truth(self) -> None:
        assert set(take(subject())) == {"deletion", "insertion", "compactness", "sparsity"}

    def test_with_a_box_alone(self) -> None:
        taken = take(subject(truth=Truth((1, 2, 9, 8), other_boxes=random_mask(3))))
        assert {"pointing_box", "energy_box", "odi_box"} <= set(taken)
        assert not [name for name in taken if "mask" in name or name in ("vea", "evidence_ratio")]

    def test_with_everything(self) -> None:
        sides = {"own_half", "iof_own_third", "iof_middle_third"}
        scores = {"deletion", "insertion", "evidence_ratio"}
        assert set(take(subject(truth=TRUTH))) == set(MEASURES) - sides
        assert set(take(subject("class:beta", TRUTH))) == set(MEASURES) - sides
        assert set(take(subject("x1", TRUTH))) == set(MEASURES) - scores

    def test_those_named(self) -> None:
        assert set(take(subject(truth=TRUTH), ["vea", "odi_mask", "iof_own_third"])) == {"vea", "odi_mask"}

    def test_values(self) -> None:
        s = subject(truth=TRUTH)
        taken = take(s)
        inside = box_mask((1, 2, 9, 8), 11, 14)
        assert taken["energy_box"] == pytest.approx(float(s.values[inside].sum() / s.values.sum()), rel=1e-5)
        assert taken["compactness"] == compactness(s.values, (1, 2, 9, 8))
        assert taken["vea_at_0.1"] == overlap.explanation_accuracy(s.values, random_mask(1))[10]
        assert taken["odi_mask"] == object_discrimination(s.values, random_mask(1), random_mask(4))
        assert 0 < taken["deletion"] < 1

    def test_own_half(self) -> None:
        """Of the true box, x from 1 to 9 and y from 2 to 8; what lies outside does not count."""
        for side, half in (("x1", (1, 2, 5, 8)), ("y2", (1, 5, 9, 8))):
            s = subject(side, TRUTH)
            inside, own = (s.energy[box_mask(box, 11, 14)].sum() for box in ((1, 2, 9, 8), half))
            assert take(s, ["own_half"])["own_half"] == pytest.approx(float(own / inside), rel=1e-5)

    def test_the_seed_decides_the_fill_alone(self) -> None:
        """Whatever else is measured, the same seed gives the same figures."""
        every = take(subject(truth=TRUTH))
        assert take(subject(), ["insertion"])["insertion"] == every["insertion"]
        assert take(subject(), ["deletion"]) == {"deletion": every["deletion"]}

    def test_a_map_without_energy(self) -> None:
        taken = take(subject(truth=TRUTH, values=np.zeros((11, 14), np.float32)))
        assert "compactness" not in taken
        assert "sparsity" not in taken
        assert "odi_box" not in taken
        assert taken["pointing_box"] == taken["energy_mask"] == taken["evidence_ratio"] == 0

    def test_an_empty_mask(self) -> None:
        nothing = np.zeros((11, 14), bool)
        taken = take(subject("x1", Truth((1, 2, 9, 8), nothing, nothing)))
        assert "iof_own_third" not in taken
        assert taken["energy_mask"] == taken["vea"] == 0
        assert "evidence_ratio" not in take(subject(truth=Truth((1, 2, 9, 8), nothing, nothing)))
