"""PNG: the chunks that make the default image."""

from __future__ import annotations

import struct
import zlib

from whybox_proto.images import exif
from whybox_proto.images.cleaned import Cleaned, broken

MAX_CHUNKS = 20_000
"""libpng writes 8 kB a chunk: 32 MiB in 4096 chunks."""

_SIGNATURE = 8
_PIECE = 1 << 20
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by type of colour
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Passes of an interlaced picture: first column and row, steps between columns and rows."""
_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))


def clean(data: bytes) -> Cleaned:
    """Leave out all chunks but header, palette, transparency and pixels: also the frames of an animation."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise broken("a broken PNG: it has no header", f"{len(data)} bytes")
    size = struct.unpack_from(">II", data, 16)
    kept = [data[:_SIGNATURE]]
    position, orientation = _SIGNATURE, 1
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            raise broken("a PNG that is cut off", f"{len(data)} bytes")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise broken("a PNG that is cut off", f"{len(data)} bytes")
        if kind == b"eXIf":
            orientation = exif.orientation(data[position + 8 : end - 4])
        if kind == b"tRNS" and data[24:26] == b"\x10\x02":  # 16 bits, RGB: Pillow compares 8 of them
            raise broken("a PNG of 16 bits with a transparent colour, which is not read", "tRNS")
        if kind in _KEPT:
            kept.append(data[position:end])
        elif not kind[0] & 0x20:
            raise broken("a PNG with a critical chunk that is not known", repr(kind))
        if kind == b"IEND":
            return Cleaned(b"".join(kept), size, orientation)
        position = end
    raise broken("a PNG of too many chunks", f"more than {MAX_CHUNKS}")


def check_filled(cleaned: Cleaned) -> None:
    """Check that the data fill the picture; Pillow would leave what is missing black."""
    data = cleaned.data
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    missing = 0
    for x, y, across, down in passes:
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0 and rows > 0:
            missing += rows * (1 + (columns * depth * _SAMPLES.get(color, 1) + 7) // 8)
    inflate = zlib.decompressobj()
    position = _SIGNATURE
    while position < len(data) and missing > 0:
        length, kind = struct.unpack_from(">I4s", data, position)
        piece = data[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        position += 12 + length
        while piece and missing > 0:
            missing -= len(inflate.decompress(piece, _PIECE))
            piece = inflate.unconsumed_tail
    if missing > 0 and not inflate.eof:
        missing -= len(inflate.flush())
    if missing > 0:
        raise broken("a broken PNG: its data cannot fill its size", f"{width}x{height}, {len(data)} bytes")
