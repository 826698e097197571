"""Drawing: a map over its image, boxes with their labels, and sheets of titled tiles.

Pure Pillow and NumPy; nothing here knows the service. Boxes are [x1, y1, x2, y2], continuous, in pixels of
the picture that is drawn on. H, W are the pixels of that picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from whybox_client import colors, defaults

Box: TypeAlias = Sequence[float]
Color: TypeAlias = tuple[int, int, int]

TILE_SIDE = 320

_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_PAPER, _INK = (255, 255, 255), (24, 24, 28)
_GAP = 8
_TITLE_SIZE = 15
_SMALL_SIZE = 13
_TITLE_HEIGHT = 22


@dataclass(frozen=True)
class Labelled:
    """A box to draw, with its text and colour; without text it has no plate."""

    box: tuple[float, float, float, float]
    text: str
    color: Color
    dashed: bool = False


@dataclass(frozen=True)
class Tile:
    """One picture of a contact sheet and the words above it."""

    image: Image.Image
    title: str


def overlay(
    image: Image.Image,
    values: NDArray[np.float32],
    *,
    opacity: float = defaults.OPACITY,
    box: Box | None = None,
    signed: bool = False,
) -> Image.Image:
    """Lay a heat map over its image.

    The map is scaled from its lowest to its highest value (a signed one by its largest magnitude). Where it
    is lowest the image stays as it is, and a constant map gives no colour at all.

    Args:
        image: the upright image, (H, W).
        values: float32 (H, W), in the image's frame.
        opacity: how much of the image the strongest colour covers, 0 to 1.
        box: the detection's box, drawn in white within black; None: none.
        signed: values below zero mean "speaks against": blue against red, white between.

    Returns:
        A new RGB image, (H, W).

    Raises:
        ValueError: if the sizes differ or the opacity is out of range.
    """
    if values.shape != (image.height, image.width):
        raise ValueError(
            f"a map in the image's frame has shape {(image.height, image.width)}; got {values.shape}"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is 0 to 1; got {opacity}")
    levels = colors.normalised(values, signed=signed)
    paint = colors.diverging(levels) if signed else colors.heat(levels)  # [H, W, 3]
    # Colour comes in fast and then holds, so that weak heat is seen and the image shows where there is none.
    cover = np.float32(opacity) * np.sqrt(np.abs(levels))[..., None]  # [H, W, 1]
    pixels = np.asarray(image.convert("RGB"), np.float32)
    mixed = Image.fromarray(np.rint(pixels + (paint - pixels) * cover).astype(np.uint8))
    if box is not None:
        outline(mixed, box)
    return mixed


def outline(image: Image.Image, box: Box) -> None:
    """Draw one box onto the image, in white within black: seen on any ground."""
    width = _line_width(image)
    draw = ImageDraw.Draw(image)
    draw.rectangle(_pixels(box, image, grow=1), outline=_BLACK, width=width + 2)
    draw.rectangle(_pixels(box, image), outline=_WHITE, width=width)


def draw_boxes(image: Image.Image, boxes: Sequence[Labelled]) -> Image.Image:
    """Draw boxes with their texts; the first is drawn last, on top.

    Returns:
        A new RGB image of the same size.
    """
    drawn = image.convert("RGB")
    if drawn is image:
        drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    width = _line_width(image)
    font = _font(max(11, round(max(image.size) / 32)))
    for labelled in reversed(boxes):
        if labelled.dashed:
            _dash(draw, _pixels(labelled.box, image), labelled.color, width)
            continue
        draw.rectangle(_pixels(labelled.box, image, grow=1), outline=_BLACK, width=width + 2)
        draw.rectangle(_pixels(labelled.box, image), outline=labelled.color, width=width)
    for labelled in reversed([box for box in boxes if box.text]):
        _write_label(draw, labelled, image.size, font)
    return drawn


def fill(image: Image.Image, mask: NDArray[np.bool_], color: Color) -> None:
    """Tint the pixels of a mask, bool (H, W), half with a colour."""
    half = Image.fromarray(mask.astype(np.uint8) * 128)
    image.paste(color, (0, 0), half)


def curves(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], size: tuple[int, int]
) -> Image.Image:
    """Draw curves on a logarithmic scale, each in its colour, with their names and the ends of both axes.

    What is not above 0 has no logarithm and is left out.

    Args:
        lines: name, x and y of each curve.
        size: (W, H) of the picture, in pixels.

    Returns:
        A new RGB image.
    """
    drawn = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(drawn)
    font = _font(_SMALL_SIZE)
    left, top, right, bottom = _GAP, _GAP, size[0] - _GAP, size[1] - _TITLE_HEIGHT
    draw.rectangle((left, top, right, bottom), outline=_INK)
    kept = [(name, [(x, y) for x, y in zip(xs, ys, strict=True) if y > 0]) for name, xs, ys in lines]
    points = np.array([point for _, line in kept for point in line], np.float64).reshape(-1, 2)  # [N, 2]
    if points.size:
        points[:, 1] = np.log10(points[:, 1])
        low, high = points.min(0), points.max(0)
        span = np.where(high > low, high - low, 1.0)
        for i, (name, line) in enumerate(kept):
            at = (np.array([(x, np.log10(y)) for x, y in line]).reshape(-1, 2) - low) / span
            xs = left + at[:, 0] * (right - left)
            ys = bottom - at[:, 1] * (bottom - top)
            draw.line(list(zip(xs, ys, strict=True)), fill=label_color(i), width=2)
            draw.text((right - _GAP, top + 4 + i * _SMALL_SIZE), name, label_color(i), font, anchor="ra")
        draw.text((left + 4, top + 2), f"{10 ** high[1]:.3g}", _INK, font)
        draw.text((left + 4, bottom - 2), f"{10 ** low[1]:.3g}", _INK, font, anchor="lb")
        draw.text((left, bottom + 4), f"{low[0]:g}", _INK, font)
        draw.text((right, bottom + 4), f"{high[0]:g}", _INK, font, anchor="ra")
    return drawn


def fit(image: Image.Image, side: int = TILE_SIDE, *, view: Box | None = None) -> Image.Image:
    """Scale an image, or the part of it in `view`, so that its longer side is `side`, as RGB.

    Args:
        image: any mode.
        side: pixels.
        view: [x1, y1, x2, y2] within the image; None: all of it.
    """
    x1, y1, x2, y2 = view or (0, 0, image.width, image.height)
    scale = side / max(x2 - x1, y2 - y1)
    size = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return image.convert("RGB").resize(size, resampling, box=(x1, y1, x2, y2))


def contact_sheet(rows: Sequence[Sequence[Tile]], *, footer: str = "") -> Image.Image:
    """Set tiles in rows on white, each under its title.

    Columns are as wide as their widest tile, rows as high as their highest.

    Args:
        rows: tiles, row by row; rows may differ in length.
        footer: a line below all of them; empty: none.

    Raises:
        ValueError: if there is no tile at all.
    """
    if not any(rows):
        raise ValueError("a contact sheet has at least one tile")
    columns = max(map(len, rows))
    widths = [max(row[c].image.width for row in rows if c < len(row)) for c in range(columns)]
    heights = [max((tile.image.height for tile in row), default=0) for row in rows]
    size = (
        sum(widths) + _GAP * (columns + 1),
        sum(heights) + (_TITLE_HEIGHT + _GAP) * len(rows) + _GAP + (_TITLE_HEIGHT if footer else 0),
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = _font(_TITLE_SIZE)
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        x = _GAP
        for tile, width in zip(row, widths, strict=False):
            draw.text((x, y), _cut(tile.title, font, width), fill=_INK, font=font)
            sheet.paste(tile.image, (x, y + _TITLE_HEIGHT))
            x += width + _GAP
        y += _TITLE_HEIGHT + height + _GAP
    if footer:
        draw.text((_GAP, y), _cut(footer, font, size[0] - 2 * _GAP), fill=_INK, font=font)
    return sheet


def label_color(label_id: int) -> Color:
    """Return the colour in which a label's boxes are drawn."""
    return colors.LABEL_COLORS[label_id % len(colors.LABEL_COLORS)]


