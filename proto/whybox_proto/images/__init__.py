"""From the bytes of a picture to upright pixels: the one policy of worker and gateway.

Each container is read in two steps. A module of its own (`jpeg`, `png`, …) walks the container's structure
in bounded time and memory, tells the size, and hands on only what makes the pixels of the first picture;
Pillow then opens that. So what Pillow does with metadata (profiles, texts, thumbnails, frames, maker notes)
never meets what a client sent, and the limits are checked before anything is allocated.

What is decided here:

* Orientation comes from the Exif tag, in any container that has one; what cannot be read counts as upright.
* Colour profiles are not applied: a pixel's numbers are taken as sRGB, as torchvision and OpenCV take them.
* Transparency lies on white; so does what a GIF's first frame leaves bare.
* Of several pictures the first counts: of an animation, of the pages of a TIFF.
* 16 bits a channel become 8 by scaling. Floating point, 32-bit and CIE L*a*b* pictures are refused: nothing
  in them says which values are black and white.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from whybox_proto.errors import ContractError
from whybox_proto.images import bmp, gif, jpeg, png, tiff, webp
from whybox_proto.images.cleaned import Cleaned, broken

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

Pixels = NDArray[np.uint8]

_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by the value of its Exif orientation."""
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
"""The values for which that swaps width and height."""


class Limits(Protocol):
    """What pictures are taken: pixels in all, pixels on a side, longer side over shorter side."""

    @property
    def max_pixels(self) -> int: ...
    @property
    def max_side(self) -> int: ...
    @property
    def max_aspect(self) -> int: ...


def decode(data: bytes, limits: Limits) -> Pixels:
    """Decode a picture: upright, transparency on white, the first picture of several.

    Args:
        data: the encoded picture, one of `FORMATS`.
        limits: larger ones are refused before their pixels are decoded.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ContractError: ``invalid_image``, or ``request_too_large``.
    """
    with _breaking(data):
        kind, cleaned = _clean(data)
        _check_size(cleaned.size, limits)
        if kind == "PNG":
            png.check_filled(cleaned)
        elif kind == "JPEG":
            jpeg.check_filled(cleaned)
        with Image.open(io.BytesIO(cleaned.data), formats=(kind,)) as image:
            if image.size != cleaned.size:
                raise broken("of two sizes", f"{cleaned.size} and {image.size}")
            return _upright_rgb(image, cleaned)


def size_of(data: bytes) -> tuple[int, int]:
    """Return the width and the height that `decode` would give a picture, without decoding its pixels.

    Raises:
        ContractError: ``invalid_image``, where that can be told without the pixels.
    """
    with _breaking(data):
        _, cleaned = _clean(data)
    width, height = cleaned.size
    return (height, width) if cleaned.orientation in _ON_ITS_SIDE else (width, height)


@contextmanager
def _breaking(data: bytes) -> Iterator[None]:
    """Turn whatever is raised for a broken picture into an error of the contract."""
    try:
        yield
    except ContractError:
        raise
    except UnidentifiedImageError as error:
        raise _unread(data) from error
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        raise broken("a broken picture", f"{type(error).__name__}: {error}") from error


def _clean(data: bytes) -> tuple[str, Cleaned]:
    """Tell the container, and take from it what makes the pixels."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG", jpeg.clean(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", png.clean(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP", webp.clean(data)
    if data.startswith(b"BM"):
        return "BMP", bmp.clean(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF", gif.clean(data)
    if data.startswith((b"II\x2a\0", b"MM\0\x2a")):
        return "TIFF", tiff.clean(data)
    raise _unread(data)


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels or max(size) > limits.max_side:
        raise ContractError(
            "request_too_large",
            "the image has too many pixels",
            field="image",
            expected=f"at most {limits.max_pixels} pixels and {limits.max_side} on a side",
            got=f"{width}x{height}",
        )
    if min(size) < 1:
        raise broken("empty", f"{width}x{height}")
    if max(size) > limits.max_aspect * min(size):
        raise ContractError(
            "invalid_image",
            "the image is too long and thin",
            field="image",
            expected=f"a longer side of at most {limits.max_aspect} times the shorter one",
            got=f"{width}x{height}",
        )


def _upright_rgb(image: Image.Image, cleaned: Cleaned) -> Pixels:
    bare = _bare(image)
    image.load()
    method = _TRANSPOSED.get(cleaned.orientation)
    if image.mode.startswith("I;16"):
        grey = _eight_bits(image, cleaned)
        upright = grey if method is None else np.asarray(Image.fromarray(grey).transpose(method))
        return np.repeat(upright[:, :, None], 3, 2)
    if image.mode in ("I", "F"):
        what = "of 32-bit numbers" if image.mode == "I" else "of floating-point numbers"
        raise broken(f"{what}, which have no fixed white", f"mode {image.mode}")
    if image.mode == "LAB":
        raise broken("in CIE L*a*b*, a colour space that is not read", "mode LAB")
    rgb = image
    if image.has_transparency_data:
        rgb = _on_white(image)
    elif image.mode != "RGB":
        rgb = image.convert("RGB")
    if bare is not None:
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(rgb.crop(bare), bare)
        rgb = canvas
    return np.array(rgb if method is None else rgb.transpose(method))


def _bare(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the box of a GIF's first frame where it does not cover the whole picture; read before `load`."""
    if image.format != "GIF":
        return None
    x1, y1, x2, y2 = image.tile[0][1]  # type: ignore[attr-defined]  # of an ImageFile
    return None if (x1, y1, x2, y2) == (0, 0, *image.size) else (x1, y1, x2, y2)


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _eight_bits(image: Image.Image, cleaned: Cleaned) -> Pixels:
    """Scale grey of more than 8 bits, which Pillow would clip."""
    levels = np.asarray(image).astype(np.uint16, copy=False)
    table = np.rint(np.arange(1 << 16) * (255 / ((1 << cleaned.bits) - 1))).clip(0, 255).astype(np.uint8)
    if cleaned.white_is_zero:
        table = 255 - table
    if isinstance(key := image.info.get("transparency"), int):
        table[key] = 255
    grey: Pixels = table[levels]
    return grey


def _unread(data: bytes) -> ContractError:
    return broken("no picture", f"{len(data)} bytes beginning with {data[:8].hex(' ')}")


__all__ = ["FORMATS", "Limits", "Pixels", "decode", "size_of"]
