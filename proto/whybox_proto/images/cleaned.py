"""What a container's module hands on."""

from __future__ import annotations

from dataclasses import dataclass

from whybox_proto.errors import ContractError, shorten


@dataclass(frozen=True)
class Cleaned:
    """A picture with nothing in it but what makes its pixels.

    Attributes:
        data: the file for Pillow.
        size: (width, height) as stored, in pixels.
        orientation: of Exif, 1 to 8; 1 is upright.
        bits: of a grey level that has more than 8.
        white_is_zero: such levels count from white to black.
    """

    data: bytes
    size: tuple[int, int]
    orientation: int = 1
    bits: int = 16
    white_is_zero: bool = False


def broken(what: str, got: str) -> ContractError:
    """Return the refusal of a picture, for a caller to raise."""
    return ContractError(
        "invalid_image",
        f"the image is {what}",
        field="image",
        expected="one of JPEG, PNG, WEBP, BMP, GIF, TIFF",
        got=shorten(got, 120),
    )
