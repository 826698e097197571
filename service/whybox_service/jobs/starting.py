"""The picture that a job starts from: checked when the job is made, and kept in a form that is bounded."""

from __future__ import annotations

import io

from whybox_proto.checks import check_image_bytes
from whybox_proto.inversions import check_start
from whybox_proto.v1 import types_pb2
from whybox_service.pictures import Exactly

# Fast, and not much longer than the smallest.
_COMPRESSION = 1


def bounded(picture: bytes, layout: types_pb2.Layout, model: types_pb2.Model) -> bytes:
    """Return a picture to start from as a PNG with nothing beside its pixels, which are those a worker sees.

    A file may hold far more than its pixels need, and a thousand queued jobs each keep one; this is never
    much longer than three bytes for each pixel of the layout.

    Raises:
        ContractError: where it cannot be decoded, is not of the layout's size, or what is kept of it, which a
            worker gets, is longer than the model takes.
    """
    from PIL import Image

    from whybox_proto import images

    # Before any pixel is decoded: the largest picture that a model takes is far larger than a layout.
    check_start(layout, *images.size_of(picture))
    pixels = images.decode(picture, Exactly(layout.width, layout.height))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=_COMPRESSION)
    check_image_bytes(out.getvalue(), model)
    return out.getvalue()
