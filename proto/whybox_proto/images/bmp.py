"""BMP: run lengths are decoded slowly, so that there may be few of them."""

from __future__ import annotations

import struct

from whybox_proto.images.cleaned import Cleaned, broken

MAX_RUN_LENGTH_PIXELS = 4_000_000
MAX_RUN_LENGTH_BYTES = 2 * 2**20

_RUN_LENGTHS = (1, 2)
_OLD_HEADER = 12


def clean(data: bytes) -> Cleaned:
    """Check a run-length encoded picture's size: Pillow decodes it in Python."""
    if len(data) < 26:
        raise broken("a BMP that is cut off", f"{len(data)} bytes")
    (header,) = struct.unpack_from("<I", data, 14)
    if header == _OLD_HEADER:
        return Cleaned(data, struct.unpack_from("<HH", data, 18))
    if len(data) < 34:
        raise broken("a BMP that is cut off", f"{len(data)} bytes")
    width, height, _, _, compression = struct.unpack_from("<IiHHI", data, 18)
    pixels = width * abs(height)
    if compression in _RUN_LENGTHS and (pixels > MAX_RUN_LENGTH_PIXELS or len(data) > MAX_RUN_LENGTH_BYTES):
        most = f"{MAX_RUN_LENGTH_PIXELS} pixels or {MAX_RUN_LENGTH_BYTES} bytes"
        raise broken(f"a run-length encoded BMP of more than {most}", f"{pixels} pixels, {len(data)} bytes")
    return Cleaned(data, (width, abs(height)))
