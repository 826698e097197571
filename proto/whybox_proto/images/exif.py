"""The orientation in a block of Exif, and nothing else of it.

A block is a small TIFF file. Reading all of it is a risk: its entries may overlap, so that a few kilobytes
describe gigabytes.
"""

from __future__ import annotations

import struct

ORIENTATION = 0x0112
HEADERS = {b"II\x2a\0": "<", b"MM\0\x2a": ">"}


def orientation(block: bytes) -> int:
    """Return the orientation that a block gives, 1 to 8; 1 where it gives none or cannot be read.

    Args:
        block: from the byte order on, with or without its six bytes of name before it.
    """
    block = block.removeprefix(b"Exif\0\0")
    order = HEADERS.get(block[:4])
    if order is None or len(block) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    if start + 2 > len(block):
        return 1
    (entries,) = struct.unpack_from(f"{order}H", block, start)
    for at in range(start + 2, min(start + 2 + 12 * entries, len(block) - 11), 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", block, at)
        if tag == ORIENTATION:
            return value if kind == 3 and count == 1 and 1 <= value <= 8 else 1
    return 1
