"""WebP: the canvas, whose memory is allocated when the file is opened, and the orientation."""

from __future__ import annotations

import struct

from whybox_proto.images import exif
from whybox_proto.images.cleaned import Cleaned, broken

MAX_CHUNKS = 20_000

_HAS_EXIF = 0x08


def clean(data: bytes) -> Cleaned:
    """Read the size of the canvas; the file stays as it is."""
    kind = data[12:16]
    if len(data) < (25 if kind == b"VP8L" else 30):
        raise broken("a WebP that is cut off", f"{len(data)} bytes")
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        return Cleaned(data, (width, height), _orientation(data) if data[20] & _HAS_EXIF else 1)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Cleaned(data, ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Cleaned(data, (width & 0x3FFF, height & 0x3FFF))
    raise broken("a broken WebP: its first chunk is none of VP8, VP8L and VP8X", kind.hex(" "))


def _orientation(data: bytes) -> int:
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return exif.orientation(data[position + 8 : position + 8 + length])
        position += 8 + length + (length & 1)
    return 1