def _dash(draw: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], color: Color, width: int) -> None:
    """Draw a rectangle in dashes of a colour, with black between them: seen on any ground."""
    x1, y1, x2, y2 = corners
    draw.rectangle(corners, outline=_BLACK, width=width)
    dash, end = 4 * width, width - 1
    for x in range(x1, x2 + 1, 2 * dash):
        stop = min(x + dash - 1, x2)
        draw.rectangle((x, y1, stop, min(y1 + end, y2)), fill=color)
        draw.rectangle((x, max(y2 - end, y1), stop, y2), fill=color)
    for y in range(y1, y2 + 1, 2 * dash):
        stop = min(y + dash - 1, y2)
        draw.rectangle((x1, y, min(x1 + end, x2), stop), fill=color)
        draw.rectangle((max(x2 - end, x1), y, x2, stop), fill=color)


def _line_width(image: Image.Image) -> int:
    return max(2, round(max(image.size) / 250))


def _pixels(box: Box, image: Image.Image, grow: int = 0) -> tuple[int, int, int, int]:
    """Return the corner pixels, both included, of a continuous box; clipped, and at least one pixel."""
    x1 = min(max(round(box[0]) - grow, 0), image.width - 1)
    y1 = min(max(round(box[1]) - grow, 0), image.height - 1)
    x2 = min(max(round(box[2]) - 1 + grow, x1), image.width - 1)
    y2 = min(max(round(box[3]) - 1 + grow, y1), image.height - 1)
    return x1, y1, max(x1, x2), max(y1, y2)


def _write_label(
    draw: ImageDraw.ImageDraw, labelled: Labelled, size: tuple[int, int], font: ImageFont.FreeTypeFont
) -> None:
    """Write the text on a plate above the box, or inside its top where there is no room above."""
    ascent, descent = font.getmetrics()
    pad = max(2, ascent // 5)
    width, height = round(font.getlength(labelled.text)) + 2 * pad, ascent + descent
    x = max(0, min(round(labelled.box[0]), size[0] - width))
    above = round(labelled.box[1]) - height
    y = above if above >= 0 else max(0, min(round(labelled.box[1]), size[1] - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=labelled.color)
    draw.text((x + pad, y), labelled.text, fill=_ink_on(labelled.color), font=font)


def _ink_on(color: Color) -> Color:
    red, green, blue = color
    return _BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else _WHITE


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text to the pixels there are, with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("whybox_client.pictures needs a Pillow with FreeType, as its wheels have it")
    return font
