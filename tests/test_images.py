"""Pictures of every kind: upright RGB, or an error that names the field."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

import picture_files
from whybox.images import decode_image
from whybox.recipe import InputLimits
from whybox_proto import maps
from whybox_proto.errors import ContractError
from whybox_proto.images import decode
from whybox_proto.v1 import types_pb2

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


GOOD = picture_files.good()
BAD = picture_files.bad()


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_picture_has_its_pixels(name: str) -> None:
    file = GOOD[name]
    pixels = decode(file.data, InputLimits())
    assert pixels.shape == file.pixels.shape
    off = np.abs(pixels.astype(int) - file.pixels.astype(int)).max()
    assert off <= file.tolerance


@pytest.mark.parametrize("name", BAD)
def test_every_kind_of_bad_picture_is_refused(name: str) -> None:
    file = BAD[name]
    with pytest.raises(ContractError) as caught:
        decode(file.data, InputLimits())
    assert (caught.value.type, caught.value.field) == (file.type, "image")
    assert file.says in caught.value.message
    assert len(caught.value.got) <= 120


@pytest.mark.parametrize("name", ["png rgba", "jpeg progressive", "webp lossless", "gif", "bmp", "tiff lzw"])
def test_a_file_that_is_cut_anywhere_is_an_answer_or_an_error(name: str) -> None:
    file = GOOD[name]
    for length in [*range(0, 400, 7), *range(400, len(file.data), 101)]:
        with contextlib.suppress(ContractError):
            assert decode(file.data[:length], InputLimits()).shape == file.pixels.shape


@pytest.mark.parametrize("name", GOOD)
def test_a_file_with_a_wrong_byte_is_an_answer_or_an_error(name: str) -> None:
    rng = random.Random(name)
    data = GOOD[name].data
    for _ in range(40):
        at = rng.randrange(min(len(data), 600))
        broken = data[:at] + rng.randbytes(1) + data[at + 1 :]
        with contextlib.suppress(ContractError):
            pixels = decode(broken, LIMITS)
            assert pixels.dtype == np.uint8
            assert pixels.shape[0] * pixels.shape[1] <= LIMITS.max_pixels


def test_what_is_cut_off_is_never_made_up() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


# What a small file would cost a decoder that believes it, and the most that it may cost here.
BOMBS = {
    "20000 x 20000 in one bit": ("saved(Image.new('1', (20_000, 20_000)))", 20),
    "a canvas of 16383 x 16383": (
        "b'RIFF\\x16\\0\\0\\0WEBPVP8X\\x0a' + bytes(7) + b'\\xfe\\x3f\\0\\xfe\\x3f\\0'",
        20,
    ),
    "texts of 100 MB": ("png(RGB, 8, 2, before=chunk(b'zTXt', b'k\\0\\0' + compress(bytes(100 << 20))))", 40),
    "a profile of 100 MB": (
        "png(RGB, 8, 2, before=chunk(b'iCCP', b'k\\0\\0' + compress(bytes(100 << 20))))",
        40,
    ),
    "2 million texts": ("png(RGB, 8, 2, before=chunk(b'tEXt', b'a\\0b') * 2_000_000)", 40),
    "8 million comments": (
        "gif((8, 8), (0, 0, 8, 8), before=b'!\\xfe' + b'\\x01c' * 8_000_000 + b'\\0')",
        40,
    ),
    "8 million segments": ("b'\\xff\\xd8' + b'\\xff\\xfe\\0\\x02' * 8_000_000", 40),
    "30 million bytes of padding": ("b'\\xff\\xd8' + b'\\xff' * 30_000_000", 40),
    "values of 300 MB that overlap": (
        "jpeg_with(saved(RGB, 'JPEG'), (0xE1, b'Exif\\0\\0II*\\0\\x08\\0\\0\\0\\x88\\x13' + b''.join("
        "struct.pack('<HHII', 40_000 + i, 7, 60_000, 0) for i in range(5000))))",
        40,
    ),
    "a tile of 40000 x 40000": ("bad()['tiff of one huge tile'].data", 20),
    "the largest picture there may be": ("saved(Image.new('RGB', (7000, 7000)))", 900),
    "the largest picture, transparent": (
        "saved(Image.new('RGBA', (7000, 7000)), 'WEBP', lossless=True)",
        1400,
    ),
    "the largest picture in the most scans": ("scan_bomb(7000, 85)", 900),
}
MEASURE = """
import struct, sys
from zlib import compress
from PIL import Image
from picture_files import *
from whybox_proto import images
from whybox_proto.errors import ContractError

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name + ":"))

class Limits:
    max_pixels, max_side, max_aspect = 50_000_000, 16_384, 50

images.decode(saved(RGB), Limits)
data = eval(sys.argv[1])
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = kilobytes("VmRSS")
try:
    images.decode(data, Limits)
except ContractError:
    pass
print((kilobytes("VmHWM") - before) // 1024)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little_memory(name: str) -> None:
    made, megabytes = BOMBS[name]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEASURE, made],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= megabytes


def test_maps_are_the_same_in_bands_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    made = []
    for pixels in (1 << 20, 100, 1):
        monkeypatch.setattr(maps, "BAND_PIXELS", pixels)
        large = maps.enlarge(values, (-1.5, 2.0, 61.0, 43.5), 60, 50)
        heat_map = types_pb2.HeatMap()
        maps.encode(large, heat_map, "u8")
        made.append((large.tobytes(), heat_map.SerializeToString()))
    assert made[0] == made[1] == made[2]
