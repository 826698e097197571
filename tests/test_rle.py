"""COCO's run-length encoding: vectors written by hand, COCO's own code, and what is no mask."""

from __future__ import annotations

import numpy as np
import pytest

from whybox_proto import rle


def slow_decode(text: str, height: int, width: int) -> np.ndarray:
    """The loop of `rleFrString` and `rleDecode`, number by number."""
    counts: list[int] = []
    at = 0
    while at < len(text):
        number, group, more = 0, 0, True
        while more:
            code = ord(text[at]) - 48
            number |= (code & 31) << 5 * group
            more = bool(code & 32)
            at, group = at + 1, group + 1
            if not more and code & 16:
                number |= -1 << 5 * group
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
    flat = [i % 2 == 1 for i, count in enumerate(counts) for _ in range(count)]
    return np.array(flat).reshape((width, height)).T


def strip(width: int, *runs: int) -> np.ndarray:
    """A mask of one row: runs of False and True in turn."""
    flat = [i % 2 == 1 for i, run in enumerate(runs) for _ in range(run)]
    assert len(flat) == width
    return np.array([flat])


# Counts by columns, then differences to the count two before from the fourth on, then groups of five bits.
BY_HAND = [
    # columns 00 10 11: counts 2 1 1 2; the last is 2 - 1 = 1
    (np.array([[0, 1, 1], [0, 0, 1]], bool), "2111"),
    # begins with a 1: a run of no zeros
    (np.array([[1, 0], [1, 0]], bool), "022"),
    (np.zeros((2, 2), bool), "4"),
    (np.ones((2, 2), bool), "04"),
    # 16 = 10000b has the sign's bit, so a group of zeros follows: 16 + 32 + 48 = "`", then "0"
    (strip(16, 16), "`0"),
    # 1000 = 11111 01000b: 8 + 32 + 48 = "X", 31 + 32 + 48 = "o" (the sign's bit again), "0"
    (strip(1000, 1000), "Xo0"),
    # counts 0 40 5 2: 40 = 1 01000b is "X1"; 2 - 40 = -38 = ..11110 11010b is
    # 26 + 32 + 48 = "j", then 30 + 48 = "N"
    (strip(47, 0, 40, 5, 2), "0X15jN"),
]


@pytest.mark.parametrize(("mask", "text"), BY_HAND, ids=[text for _, text in BY_HAND])
def test_vectors_written_by_hand(mask: np.ndarray, text: str) -> None:
    assert rle.encode(mask) == text
    np.testing.assert_array_equal(rle.decode(text, *mask.shape), mask)
    np.testing.assert_array_equal(slow_decode(text, *mask.shape), mask)


@pytest.mark.parametrize("share", [0.002, 0.1, 0.5, 0.97])
def test_random_masks_come_back_and_are_as_coco_writes_them(share: float) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(7)
    for height, width in ((1, 1), (1, 70), (70, 1), (33, 65), (128, 200)):
        mask = random.random((height, width)) < share
        text = rle.encode(mask)
        assert text == coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        decoded = rle.decode(text, height, width)
        assert decoded.dtype == np.bool_
        np.testing.assert_array_equal(decoded, mask)
        np.testing.assert_array_equal(decoded, slow_decode(text, height, width))
    blob = np.zeros((600, 800), bool)
    blob[100:500, 20:790] = True
    assert rle.encode(blob) == coco.encode(np.asfortranarray(blob, np.uint8))["counts"].decode()


def test_zeros_and_ones_are_a_mask_too() -> None:
    assert rle.encode([[0, 1, 1], [0, 0, 1]]) == "2111"
    assert rle.encode(np.array([[0, 1], [1, 1]], np.uint8)) == rle.encode([[False, True], [True, True]])


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((0, 4), bool), np.zeros(4, bool), np.zeros((2, 2, 1), bool), [[0, 2]], [[0.0, 1.0]], [["a"]]],
)
def test_what_is_no_mask_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="a mask"):
        rle.encode(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no compressed counts"),
        ("é", "no compressed counts"),
        ("2 11", "no compressed counts"),
        ("p", "no compressed counts"),
        ("211X", "no end"),
        ("XXXXXXX1", "more than 7 digits"),
        ("N6", "below 0"),
        ("2112", "the mask has 7 pixels; an image of 3 x 2 has 6"),
        ("211", "the mask has 4 pixels; an image of 3 x 2 has 6"),
    ],
)
def test_what_are_no_counts_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        rle.decode(text, 2, 3)


def test_counts_that_would_fill_the_memory_do_not() -> None:
    with pytest.raises(ValueError, match="pixels"):
        rle.decode("ooooooO" * 1000, 2, 3)
    with pytest.raises(ValueError, match="pixels"):
        rle.decode("oooooo?0", 2, 3)
