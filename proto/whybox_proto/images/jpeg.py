"""JPEG: markers and segments up to the first scan; how many scans there are."""

from __future__ import annotations

import re
import struct

from whybox_proto.images import exif
from whybox_proto.images.cleaned import Cleaned, broken

MAX_SEGMENTS = 4096
"""Before the first scan; profiles and previews in pieces of 64 kB need some dozens."""

MAX_SCANS = 100
"""Encoders write about ten. Each scan may touch every pixel and needs no more than some bytes."""

_SOI, _EOI, _SOS, _APP0, _APP1, _APP14, _APP15, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset((0xC0, 0xC1))
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a segment
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_NO_RESTART = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")


def clean(data: bytes) -> Cleaned:
    """Leave out all application data but Adobe's and JFIF's, which say how colours are stored."""
    kept = [data[:2]]
    position = 2
    orientation: int | None = None
    frame = components = 0
    size = (0, 0)
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None:
            break
        marker, start = found[1][0], found.end()
        if marker == _EOI:
            break
        if marker in _ALONE:
            position = start
            continue
        end = start + (_length(data, start) if len(data) >= start + 2 else 2)
        if end > len(data):
            break
        segment = data[start + 2 : end]
        if marker in _FRAMES and len(segment) > 5:
            frame, components = marker, segment[5]
            height, width = struct.unpack_from(">HH", segment, 1)
            size = (width, height)
        if marker == _SOS:
            if segment[:1] != bytes([components]) or frame not in _SEQUENTIAL:
                _check_scans(data, end)
            kept.append(data[found.start() :])
            return Cleaned(b"".join(kept), size, orientation or 1)
        if marker == _APP1 and orientation is None and segment.startswith(b"Exif\0\0"):
            orientation = exif.orientation(segment)
        if not (_APP0 < marker <= _APP15 or marker == _COM) or marker == _APP14:
            kept.append(data[found.start() : end])
        position = end
    else:
        raise broken("a JPEG of too many segments", f"more than {MAX_SEGMENTS}")
    raise broken("a broken JPEG: it ends before its first scan", f"{len(data)} bytes")


def check_filled(cleaned: Cleaned) -> None:
    """Check that the data can hold so many pixels; libjpeg would leave what is missing grey.

    A block of 8 x 8 pixels takes a bit at least, but with arithmetic coding, which nobody uses.
    """
    width, height = cleaned.size
    if -(-width // 8) * -(-height // 8) > 8 * len(cleaned.data):
        what = "a broken JPEG: its data cannot hold so many pixels"
        raise broken(what, f"{width}x{height}, {len(cleaned.data)} bytes")


def _check_scans(data: bytes, position: int) -> None:
    """Count the scans from the end of the first one's header on."""
    scans = 1
    while (found := _NO_RESTART.search(data, position)) is not None:
        marker, position = found[1][0], found.end()
        if marker == _EOI:
            return
        if marker == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise broken("a JPEG of too many scans", f"more than {MAX_SCANS}")
        if marker not in _ALONE and len(data) >= position + 2:
            position += _length(data, position)


def _length(data: bytes, position: int) -> int:
    (length,) = struct.unpack_from(">H", data, position)
    return max(int(length), 2)
