"""Picture files of every kind with the pixels that they hold, and files that hold none.

The good ones come with pixels worked out here, from the numbers that were written, and never by a decoder.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]

HEIGHT, WIDTH = 48, 64
_rows, _columns = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([_columns * 4, _rows * 5, (_rows + _columns) * 2], 2).astype(np.uint8)
GREY = ((_rows * 3 + _columns * 2) % 256).astype(np.uint8)
ALPHA = (_columns * 4).astype(np.uint8)
DEEP = (_rows * 1000 + _columns * 37).astype(np.uint16)
DEEP_RGB = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], 2)
BITS = (_rows // 4 + _columns // 4) % 2 == 1
INDICES = ((_rows // 6 + _columns // 8) % 4).astype(np.uint8)
PALETTE = np.array([[250, 10, 20], [0, 200, 30], [10, 20, 240], [128, 128, 0]], np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
INKS = np.stack([_columns * 3, _rows * 4, (_rows + _columns), _rows], 2).astype(np.uint8)
BLOCKS = np.kron(
    np.array([[[230, 30, 40], [20, 200, 60]], [[30, 60, 220], [240, 230, 30]]]),
    np.ones((HEIGHT // 2, WIDTH // 2, 1), int),
).astype(np.uint8)


@dataclass(frozen=True)
class Good:
    """A file and its upright pixels, uint8 (H, W, 3); `tolerance` is how far a lossy one may be off."""

    data: bytes
    pixels: Pixels
    tolerance: int = 0


@dataclass(frozen=True)
class Bad:
    """A file that is refused: the error's type, and a part of its message."""

    data: bytes
    type: str = "invalid_image"
    says: str = ""


def saved(
    pixels: Pixels | Image.Image, format: str = "PNG", mode: str | None = None, **options: Any
) -> bytes:
    """A file as Pillow writes it."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, format=format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    raster: Pixels, depth: int, color: int, *, size: tuple[int, int] | None = None, before: bytes = b""
) -> bytes:
    """A PNG written by hand: `raster` (H, W, …), numbers of `depth` bits, 8 or 16."""
    height, width = raster.shape[:2]
    lines = raster.astype(f">u{depth // 8}").reshape(height, -1)
    body = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines), 1)
    stated = struct.pack(">IIBBBBB", *(size or (width, height)), depth, color, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", stated) + before + chunk(b"IDAT", body) + chunk(b"IEND")


def tiff(
    entries: dict[int, Sequence[int]], blob: bytes = b"", *, order: str = "<", wide: bool = True
) -> bytes:
    """A TIFF of one directory written by hand: the blob is at byte 8, the values are longs (or shorts)."""
    kind, letter = (4, "I") if wide else (3, "H")
    blob += b"\0" * (len(blob) % 2)
    start = 8 + len(blob)
    behind = start + 2 + 12 * len(entries) + 4
    directory, values = struct.pack(f"{order}H", len(entries)), b""
    for tag in sorted(entries):
        packed = struct.pack(f"{order}{len(entries[tag])}{letter}", *entries[tag])
        if len(packed) > 4:
            place, values = struct.pack(f"{order}I", behind + len(values)), values + packed
        else:
            place = packed.ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, kind, len(entries[tag])) + place
    head = (b"II\x2a\0" if order == "<" else b"MM\0\x2a") + struct.pack(f"{order}I", start)
    return head + blob + directory + bytes(4) + values


def grey_tiff(levels: Pixels, *, order: str = "<", photometric: int = 1, extra: Any = ()) -> bytes:
    """An uncompressed grey TIFF of one strip."""
    height, width = levels.shape
    blob = levels.astype(f"{order}u{levels.itemsize}").tobytes()
    bits = 8 * levels.itemsize
    entries = {256: [width], 257: [height], 258: [bits], 259: [1], 262: [photometric], 273: [8], 277: [1]}
    return tiff({**entries, 278: [height], 279: [len(blob)], **dict(extra)}, blob, order=order)


def tiled_tiff(pixels: Pixels, side: int = 16) -> bytes:
    """An uncompressed TIFF of tiles, RGB."""
    height, width = pixels.shape[:2]
    blob, offsets = b"", []
    for y in range(0, height, side):
        for x in range(0, width, side):
            offsets.append(8 + len(blob))
            blob += pixels[y : y + side, x : x + side].tobytes()
    entries = {256: [width], 257: [height], 258: [8, 8, 8], 259: [1], 262: [2], 277: [3]}
    tiles = {322: [side], 323: [side], 324: offsets, 325: [side * side * 3] * len(offsets)}
    return tiff({**entries, **tiles}, blob)


def exif_block(orientation: int, order: str = "<") -> bytes:
    """A block of Exif that holds an orientation."""
    head = (b"II\x2a\0" if order == "<" else b"MM\0\x2a") + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """The upright picture of stored pixels, as the Exif standard draws the eight cases."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[:, ::-1],
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: pixels.transpose(1, 0, 2)[::-1],
    }[orientation]


