"""What light and a camera do to a painted scene: light falling unevenly, shadows, blur, noise, JPEG."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_GAUSS = np.zeros(256, dtype=np.float32)  # quantiles of N(0, 1) at (byte + 0.5) / 256, filled below


def _fill_quantiles() -> None:
    from statistics import NormalDist

    normal = NormalDist()
    _GAUSS[:] = [normal.inv_cdf((byte + 0.5) / 256) for byte in range(256)]


_fill_quantiles()


def light(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Multiply by a smooth field and cast up to two soft-edged shadows; uint8 [H, W, 3] in and out."""
    height, width = image.shape[:2]
    spread = rng.uniform(0.0, 0.35)
    corners = (1.0 + rng.uniform(-spread, spread, size=(3, 3))).astype(np.float32)
    field = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(rng.integers(0, 3))):
        shade = np.ones((height // 4 + 1, width // 4 + 1), dtype=np.float32)
        points = rng.uniform(-0.2, 1.2, size=(4, 2)) * (shade.shape[1], shade.shape[0])
        cv2.fillPoly(shade, [cv2.convexHull(points.astype(np.int32))], float(rng.uniform(0.55, 0.9)))
        field = field * cv2.resize(cv2.blur(shade, (3, 3)), (width, height), interpolation=cv2.INTER_LINEAR)
    lit = cv2.multiply(image, cv2.merge([field, field, field]), dtype=cv2.CV_8U)
    return np.asarray(lit, dtype=np.uint8)


def photograph(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blur (σ up to 0.9 px), noise (σ up to 7 levels), and JPEG for a third; uint8 [H, W, 3] in and out."""
    sigma = rng.uniform(0.0, 0.9)
    if sigma > 0.3:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)
    quantum = np.frombuffer(rng.bytes(image.size), dtype=np.uint8).reshape(image.shape)
    levels = np.round(_GAUSS * rng.uniform(0.0, 7.0)).astype(np.int16)
    up, down = levels.clip(0).astype(np.uint8), (-levels).clip(0).astype(np.uint8)
    image = np.asarray(
        cv2.subtract(cv2.add(image, cv2.LUT(quantum, up)), cv2.LUT(quantum, down)), dtype=np.uint8
    )
    if rng.random() < 1 / 3:
        _, coded = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))))
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), dtype=np.uint8)
    return image
