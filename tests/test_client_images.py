"""What may be given as an image, and what is sent for it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whybox_client.images import Picture, encode

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def file_of(image: Image.Image, image_format: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **settings)
    return buffer.getvalue()


def test_files_and_bytes_are_sent_untouched(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_bytes(b"not even a picture")
    for image in (path, str(path), b"not even a picture", bytearray(b"not even a picture")):
        assert encode(image) == b"not even a picture"


def test_pixels_arrive_exactly() -> None:
    for image in (PIXELS, Image.fromarray(PIXELS)):
        assert np.array_equal(decoded(encode(image)), PIXELS)
    for grey in (PIXELS[:, :, 0], PIXELS[:, :, :1], PIXELS[::-1, ::2, 0]):
        assert np.array_equal(decoded(encode(grey)), grey.reshape(grey.shape[:2]))


def test_jpeg_is_smaller_and_near() -> None:
    smooth = np.asarray(Image.fromarray(PIXELS).resize((320, 240), Image.Resampling.BICUBIC))
    png, jpeg = encode(smooth), encode(smooth, "jpeg")
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
    assert len(jpeg) < len(png)
    assert np.abs(decoded(jpeg).astype(int) - smooth).mean() < 4


def test_a_pillow_image_is_turned_upright_as_its_file_would_be() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the left: upright is 24 wide and 32 high
    data = file_of(Image.fromarray(PIXELS), "PNG", exif=exif)
    opened = Image.open(io.BytesIO(data))
    sent = encode(opened)
    assert Image.open(io.BytesIO(sent)).size == (24, 32)
    assert np.array_equal(decoded(sent), np.asarray(Picture(data).pixels))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16"])
@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_every_mode_of_pillow_can_be_sent(mode: str, image_format: str) -> None:
    source = Image.fromarray(PIXELS)
    image = Image.new("I;16", (32, 24), 40000) if mode == "I;16" else source.convert(mode)
    sent = Image.open(io.BytesIO(encode(image, image_format)))  # type: ignore[arg-type]
    assert (sent.size, sent.format) == ((32, 24), image_format.upper())


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (PIXELS.astype(np.float32), "dtype uint8, 0 to 255; got float32"),
        (np.zeros((4, 4, 4), np.uint8), r"got \(4, 4, 4\)"),
        (np.zeros((3, 24, 32), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((0, 4), np.uint8), r"got \(0, 4\)"),
        (np.zeros(4, np.uint8), r"got \(4,\)"),
        (Image.new("F", (4, 4)), "no fixed range"),
        (Image.new("I", (4, 4)), "no fixed range"),
    ],
)
def test_pixels_that_mean_nothing_are_refused(image: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode(image)  # type: ignore[arg-type]


@pytest.mark.parametrize("image", [None, 7, [[1, 2], [3, 4]], io.BytesIO(b"x")])
def test_other_things_are_refused_by_type(image: object) -> None:
    with pytest.raises(TypeError, match="an image is a path, bytes, a Pillow image or"):
        encode(image)  # type: ignore[arg-type]


def test_a_missing_file_and_a_strange_format_are_python_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        encode(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="png, jpeg"):
        encode(PIXELS, "gif")  # type: ignore[arg-type]


def test_a_picture_is_decoded_only_when_looked_at() -> None:
    broken = Picture(b"no picture")
    assert repr(broken) == "Picture(10 bytes)"
    with pytest.raises(ValueError, match="cannot be drawn on"):
        _ = broken.pixels
    truncated = Picture(file_of(Image.fromarray(PIXELS), "PNG")[:-600])
    with pytest.raises(ValueError, match="cannot be drawn on"):
        _ = truncated.pixels