def jpeg_with(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with further segments (marker, body) after its beginning."""
    extra = b"".join(
        bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments
    )
    return data[:2] + extra + data[2:]


def scan_bomb(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    data = saved(Image.new("RGB", (side, side), "navy"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def bmp_runs(width: int, height: int, runs: bytes) -> bytes:
    """A run-length encoded BMP of 8 bits, its palette grey."""
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    offset = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset) + header + palette + runs


def gif(canvas: tuple[int, int], frame: tuple[int, int, int, int], *, before: bytes = b"") -> bytes:
    """A GIF of one frame (x, y, width, height) in the second colour of PALETTE."""
    x, y, width, height = frame
    plain = saved(_paletted(np.ones((height, width), np.uint8)), "GIF")
    start = plain.index(b"\x2c", 13 + (3 << ((plain[10] & 7) + 1)))
    body = plain[:start].split(b"\x21\xf9")[0], plain[start + 9 :]
    head = body[0][:6] + struct.pack("<HH", *canvas) + body[0][10:]
    return head + before + b"\x2c" + struct.pack("<HHHH", x, y, width, height) + body[1]


def on_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Colours over white, rounded."""
    weight = alpha[..., None] / 255
    return np.floor(pixels * weight + 255 * (1 - weight) + 0.5).astype(np.uint8)


def three(grey: Pixels) -> Pixels:
    """Grey as RGB."""
    return np.repeat(grey[:, :, None], 3, 2)


def _paletted(indices: Pixels, transparent: bool = False) -> Image.Image:
    image = Image.fromarray(indices).convert("P")
    image.putpalette(PALETTE.tobytes())
    image.putdata(indices.reshape(-1).tolist())
    if transparent:
        image.info["transparency"] = 2
    return image


def _ink(pixels: Pixels) -> Pixels:
    inks, black = pixels[..., :3].astype(float), pixels[..., 3:].astype(float)
    return np.rint((255 - inks) * (255 - black) / 255).astype(np.uint8)


def _ycck() -> Good:
    """CMYK as Photoshop writes it: the three inks as luma and chroma, all of it inverted."""
    stored = np.broadcast_to(np.array([180, 100, 150, 210], np.uint8), (16, 16, 4))  # Y, Cb, Cr, 255 - K
    plain = saved(_cmyk(255 - stored), "JPEG", quality=100)
    place = plain.index(b"Adobe") + 11
    y, cb, cr, white = 180, 100 - 128, 150 - 128, 210
    light = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
    # The file's "RGB" are the inks' complements.
    rgb = np.rint([(255 - value) * white / 255 for value in light]).astype(np.uint8)
    return Good(
        plain[:place] + b"\x02" + plain[place + 1 :],
        np.broadcast_to(rgb, (16, 16, 3)),
        tolerance=4,
    )


def _cmyk(inks: Pixels) -> Image.Image:
    return Image.frombytes("CMYK", (inks.shape[1], inks.shape[0]), np.ascontiguousarray(inks).tobytes())


def good() -> dict[str, Good]:
    """Every kind of picture that is read."""
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy()), Image.fromarray(255 - RGB)]
    indexed = PALETTE[INDICES]
    flat_inks = np.broadcast_to(np.array([200, 30, 90, 60], np.uint8), (16, 16, 4))
    files = {
        "png 1 bit": Good(saved(Image.fromarray(BITS)), three(BITS * np.uint8(255))),
        "png grey": Good(saved(GREY), three(GREY)),
        "png grey, alpha": Good(png(np.dstack([GREY, ALPHA]), 8, 4), on_white(three(GREY), ALPHA)),
        "png grey, one level transparent": Good(
            png(GREY, 8, 0, before=chunk(b"tRNS", struct.pack(">H", 40))),
            np.where(three(GREY) == 40, np.uint8(255), three(GREY)),
        ),
        "png rgb": Good(saved(RGB), RGB),
        "png rgb, interlaced by nobody": Good(png(RGB, 8, 2), RGB),
        "png rgb, one colour transparent": Good(
            png(BLOCKS, 8, 2, before=chunk(b"tRNS", struct.pack(">HHH", 230, 30, 40))),
            np.where((BLOCKS == [230, 30, 40]).all(2)[..., None], np.uint8(255), BLOCKS),
        ),
        "png rgba": Good(png(np.dstack([RGB, ALPHA]), 8, 6), on_white(RGB, ALPHA)),
        "png palette": Good(saved(_paletted(INDICES)), indexed),
        "png palette, transparent": Good(
            saved(_paletted(INDICES, transparent=True)),
            np.where(INDICES[..., None] == 2, np.uint8(255), indexed),
        ),
        "png 16-bit grey": Good(png(DEEP, 16, 0), three(np.rint(DEEP / 257).astype(np.uint8))),
        "png 16-bit grey, one level transparent": Good(
            png(DEEP, 16, 0, before=chunk(b"tRNS", struct.pack(">H", 37))),
            np.where(three(DEEP) == 37, 255, three(np.rint(DEEP / 257))).astype(np.uint8),
        ),
        "png 16-bit rgb": Good(png(DEEP_RGB, 16, 2), np.rint(DEEP_RGB / 257).astype(np.uint8), tolerance=1),
        "png 16-bit rgba": Good(
            png(np.dstack([DEEP_RGB, np.full_like(DEEP, 65535)]), 16, 6),
            np.rint(DEEP_RGB / 257).astype(np.uint8),
            tolerance=1,
        ),
        "png animated": Good(saved(frames[0], save_all=True, append_images=frames[1:]), RGB),
        "png with a profile": Good(saved(RGB, icc_profile=b"no profile at all"), RGB),
        "png with a bomb of a text": Good(
            png(RGB, 8, 2, before=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20)))), RGB
        ),
        "png with a bomb of a profile": Good(
            png(RGB, 8, 2, before=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(100 << 20)))), RGB
        ),
        "jpeg": Good(saved(BLOCKS, "JPEG", quality=95, subsampling=0), BLOCKS, 12),
        "jpeg progressive": Good(saved(RGB, "JPEG", quality=98, subsampling=0, progressive=True), RGB, 12),
        "jpeg grey": Good(saved(GREY // 2, "JPEG", quality=98), three(GREY // 2), 12),
        "jpeg cmyk": Good(saved(_cmyk(flat_inks), "JPEG", quality=100), _ink(flat_inks), 4),
        "jpeg ycck": _ycck(),
        "jpeg with broken exif": Good(
            jpeg_with(saved(BLOCKS, "JPEG", quality=95, subsampling=0), (0xE1, b"Exif\0\0II\x2a\0\xff\xff")),
            BLOCKS,
            12,
        ),
        "jpeg with much beside the picture": Good(
            jpeg_with(
                saved(BLOCKS, "JPEG", quality=95, subsampling=0),
                *[(0xE2, b"ICC_PROFILE\0" + bytes(60_000))] * 20,
                *[(0xFE, b"comment \xff\xda" * 100)] * 5,
            ),
            BLOCKS,
            12,
        ),
        "webp lossless": Good(saved(RGB, "WEBP", lossless=True), RGB),
        "webp lossless, alpha": Good(
            saved(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True), on_white(RGB, ALPHA)
        ),
        "webp lossy": Good(saved(three(GREY // 4 + 90), "WEBP", quality=100), three(GREY // 4 + 90), 14),
        "webp animated": Good(
            saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), RGB
        ),
        "gif": Good(saved(_paletted(INDICES), "GIF"), indexed),
        "gif transparent": Good(
            saved(_paletted(INDICES, transparent=True), "GIF", transparency=2),
            np.where(INDICES[..., None] == 2, np.uint8(255), indexed),
        ),
        "gif animated": Good(
            saved(
                _paletted(INDICES),
                "GIF",
                save_all=True,
                append_images=[_paletted((INDICES + step) % 4) for step in range(1, 4)],
            ),
            indexed,
        ),
        "gif with a frame larger than its canvas": Good(
            gif((4, 4), (0, 0, 20, 10)), np.broadcast_to(PALETTE[1], (10, 20, 3))
        ),
        "gif with a frame smaller than its canvas": Good(gif((20, 10), (5, 2, 8, 6)), _framed()),
        "gif with comments": Good(
            gif((8, 8), (0, 0, 8, 8), before=b"\x21\xfe" + (b"\xff" + b"c" * 255) * 3000 + b"\0"),
            np.broadcast_to(PALETTE[1], (8, 8, 3)),
        ),
        "bmp": Good(saved(RGB, "BMP"), RGB),
        "bmp 1 bit": Good(saved(Image.fromarray(BITS), "BMP"), three(BITS * np.uint8(255))),
        "bmp palette": Good(saved(_paletted(INDICES), "BMP"), indexed),
        "bmp runs": Good(
            bmp_runs(6, 2, b"\x03\x0a\x03\x14\0\0\x06\x1e\0\x01"),
            three(np.array([[30] * 6, [10] * 3 + [20] * 3], np.uint8)),
        ),
        "webp of one pixel": Good(saved(RGB[:1, :1], "WEBP", lossless=True), RGB[:1, :1]),
        "tiff": Good(saved(RGB, "TIFF"), RGB),
        "tiff big-endian": Good(grey_tiff(GREY, order=">"), three(GREY)),
        "tiff lzw": Good(saved(RGB, "TIFF", compression="tiff_lzw"), RGB),
        "tiff deflate": Good(saved(RGB, "TIFF", compression="tiff_adobe_deflate"), RGB),
        "tiff packbits": Good(saved(RGB, "TIFF", compression="packbits"), RGB),
        "tiff zstd": Good(saved(RGB, "TIFF", compression="zstd"), RGB),
        "tiff fax": Good(
            saved(Image.fromarray(BITS), "TIFF", compression="group4"), three(BITS * np.uint8(255))
        ),
        "tiff jpeg": Good(saved(BLOCKS, "TIFF", compression="jpeg", quality=95), BLOCKS, 16),
        "tiff tiled": Good(tiled_tiff(RGB), RGB),
        "tiff palette": Good(saved(_paletted(INDICES), "TIFF"), indexed),
        "tiff cmyk": Good(saved(_cmyk(INKS), "TIFF"), _ink(INKS), 1),
        "tiff rgba": Good(saved(np.dstack([RGB, ALPHA]), "TIFF"), on_white(RGB, ALPHA)),
        "tiff 1 bit": Good(saved(Image.fromarray(BITS), "TIFF"), three(BITS * np.uint8(255))),
        "tiff 16-bit grey": Good(grey_tiff(DEEP), three(np.rint(DEEP / 257).astype(np.uint8))),
        "tiff 16-bit grey, big-endian": Good(
            grey_tiff(DEEP, order=">"), three(np.rint(DEEP / 257).astype(np.uint8))
        ),
        "tiff 16-bit grey, white is zero": Good(
            grey_tiff(DEEP, photometric=0), three(255 - np.rint(DEEP / 257).astype(np.uint8))
        ),
        "tiff of several pages": Good(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]), RGB),
        "one pixel": Good(saved(RGB[:1, :1]), RGB[:1, :1]),
        "one row": Good(saved(RGB[:1, :40]), RGB[:1, :40]),
        "bytes behind the end": Good(saved(RGB) + bytes(1000), RGB),
    }
    for orientation in range(1, 9):
        block = exif_block(orientation, "<>"[orientation % 2])
        upright = turned(BLOCKS, orientation)
        files |= {
            f"jpeg turned {orientation}": Good(
                jpeg_with(saved(BLOCKS, "JPEG", quality=95, subsampling=0), (0xE1, b"Exif\0\0" + block)),
                upright,
                12,
            ),
            f"png turned {orientation}": Good(
                png(DEEP_RGB // 257, 8, 2, before=chunk(b"eXIf", block)), turned(DEEP_RGB // 257, orientation)
            ),
            f"webp turned {orientation}": Good(
                saved(RGB, "WEBP", lossless=True, exif=block), turned(RGB, orientation)
            ),
            f"tiff turned {orientation}": Good(_turned_tiff(orientation), turned(three(GREY), orientation)),
        }
    return files


def _framed() -> Pixels:
    canvas = np.full((10, 20, 3), 255, np.uint8)
    canvas[2:8, 5:13] = PALETTE[1]
    return canvas


def _turned_tiff(orientation: int) -> bytes:
    entries = {256: [WIDTH], 257: [HEIGHT], 258: [8], 259: [1], 262: [1], 273: [8], 274: [orientation]}
    more = {277: [1], 278: [HEIGHT], 279: [WIDTH * HEIGHT & 0xFFFF]}
    return tiff({**entries, **more}, GREY.tobytes(), wide=False)


def bad() -> dict[str, Bad]:
    """Files that are refused: no pictures, broken ones, kinds that are not read, and bombs."""
    jpeg = saved(RGB, "JPEG")
    whole = saved(RGB)
    large = Image.new("1", (20_000, 20_000))
    overlapping = {tag: [0] * 3 for tag in range(40_000, 40_000 + 300)}
    return {
        "nothing much": Bad(b"x", says="no picture"),
        "html": Bad(b"<!doctype html><html></html>", says="no picture"),
        "svg": Bad(b'<svg xmlns="http://www.w3.org/2000/svg"/>', says="no picture"),
        "pdf": Bad(b"%PDF-1.7\n", says="no picture"),
        "zip": Bad(b"PK\x03\x04" + bytes(100), says="no picture"),
        "ppm, a format that is not read": Bad(saved(RGB, "PPM"), says="no picture"),
        "zeros": Bad(bytes(1000), says="no picture"),
        "20000 x 1": Bad(saved(Image.new("L", (20_000, 1))), "request_too_large", "too many pixels"),
        "16000 x 1": Bad(saved(Image.new("L", (16_000, 1))), says="too long and thin"),
        "1 x 51": Bad(saved(Image.new("L", (1, 51))), says="too long and thin"),
        "jpeg, only a magic": Bad(b"\xff\xd8\xff", says="before its first scan"),
        "jpeg, cut in its header": Bad(jpeg[:100], says="before its first scan"),
        "jpeg, cut in its pixels": Bad(jpeg[: len(jpeg) * 2 // 3], says="broken"),
        "jpeg, no pixels at all": Bad(jpeg[: jpeg.index(b"\xff\xda") + 14], says="broken"),
        "jpeg of no height": Bad(_resized(jpeg, 0, 64), says="empty"),
        "jpeg, large and nearly empty": Bad(_resized(jpeg, 7000, 7000), says="cannot hold"),
        "jpeg, far too large": Bad(_resized(jpeg, 65_000, 65_000), "request_too_large"),
        "jpeg of many scans": Bad(scan_bomb(64, 200), says="too many scans"),
        "jpeg of many segments": Bad(jpeg_with(jpeg, *[(0xFE, b"")] * 5000), says="too many segments"),
        "png, cut in its header": Bad(whole[:20], says="no header"),
        "png, cut in its pixels": Bad(whole[: len(whole) // 2], says="cut off"),
        "png, cut before its end": Bad(whole[:-12], says="cut off"),
        "png, wrong checksum": Bad(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], says="broken"),
        "png that states more than it holds": Bad(
            png(RGB, 8, 2, size=(WIDTH, HEIGHT * 2)), says="cannot fill"
        ),
        "png of no width": Bad(png(RGB, 8, 2, size=(0, HEIGHT)), says="empty"),
        "png, far too large": Bad(png(RGB, 8, 2, size=(1 << 30, 1 << 30)), "request_too_large"),
        "png of many chunks": Bad(png(RGB, 8, 2, before=chunk(b"teSt") * 30_000), says="too many chunks"),
        "png, bomb": Bad(saved(large), "request_too_large", "too many pixels"),
        "png of 16 bits with a transparent colour": Bad(
            png(DEEP_RGB, 16, 2, before=chunk(b"tRNS", bytes(6))), says="transparent colour"
        ),
        "png with an unknown critical chunk": Bad(png(RGB, 8, 2, before=chunk(b"CgBI")), says="critical"),
        "webp, cut": Bad(saved(RGB, "WEBP")[:40], says="broken"),
        "webp, cut in its pixels": Bad(saved(NOISE, "WEBP", lossless=True)[:-50], says="broken"),
        "webp of 16 million on a side": Bad(
            b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff" * 6,
            "request_too_large",
        ),
        "webp, no kind": Bad(b"RIFF\x16\0\0\0WEBPVP9 " + bytes(30), says="none of VP8"),
        "gif, cut in its header": Bad(b"GIF89a\x01", says="ends before"),
        "gif, cut in its pixels": Bad(saved(_paletted(INDICES), "GIF")[:-200], says="broken"),
        "gif without a picture": Bad(b"GIF89a" + bytes(7) + b";", says="should begin"),
        "gif, canvas far too large": Bad(gif((65_535, 65_535), (0, 0, 8, 8)), "request_too_large"),
        "gif, frame far too large": Bad(
            b"GIF89a\x08\0\x08\0\0\0\0" + b"\x2c" + struct.pack("<HHHH", 0, 0, 65_535, 65_535) + bytes(9),
            "request_too_large",
        ),
        "gif of many blocks": Bad(
            gif((8, 8), (0, 0, 8, 8), before=b"\x21\xfe" + b"\x01c" * 100_000 + b"\0"), says="too many blocks"
        ),
        "bmp, cut in its header": Bad(saved(RGB, "BMP")[:30], says="cut off"),
        "bmp, cut in its pixels": Bad(saved(RGB, "BMP")[:2000], says="broken"),
        "bmp of many runs": Bad(bmp_runs(5000, 5000, b"\x01\x01" * 100), says="run-length"),
        "bmp, far too large": Bad(bmp_runs(2_000_000, 2_000_000, b""), says="run-length"),
        "tiff, cut in its header": Bad(saved(RGB, "TIFF")[:6], says="cut off"),
        "tiff, cut in its pixels": Bad(saved(RGB, "TIFF", compression="tiff_lzw")[:1500], says="cut off"),
        "tiff of floating point": Bad(
            saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), says="floating-point"
        ),
        "tiff of 32 bits": Bad(saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), says="32-bit"),
        "tiff in lab": Bad(_lab(), says="L*a*b*"),
        "tiff of values that overlap": Bad(
            grey_tiff(GREY, extra={**overlapping, 324: [8] * 300_000}.items()), says="too many strips"
        ),
        "tiff of one huge tile": Bad(
            tiff(
                {
                    256: [10],
                    257: [10],
                    258: [8],
                    259: [5],
                    262: [1],
                    277: [1],
                    322: [40_000],
                    323: [40_000],
                    324: [8],
                    325: [100],
                },
                bytes(100),
            ),
            says="too large tiles",
        ),
        "tiff, far too large": Bad(grey_tiff(GREY, extra={256: [1 << 31]}.items()), "request_too_large"),
        "tiff of a compression that is not read": Bad(
            grey_tiff(GREY, extra={259: [34661]}.items()), says="compression"
        ),
        "bigtiff": Bad(b"II\x2b\0" + bytes(100), says="no picture"),
    }


def _lab() -> bytes:
    lab = Image.frombytes("LAB", (WIDTH, HEIGHT), RGB.tobytes())
    return saved(lab, "TIFF")


def _resized(jpeg: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header states another size."""
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]
