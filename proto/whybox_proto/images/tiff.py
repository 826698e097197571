"""TIFF: the first page, in a directory of its own that holds only what makes its pixels.

A directory's entries may overlap and repeat, so that a small file describes gigabytes of values, which Pillow
would read as soon as it opens the file.
"""

from __future__ import annotations

import struct

from whybox_proto.images import exif
from whybox_proto.images.cleaned import Cleaned, broken

MAX_VALUES = 1 << 18
"""Of one entry: strips or tiles. 50 million pixels in tiles of 16 × 16 are 195 000."""

MAX_TABLE_BYTES = 1 << 16
"""Of an entry of bytes: JPEG's tables."""

MAX_TILE_PIXELS = 1 << 22
"""Of a tile that is larger than its picture."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_KEPT = frozenset((
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC,
    266,  # order of bits
    273, 277, 278, 279, 284,  # strips, samples, planes
    292, 293,  # options of fax
    317, 320,  # predictor, palette
    _TILE_WIDTH, _TILE_HEIGHT, 324, 325,
    338, 339,  # what else there is in a pixel, and its number format
    347,  # JPEG's tables
    529, 530, 531, 532,  # YCbCr
))  # fmt: skip
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_COMPRESSIONS = {
    1: "none",
    2: "CCITT",
    3: "CCITT group 3",
    4: "CCITT group 4",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    50000: "zstd",
}


def clean(data: bytes) -> Cleaned:
    """Write a directory of the entries that are needed behind the file, and let the header point there."""
    order = exif.HEADERS[data[:4]]
    if len(data) < 8:
        raise _cut(data)
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if start + 2 > len(data):
        raise _cut(data)
    (entries,) = struct.unpack_from(f"{order}H", data, start)
    if start + 2 + 12 * entries > len(data):
        raise _cut(data)
    kept: dict[int, bytes] = {}
    orientation = 1
    for at in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", data, at)
        if tag == exif.ORIENTATION and kind == 3 and count == 1 and 1 <= value <= 8:
            orientation = value
        if tag in _KEPT and tag not in kept:
            size = _SIZES.get(kind, 1)
            if count > (MAX_TABLE_BYTES if size == 1 else MAX_VALUES):
                raise broken("a TIFF of too many strips or tiles", f"{count} values of tag {tag}")
            (offset,) = struct.unpack_from(f"{order}I", data, at + 8)
            if size * count > 4 and offset + size * count > len(data):
                raise _cut(data)
            kept[tag] = data[at : at + 12]
    numbers = {tag: _number(data, entry, order) for tag, entry in kept.items()}
    _check(numbers)
    padding = b"\0" * (len(data) % 2)
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept[tag] for tag in sorted(kept)) + bytes(4)
    head = data[:4] + struct.pack(f"{order}I", len(data) + len(padding))
    return Cleaned(
        head + data[8:] + padding + directory,
        (numbers.get(_WIDTH, 0), numbers.get(_HEIGHT, 0)),
        orientation,
        bits=12 if numbers.get(_BITS) == 12 else 16,
        white_is_zero=numbers.get(_PHOTOMETRIC) == 0,
    )


def _check(numbers: dict[int, int]) -> None:
    compression = numbers.get(_COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        known = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        raise broken(f"a TIFF of a compression that is not read; those are: {known}", str(compression))
    pixels = numbers.get(_WIDTH, 0) * numbers.get(_HEIGHT, 0)
    tile = numbers.get(_TILE_WIDTH, 0) * numbers.get(_TILE_HEIGHT, 0)
    if tile > max(MAX_TILE_PIXELS, 2 * pixels):
        raise broken("a TIFF of too large tiles", f"tiles of {tile} pixels")


def _number(data: bytes, entry: bytes, order: str) -> int:
    """Return the first value of an entry of whole numbers; 0 of any other."""
    _, kind, count, offset = struct.unpack(f"{order}HHII", entry)
    letter = {1: "B", 3: "H", 4: "I"}.get(kind)
    if letter is None or not count:
        return 0
    inside = struct.calcsize(letter) * count <= 4
    return int(struct.unpack_from(order + letter, entry if inside else data, 8 if inside else offset)[0])


def _cut(data: bytes) -> Exception:
    return broken("a TIFF that is cut off", f"{len(data)} bytes")
