"""Heat maps on the wire and in the image frame.

Letters: h, w cells of a map; H, W pixels of the image.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from whybox_proto.v1 import types_pb2

FloatMap = NDArray[np.float32]

BAND_PIXELS = 1 << 20


def encode(values: FloatMap, heat_map: types_pb2.HeatMap, encoding: str = "u8") -> None:
    """Write a map's cells into a message: `width`, `height`, `encoding`, `data`, `min_value`, `max_value`.

    Args:
        values: float32 (h, w), finite.
        heat_map: message to fill.
        encoding: ``u8``, ``f32`` or ``png``.

    Raises:
        ValueError: for another encoding, or values that are not a finite (h, w) array.
    """
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"a map is a finite (h, w) array; got shape {values.shape}")
    low, high = float(values.min()), float(values.max())
    heat_map.height, heat_map.width = values.shape
    heat_map.min_value, heat_map.max_value = low, high
    heat_map.encoding = encoding
    if encoding == "f32":
        heat_map.data = values.astype("<f4").tobytes()
        return
    span = high - low
    levels = np.zeros(values.shape, np.uint8)
    if span > 0:  # in double precision: float32 overflows for spans below 1e-36 and above 3e38
        for part in _bands(*values.shape):
            levels[part] = np.rint((values[part].astype(np.float64) - low) / span * 255)
    if encoding == "u8":
        heat_map.data = levels.tobytes()
    elif encoding == "png":
        buffer = io.BytesIO()
        Image.fromarray(levels).save(buffer, format="PNG")
        heat_map.data = buffer.getvalue()
    else:
        raise ValueError(f"encoding is one of u8, f32, png; got {encoding!r}")


def decode(heat_map: types_pb2.HeatMap) -> FloatMap:
    """Read a map's cells back: float32 (h, w). Inverse of `encode`, up to the rounding of u8 and png.

    Raises:
        ValueError: if the data do not fit the size or the encoding is unknown.
    """
    shape = heat_map.height, heat_map.width
    if heat_map.encoding == "f32":
        return np.frombuffer(heat_map.data, "<f4").astype(np.float32).reshape(shape)
    if heat_map.encoding == "u8":
        levels = np.frombuffer(heat_map.data, np.uint8).reshape(shape)
    elif heat_map.encoding == "png":
        try:
            levels = np.asarray(Image.open(io.BytesIO(heat_map.data)).convert("L")).reshape(shape)
        except (OSError, SyntaxError) as error:  # what Pillow raises for broken pictures
            raise ValueError(f"the data are no PNG: {error}") from error
    else:
        raise ValueError(f"encoding is one of u8, f32, png; got {heat_map.encoding!r}")
    low, high = heat_map.min_value, heat_map.max_value
    return (low + levels.astype(np.float32) * np.float32((high - low) / 255)).astype(np.float32)


def enlarge(values: FloatMap, region: tuple[float, float, float, float], width: int, height: int) -> FloatMap:
    """Paste a map into the image frame: bilinear between cell centres inside its region, 0 outside.

    Args:
        values: float32 (h, w), the cells.
        region: [x1, y1, x2, y2] that the cells cover, in image pixels; may pass the image's border.
        width: W of the image, in pixels.
        height: H of the image, in pixels.

    Returns:
        float32 (H, W).
    """
    x1, y1, x2, y2 = region
    rows, row_weights = _samples(y1, y2, values.shape[0], height)
    columns, column_weights = _samples(x1, x2, values.shape[1], width)
    along_y = values[rows[0]] * row_weights[0][:, None] + values[rows[1]] * row_weights[1][:, None]
    pixels = np.empty((height, width), np.float32)
    for part in _bands(height, width):
        left, right = along_y[part][:, columns[0]], along_y[part][:, columns[1]]
        pixels[part] = left * column_weights[0] + right * column_weights[1]
    return pixels


def _bands(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of a picture in bands, so that values in passing take little memory."""
    step = max(1, BAND_PIXELS // width)
    for start in range(0, height, step):
        yield slice(start, start + step)


def _samples(
    start: float, stop: float, cells: int, pixels: int
) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], tuple[FloatMap, FloatMap]]:
    """Linear interpolation along one axis: for each pixel its two cells and their weights (0 outside)."""
    centres = np.arange(pixels) + 0.5
    position = (centres - start) * (cells / (stop - start)) - 0.5
    inside = ((centres >= start) & (centres <= stop)).astype(np.float32)
    position = np.clip(position, 0, cells - 1)
    lower = np.minimum(np.floor(position).astype(np.intp), cells - 1)
    upper = np.minimum(lower + 1, cells - 1)
    fraction = (position - lower).astype(np.float32)
    return (lower, upper), ((1 - fraction) * inside, fraction * inside)
