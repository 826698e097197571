"""Faithfulness: pictures that lose the pixels that a map calls important, or hold nothing else.

A picture is uint8 (H, W, 3), a map float (H, W) in the image frame.

Sources: Petsiuk et al., "RISE", BMVC 2018 (deletion and insertion); Zhao and Chan, "ODAM", ICLR 2023, section
4.2 (random values in deletion, an empty picture in insertion, the score in percent of the unchanged one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from whybox.metrics.pointing import Values

Picture = NDArray[np.uint8]

STEPS = 20

SHARES = (np.arange(STEPS + 1) / STEPS) ** 2
"""Of the pixels that are changed, from none to all. Their squares keep the first steps small: an object takes
a few percent of a picture, and even steps would pass over it at once."""


def importance(values: Values, random: np.random.Generator) -> NDArray[np.int32]:
    """Order a picture's pixels by a map, most important first; equal ones in random order.

    Args:
        values: the map.
        random: source of the order of equal pixels.

    Returns:
        int (H·W,), positions by rows.
    """
    shuffled = random.permutation(np.arange(values.size, dtype=np.int32))
    order: NDArray[np.int32] = shuffled[np.argsort(-values.ravel()[shuffled], kind="stable")]
    return order


def noise(shape: Sequence[int], random: np.random.Generator) -> Picture:
    """A picture of random values, 0 to 255, each pixel and channel by itself."""
    return random.integers(0, 256, tuple(shape), dtype=np.uint8)


def deleted(picture: Picture, order: NDArray[np.int32], share: float, fill: Picture) -> Picture:
    """Put the fill in the place of the most important share of the pixels."""
    return _mixed(picture, fill, order, share)


def inserted(picture: Picture, order: NDArray[np.int32], share: float) -> Picture:
    """Keep the most important share of the pixels, on an empty (black) picture."""
    return _mixed(np.zeros_like(picture), picture, order, share)


def deletion(
    picture: Picture,
    values: Values,
    follow: Callable[[Iterator[Picture]], NDArray[np.float64]],
    random: np.random.Generator,
) -> float:
    """Area under the score while pixels are replaced by noise, most important first; lower is better.

    Args:
        picture: as the detector saw it.
        values: the map.
        follow: gives the score in each of some pictures.
        random: source of the noise, and of the order of equal pixels.

    Returns:
        The area over the share of pixels, of the score over that in the unchanged picture; NaN where that is
        0.
    """
    order = importance(values, random)
    fill = noise(picture.shape, random)
    scores = follow(deleted(picture, order, share, fill) for share in SHARES.tolist())
    return area(SHARES, scores) / scores[0] if scores[0] > 0 else math.nan


def insertion(
    picture: Picture,
    values: Values,
    follow: Callable[[Iterator[Picture]], NDArray[np.float64]],
    random: np.random.Generator,
) -> float:
    """Area under the score while pixels are put onto a black picture, most important first; higher is better.

    See `deletion`.
    """
    order = importance(values, random)
    scores = follow(inserted(picture, order, share) for share in SHARES.tolist())
    return area(SHARES, scores) / scores[-1] if scores[-1] > 0 else math.nan


def area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Area under a curve by the trapezoid rule."""
    return float(np.diff(x) @ (y[1:] + y[:-1])) / 2


def _mixed(below: Picture, above: Picture, order: NDArray[np.int32], share: float) -> Picture:
    mixed = below.reshape(-1, 3).copy()
    chosen = order[: round(share * len(order))]
    mixed[chosen] = above.reshape(-1, 3)[chosen]
    return mixed.reshape(below.shape)
