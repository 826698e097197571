"""Pictures on their way to the service, and the same pixels for drawing on."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

#: A path, the bytes of an encoded picture, a Pillow image, or a uint8 array: (H, W, 3) RGB or (H, W) grey.
ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | Image.Image | NDArray[np.uint8]"
ImageFormat: TypeAlias = Literal["png", "jpeg"]

# Pillow modes that PNG and the service understand as they are.
_SENT_AS_THEY_ARE = {
    "png": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    "jpeg": {"L", "RGB", "CMYK"},
}
_JPEG_QUALITY = 95


def encode(image: ImageLike, image_format: ImageFormat = "png") -> bytes:
    """Turn an image into the bytes that are sent.

    The file at a path, and bytes, are sent untouched. Pixels — a Pillow image, turned upright by its EXIF
    orientation, or an array — are encoded.

    Args:
        image: path, encoded bytes, Pillow image, or uint8 array (H, W, 3) RGB, (H, W) or (H, W, 1) grey.
        image_format: how pixels are encoded: ``png`` (exact) or ``jpeg`` (smaller).

    Raises:
        TypeError: for anything else.
        ValueError: for an array of another dtype or shape, or pixels that are not 8 or 16 bits deep.
        OSError: if the file cannot be read.
    """
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()

    import numpy as np
    from PIL import Image, ImageOps

    if isinstance(image, np.ndarray):
        return _compress(Image.fromarray(_grey_or_rgb(image)), image_format)
    if isinstance(image, Image.Image):
        return _compress(ImageOps.exif_transpose(image), image_format)
    raise TypeError(
        "an image is a path, bytes, a Pillow image or a uint8 NumPy array (H, W, 3) or (H, W); "
        f"got {type(image).__module__}.{type(image).__qualname__}"
    )


@dataclass(frozen=True)
class Picture:
    """The bytes that were sent, decoded when somebody wants to look at them."""

    data: bytes

    @cached_property
    def pixels(self) -> Image.Image:
        """The upright picture (EXIF orientation applied) as RGB.

        Raises:
            ValueError: if Pillow on this machine cannot decode it.
        """
        from PIL import Image, ImageOps

        try:
            with Image.open(io.BytesIO(self.data)) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except OSError as error:
            raise ValueError(f"the image cannot be drawn on: {error}") from error

    def __repr__(self) -> str:
        return f"Picture({len(self.data)} bytes)"


def png(image: Image.Image) -> bytes:
    """Encode a finished drawing as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _grey_or_rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.dtype != "uint8":
        raise ValueError(f"an image array is of dtype uint8, 0 to 255; got {pixels.dtype}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not pixels.size or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"an image array has shape (H, W, 3) RGB or (H, W) grey; got {pixels.shape}")
    return pixels


def _compress(image: Image.Image, image_format: ImageFormat) -> bytes:
    if image_format not in _SENT_AS_THEY_ARE:
        raise ValueError(f"image_format is one of png, jpeg; got {image_format!r}")
    if image.mode in ("F", "I"):
        raise ValueError(f"an image of mode {image.mode} has no fixed range of values: convert it to RGB")
    if image.mode not in _SENT_AS_THEY_ARE[image_format]:
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(
        buffer, format=image_format.upper(), **({"quality": _JPEG_QUALITY} if image_format == "jpeg" else {})
    )
    return buffer.getvalue()
