"""From the bytes of a picture to upright pixels."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from whybox.recipe import InputLimits
from whybox_proto.errors import ContractError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def decode_image(data: bytes, limits: InputLimits) -> Tensor:
    """Decode a picture: EXIF orientation applied, transparency on white, the first frame of several.

    Args:
        data: the encoded picture, one of `FORMATS`.
        limits: larger ones are refused before their pixels are decoded.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ContractError: ``invalid_image``, or ``request_too_large``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes that the limits below refuse
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.size, limits)
                return torch.from_numpy(_upright_rgb(image))
    except ContractError:
        raise
    except UnidentifiedImageError as error:
        raise _invalid("no picture", f"{len(data)} bytes beginning with {data[:8].hex(' ')}") from error
    except Image.DecompressionBombError as error:
        raise _invalid("a picture that is far too large", str(error)) from error
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        raise _invalid("a broken picture", f"{type(error).__name__}: {error}") from error


def _check_size(size: tuple[int, int], limits: InputLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels or max(size) > limits.max_side:
        raise ContractError(
            "request_too_large",
            "the image has too many pixels",
            field="image",
            expected=f"at most {limits.max_pixels} pixels and {limits.max_side} on a side",
            got=f"{width}x{height}",
        )
    if max(size) > limits.max_aspect * min(size):
        raise ContractError(
            "invalid_image",
            "the image is too long and thin",
            field="image",
            expected=f"a longer side of at most {limits.max_aspect} times the shorter one",
            got=f"{width}x{height}",
        )


def _upright_rgb(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16") or upright.mode == "I":
        # Pillow clips 16-bit grey to 255 when converting; scale instead.
        levels = np.asarray(upright, np.float64) / 257
        grey = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, 2)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return np.array(upright.convert("RGB"))


def _invalid(what: str, got: str) -> ContractError:
    return ContractError(
        "invalid_image",
        f"the image is {what}",
        field="image",
        expected=f"one of {', '.join(FORMATS)}",
        got=got,
    )
