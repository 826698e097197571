"""Masks on the wire: COCO's run-length encoding with compressed counts.

The pixels are read column by column. Counts are the lengths of runs, of 0 and of 1 in turn, the first of 0.
From the fourth on, a count is written as its difference to the one two before. Each number is written in
groups of five bits, lowest first, in two's complement: one character a group, ``48 + bits``, plus 32 where
another follows.
Source: ``rleToString`` and ``rleFrString`` of the COCO API (``maskApi.c``).

Letters: H, W pixels of the image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FIRST_CHARACTER = 48
_DIGIT_BITS = 5
_SIGN, _MORE = 0x10, 0x20
# Seven groups hold every number below 2^34: masks of 131072 x 131072.
_MOST_DIGITS = 7


def encode(mask: ArrayLike) -> str:
    """Write a mask as compressed counts. Inverse of `decode`.

    Args:
        mask: bool (H, W), or integers that are 0 or 1.

    Raises:
        ValueError: for another shape, no pixel at all, or other values.
    """
    pixels = np.asarray(mask)
    if pixels.ndim != 2 or not pixels.size:
        raise ValueError(f"a mask is a bool array (H, W); got shape {pixels.shape}")
    if pixels.dtype != np.bool_ and (
        not np.issubdtype(pixels.dtype, np.integer) or not ((pixels == 0) | (pixels == 1)).all()
    ):
        raise ValueError(f"a mask holds True and False, or 1 and 0; got {pixels.dtype}, {pixels.flat[0]} …")
    flat = np.concatenate([[False], pixels.astype(bool).ravel(order="F")])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], starts, [pixels.size]]))
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    return _characters(numbers)


def decode(counts: str, height: int, width: int) -> NDArray[np.bool_]:
    """Read a mask: bool (H, W).

    Args:
        counts: compressed counts.
        height, width: H and W of the image that the mask is of.

    Raises:
        ValueError: if these are no compressed counts, or not those of a mask of this size.
    """
    numbers = runs(counts, height, width)
    values = np.arange(numbers.size) % 2 == 1
    return np.repeat(values, numbers).reshape((height, width), order="F")


def runs(counts: str, height: int, width: int) -> NDArray[np.int64]:
    """Read the lengths of a mask's runs, of 0 and of 1 in turn, without making the mask; see `decode`."""
    numbers = _numbers(counts)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    if (numbers < 0).any():
        raise ValueError("a count of pixels is below 0")
    total = int(numbers.sum())
    if total != height * width:
        raise ValueError(f"the mask has {total} pixels; an image of {width} x {height} has {height * width}")
    return numbers


def _characters(numbers: NDArray[np.int64]) -> str:
    """Write integers, each in as few groups of five bits as hold it and its sign."""
    left = numbers.astype(np.int64)
    groups = np.zeros((left.size, _MOST_DIGITS + 1), np.uint8)  # 0: no character
    going = np.ones(left.size, bool)
    for position in range(_MOST_DIGITS + 1):
        bits = left & (_SIGN | (_SIGN - 1))
        left >>= _DIGIT_BITS
        more = np.where(bits & _SIGN, left != -1, left != 0)
        groups[:, position] = np.where(going, _FIRST_CHARACTER + bits + _MORE * more, 0)
        going &= more
        if not going.any():
            return groups[groups > 0].tobytes().decode("ascii")
    raise ValueError("the mask has too many pixels")


def _numbers(text: str) -> NDArray[np.int64]:
    """Read integers back; inverse of `_characters`."""
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - _FIRST_CHARACTER
    except UnicodeEncodeError:
        codes = np.array([-1], np.int64)
    if not codes.size or codes.min() < 0 or codes.max() >= 2 * _MORE:
        raise ValueError("these are no compressed counts: each character is one of 0 to o in ASCII")
    ends = np.flatnonzero(codes < _MORE)
    if not ends.size or ends[-1] != codes.size - 1:
        raise ValueError("these are no compressed counts: the last number has no end")
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > _MOST_DIGITS:
        raise ValueError(f"a count of pixels has more than {_MOST_DIGITS} digits")
    positions = np.arange(codes.size) - np.repeat(starts, digits)
    numbers = np.add.reduceat((codes & (_MORE - 1)) << (_DIGIT_BITS * positions), starts)
    below_zero = (codes[ends] & _SIGN) > 0
    return numbers - (below_zero.astype(np.int64) << (_DIGIT_BITS * digits))
