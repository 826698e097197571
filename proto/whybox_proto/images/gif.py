"""GIF: the first frame."""

from __future__ import annotations

import struct

from whybox_proto.images.cleaned import Cleaned, broken

MAX_BLOCKS = 65_536
"""Of comments and other extensions before the first frame, 255 bytes each at most."""

_EXTENSION, _IMAGE = 0x21, 0x2C
_GRAPHIC_CONTROL = 0xF9


def clean(data: bytes) -> Cleaned:
    """Leave out the extensions before the first frame, but for the one that says what is transparent."""
    if len(data) < 13:
        raise _cut(data)
    canvas = struct.unpack_from("<HH", data, 6)
    position = head = 13 + _table(data[10])
    control = b""
    blocks = 0
    while position < len(data):
        if data[position] == _IMAGE:
            if len(data) < position + 10:
                break
            x, y, width, height = struct.unpack_from("<HHHH", data, position + 1)
            size = max(canvas[0], x + width), max(canvas[1], y + height)
            return Cleaned(data[:head] + control + data[position:], size)
        if data[position] != _EXTENSION:
            raise broken("a broken GIF: what should begin a frame or an extension does not", f"at {position}")
        start = position
        position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
            blocks += 1
            if blocks > MAX_BLOCKS:
                raise broken("a GIF of too many blocks before its picture", f"more than {MAX_BLOCKS}")
        position += 1
        if data[start + 1 : start + 2] == bytes([_GRAPHIC_CONTROL]):
            control = data[start:position]
    raise _cut(data)


def _table(flags: int) -> int:
    """Return the bytes of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _cut(data: bytes) -> Exception:
    return broken("a GIF that ends before its picture", f"{len(data)} bytes")
