"""Procedural backgrounds: sky, haze, bricks, foliage, asphalt, planks, facades.

Every texture is a function of (generator, height, width) and returns uint8 [H, W, 3].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Texture = Callable[[np.random.Generator, int, int], Image]


def background(rng: np.random.Generator, height: int, width: int) -> Image:
    """One texture, or two that meet at a horizon, with clutter on top; uint8 [H, W, 3]."""
    first, second = rng.integers(len(_TEXTURES), size=2)
    image = _TEXTURES[int(first)](rng, height, width)
    if rng.random() < 0.5:
        horizon = int(height * rng.uniform(0.35, 0.75))
        image[horizon:] = _TEXTURES[int(second)](rng, height, width)[horizon:]
    _clutter(rng, image)
    return image


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    """A colour that tends to be muted: float32 [3] in 0–255."""
    grey = rng.uniform(30, 225)
    return (grey + rng.uniform(-70, 70, size=3)).clip(0, 255).astype(np.float32)


def _noise(rng: np.random.Generator, height: int, width: int, cell: int) -> NDArray[np.float32]:
    """Smooth noise in 0–1 with features of about `cell` pixels; float32 [H, W]."""
    coarse = rng.random((height // cell + 3, width // cell + 3), dtype=np.float32)
    large = cv2.resize(
        coarse, (coarse.shape[1] * cell, coarse.shape[0] * cell), interpolation=cv2.INTER_LINEAR
    )
    return np.asarray(large[cell // 2 : cell // 2 + height, cell // 2 : cell // 2 + width], dtype=np.float32)


def _grain(rng: np.random.Generator, image: Image, strength: int) -> Image:
    """Add uniform noise of ±strength levels, the same in all channels."""
    height, width = image.shape[:2]
    speckle = rng.integers(0, 2 * strength + 1, size=(height, width), dtype=np.uint8)
    lifted = cv2.add(image, cv2.merge([speckle, speckle, speckle]))
    lowered = cv2.subtract(lifted, (strength, strength, strength, 0))  # type: ignore[call-overload]
    return np.asarray(lowered, dtype=np.uint8)


def _ramp(share: NDArray[np.floating[Any]], stops: NDArray[np.floating[Any]]) -> Image:
    """Colours along `stops` (float [S, 3]) at `share` (float [H, W], 0–1)."""
    positions = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), positions, stops[:, c]) for c in range(3)], axis=1)
    index = (share * 255).astype(np.uint8)
    return np.asarray(cv2.LUT(cv2.merge([index, index, index]), table.astype(np.uint8)[None]), dtype=np.uint8)


def _sky(rng: np.random.Generator, height: int, width: int) -> Image:
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(-0.2, 0.2, width, dtype=np.float32)[None] * np.float32(rng.uniform(-1, 1))
    share = (down + across + 0.25 * _noise(rng, height, width, 48)).clip(0, 1)
    return _ramp(share, np.stack([_colour(rng), _colour(rng)]))


def _haze(rng: np.random.Generator, height: int, width: int) -> Image:
    share = (
        0.6 * _noise(rng, height, width, 64)
        + 0.3 * _noise(rng, height, width, 16)
        + 0.1 * _noise(rng, height, width, 4)
    )
    return _ramp(share, np.stack([_colour(rng) for _ in range(3)]))


def _foliage(rng: np.random.Generator, height: int, width: int) -> Image:
    cell = int(rng.integers(5, 16))
    share = 0.6 * _noise(rng, height, width, cell) + 0.4 * _noise(rng, height, width, cell * 3)
    steps = int(rng.integers(4, 9))
    share = np.floor(share * steps * 1.6).astype(np.float32) % steps / steps
    base = _colour(rng)
    stops = np.stack(
        [(base * rng.uniform(0.35, 1.4) + rng.uniform(-15, 15, size=3)).clip(0, 255) for _ in range(4)]
    )
    return _grain(rng, _ramp(share, stops.astype(np.float32)), 8)


def _asphalt(rng: np.random.Generator, height: int, width: int) -> Image:
    base = _colour(rng)
    image = _ramp(_noise(rng, height, width, 80), np.stack([base * 0.8, (base * 1.15).clip(0, 255)]))
    return _grain(rng, image, int(rng.integers(12, 40)))


def _bricks(rng: np.random.Generator, height: int, width: int) -> Image:
    tall, long = int(rng.integers(8, 26)), int(rng.integers(14, 52))
    joint = int(rng.integers(1, 4))
    rows, columns = height // tall + 1, width // long + 3
    base, mortar = _colour(rng), _colour(rng)
    tones = base * rng.uniform(0.75, 1.25, size=(rows, columns, 1)) + rng.uniform(
        -10, 10, size=(rows, columns, 3)
    )
    small = tones.clip(0, 255).astype(np.uint8)
    wide = cv2.resize(small, (columns * long, rows * tall), interpolation=cv2.INTER_NEAREST)
    for left in range(0, wide.shape[1], long):
        wide[:, left : left + joint] = mortar
    for row in range(rows):
        band = wide[row * tall : (row + 1) * tall]
        band[:joint] = mortar
        if row % 2:
            band[:] = np.roll(band, long // 2, axis=1)
    shift = int(rng.integers(0, long))
    return _grain(rng, np.ascontiguousarray(wide[:height, shift : shift + width]), 10)


def _planks(rng: np.random.Generator, height: int, width: int) -> Image:
    board = int(rng.integers(10, 48))
    base = _colour(rng)
    tones = base * rng.uniform(0.7, 1.3, size=(1, width // board + 2, 1))
    wide = cv2.resize(
        tones.clip(0, 255).astype(np.uint8), (tones.shape[1] * board, 1), interpolation=cv2.INTER_NEAREST
    )
    image = np.ascontiguousarray(np.broadcast_to(wide[:, :width], (height, width, 3)), dtype=np.uint8)
    image[:, ::board] = image[:, ::board] // 2
    if rng.random() < 0.5 and height == width:
        image = np.ascontiguousarray(image.transpose(1, 0, 2))
    return _grain(rng, image, 12)


def _facades(rng: np.random.Generator, height: int, width: int) -> Image:
    image = _sky(rng, height, width)
    for _ in range(int(rng.integers(4, 14))):
        x, y = int(rng.integers(-30, width)), int(rng.integers(-30, height))
        w, h = int(rng.integers(12, width // 2 + 13)), int(rng.integers(12, height // 2 + 13))
        cv2.rectangle(image, (x, y), (x + w, y + h), _colour(rng).tolist(), -1)
    return _grain(rng, image, 6)


def _clutter(rng: np.random.Generator, image: Image) -> None:
    """Blobs and wires, so that edges and round things alone say nothing."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(0, 6))):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (int(rng.integers(3, 40)), int(rng.integers(3, 40)))
        angle = int(rng.integers(0, 180))
        cv2.ellipse(image, centre, axes, angle, 0, 360, _colour(rng).tolist(), -1, cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 5))):
        ends = [(int(rng.integers(0, width)), int(rng.integers(0, height))) for _ in range(2)]
        cv2.line(image, ends[0], ends[1], _colour(rng).tolist(), int(rng.integers(1, 4)), cv2.LINE_AA)


_TEXTURES: tuple[Texture, ...] = (_sky, _haze, _foliage, _asphalt, _bricks, _planks, _facades)
