"""Signs as polygons in the picture: placing them, painting them, and the masks that go with them.

Letters: P points, (h, w) the size of an item's window. Picture coordinates are continuous `[x, y]`, origin
at the
top-left corner of the top-left pixel, so the centre of pixel (row r, column c) is `[c + 0.5, r + 0.5]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from whybox.scenes.catalogue import DRAWINGS, MARKS, PLATES, Plate, Points

Kind = Literal["sign", "blank", "unfinished", "loose", "pole", "mark"]
Colour = tuple[int, int, int]

_FRACTION_BITS = 4  # OpenCV draws with fixed-point coordinates: 1/16 px
_EVIDENCE_DILATION = 0.03  # of the plate's side: covers antialiasing and the blur of the camera


@dataclass(frozen=True, slots=True)
class Paint:
    """Colours (RGB, 0–255) of one item. `ink_strength` < 1 fades the deciding part towards the plate."""

    plate: Colour
    border: Colour
    ink: Colour
    border_width: float
    ink_strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to paint: a sign, the mark beside one, or a distractor that looks like a part of a sign.

    `homography` (float64 [3, 3]) maps the unit frame of the plate to the picture. `side` is the plate's
    side in pixels. `label_id` says which drawing is used; distractors without one ignore it.
    """

    kind: Kind
    label_id: int
    plate_id: int
    homography: NDArray[np.float64]
    side: float
    paint: Paint


@dataclass(frozen=True, slots=True)
class Footprint:
    """The pixels that an item covers: `rows` and `columns` locate the window, `mask` is bool [h, w]."""

    rows: slice
    columns: slice
    mask: NDArray[np.bool_]


def place(points: Points, homography: NDArray[np.float64]) -> Points:
    """Map points [P, 2] of the unit frame into the picture."""
    mapped = points @ homography[:, :2].T + homography[:, 2]  # [P, 3]
    return np.asarray(mapped[:, :2] / mapped[:, 2:])


def homography_of(
    centre: tuple[float, float], size: tuple[float, float], angle: float, corner_shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Homography of a plate seen a little askew.

    `centre` [x, y] and `size` [w, h] in pixels, `angle` in radians, `corner_shift` float [4, 2] moves the
    corners (top-left, top-right, bottom-right, bottom-left) by that share of the size.
    """
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)
    cosine, sine = np.cos(angle), np.sin(angle)
    local = (unit - 0.5 + corner_shift) * np.asarray(size)  # [4, 2]
    turned = local @ np.array([[cosine, sine], [-sine, cosine]]) + np.asarray(centre)
    return np.asarray(cv2.getPerspectiveTransform(unit, turned.astype(np.float32)), dtype=np.float64)


def outline(item: Item) -> Points:
    """The plate's outline in the picture, [P, 2]."""
    return place(PLATES[item.plate_id].outline, item.homography)


def footprint(item: Item, size: tuple[int, int]) -> Footprint:
    """Pixels covered by `item` in a picture of `size` (height, width)."""
    height, width = size
    border = outline(item)
    x1, y1 = (max(int(low) - 2, 0) for low in border.min(axis=0))
    x2, y2 = (
        min(int(high) + 3, limit) for high, limit in zip(border.max(axis=0), (width, height), strict=True)
    )
    rows, columns = slice(y1, max(y2, y1)), slice(x1, max(x2, x1))
    polygons = _glyph(item) if item.kind == "loose" else [border]
    cover = _coverage(polygons, (x1, y1), (rows.stop - y1, columns.stop - x1))
    return Footprint(rows, columns, cover > 127)


def evidence_of(item: Item, covered: Footprint) -> NDArray[np.bool_]:
    """Where in its footprint the sign `item` and its look-alike differ, slightly dilated; bool [h, w]."""
    origin, shape = (covered.columns.start, covered.rows.start), covered.mask.shape
    ink = [
        _coverage(_ink(item, label), origin, (shape[0], shape[1]))
        for label in (item.label_id, item.label_id ^ 1)
    ]
    differs = cv2.absdiff(ink[0], ink[1])
    reach = max(1, round(_EVIDENCE_DILATION * item.side))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return (np.asarray(cv2.dilate(differs, kernel)) > 0) & covered.mask


def paint(image: NDArray[np.uint8], item: Item) -> None:
    """Paint `item` over `image` (uint8 [H, W, 3], RGB) in place, antialiased."""
    colours, plate = item.paint, PLATES[item.plate_id]
    if item.kind == "loose":
        _fill(image, _glyph(item), colours.ink)
        return
    _fill(image, [outline(item)], colours.plate if item.kind == "pole" else colours.border)
    if item.kind == "pole":
        return
    inner = 0.5 + (plate.outline - 0.5) * (1.0 - 2.0 * colours.border_width)
    _fill(image, [place(inner, item.homography)], colours.plate)
    if item.kind == "mark":
        _fill(image, _placed(MARKS[item.label_id], item, plate), colours.ink)
        return
    if item.kind == "blank":
        return
    drawing = DRAWINGS[item.label_id]
    if item.kind == "sign":
        faded = _mix(colours.plate, colours.ink, colours.ink_strength)
        _fill(image, _placed(drawing.deciding, item, plate), faded)
    _fill(image, _placed(drawing.shared, item, plate), colours.ink)
    _fill(image, _placed(drawing.holes, item, plate), colours.plate)


def _mix(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


def _placed(polygons: Sequence[Points], item: Item, plate: Plate) -> list[Points]:
    return [place(0.5 + (polygon - 0.5) * plate.glyph_scale, item.homography) for polygon in polygons]


def _glyph(item: Item) -> list[Points]:
    return _ink(item, item.label_id)


def _ink(item: Item, label_id: int) -> list[Points]:
    """All ink of `label_id` on this item's plate; holes are the same for both look-alikes and left out."""
    drawing, plate = DRAWINGS[label_id], PLATES[item.plate_id]
    return _placed(drawing.deciding + drawing.shared, item, plate)


def _fixed(polygon: Points) -> NDArray[np.int32]:
    return np.round((polygon - 0.5) * (1 << _FRACTION_BITS)).astype(np.int32)


def _fill(image: NDArray[np.uint8], polygons: Sequence[Points], colour: Colour) -> None:
    for polygon in polygons:  # one by one: together, overlaps would cancel out (even-odd rule)
        cv2.fillPoly(image, [_fixed(polygon)], colour, cv2.LINE_AA, _FRACTION_BITS)


def _coverage(
    polygons: Sequence[Points], origin: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """How much of each pixel (0–255) the polygons cover together; uint8 [h, w].

    The window of shape [h, w] has its top-left corner at `origin` [x, y] of the picture.
    """
    canvas = np.zeros(shape, dtype=np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [_fixed(polygon - np.asarray(origin))], 255, cv2.LINE_AA, _FRACTION_BITS)
    return canvas
