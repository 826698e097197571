"""Pictures of every kind: upright RGB, or an error that names the field."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from whybox.images import decode_image
from whybox.recipe import InputLimits
from whybox_proto.errors import ContractError

LIMITS = InputLimits(max_pixels=10_000, max_side=200)


def file_of(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def ramp(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.arange(12 * 8, dtype=np.uint8).reshape(8, 12) * 2).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = ramp(mode)
    pixels = decode_image(file_of(image), LIMITS).numpy()
    assert pixels.shape == (8, 12, 3)
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_format_is_read(format: str) -> None:
    pixels = decode_image(file_of(ramp(), format), LIMITS).numpy()
    assert pixels.shape == (8, 12, 3)
    assert abs(pixels.astype(int) - np.asarray(ramp()).astype(int)).mean() < 8


def test_sixteen_bit_grey_keeps_its_range() -> None:
    levels = (np.arange(96, dtype=np.uint16) * 600).reshape(8, 12)
    pixels = decode_image(file_of(Image.fromarray(levels)), LIMITS).numpy()
    assert np.array_equal(pixels[:, :, 0], np.rint(levels / 257).astype(np.uint8))


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode_image(file_of(image), LIMITS).unique().tolist() == [255]


def test_orientation_is_applied() -> None:
    image = ramp()
    exif = image.getexif()
    exif[0x0112] = 6  # stored lying on its side
    pixels = decode_image(file_of(image, "PNG", exif=exif), LIMITS).numpy()
    assert pixels.shape == (12, 8, 3)
    assert np.array_equal(pixels, np.asarray(image.rotate(-90, expand=True)))


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"\xff\xd8\xff",
        b"<html></html>",
        file_of(ramp())[:60],
        file_of(ramp(), "JPEG")[:200],
        b"%PDF-1.4",
    ],
    ids=["one byte", "only a magic", "html", "cut png", "cut jpeg", "pdf"],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ContractError) as caught:
        decode_image(data, LIMITS)
    assert (caught.value.type, caught.value.field) == ("invalid_image", "image")
    assert "JPEG" in caught.value.expected


@pytest.mark.parametrize("size", [(1, 51), (160, 3)])
def test_long_thin_pictures_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ContractError) as caught:
        decode_image(file_of(Image.new("RGB", size)), LIMITS)
    assert (caught.value.type, caught.value.got) == ("invalid_image", f"{size[0]}x{size[1]}")
    assert "at most 50 times" in caught.value.expected


@pytest.mark.parametrize("size", [(201, 1), (101, 100)])
def test_too_many_pixels_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ContractError) as caught:
        decode_image(file_of(Image.new("RGB", size)), LIMITS)
    assert caught.value.type == "request_too_large"
    assert caught.value.got == f"{size[0]}x{size[1]}"


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = file_of(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(ContractError) as caught:
        decode_image(bomb, InputLimits())
    assert caught.value.type in ("request_too_large", "invalid_image")
