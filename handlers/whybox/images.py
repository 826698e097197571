"""From the bytes of a picture to a tensor; what is read and refused is `whybox_proto.images`'s to say."""

from __future__ import annotations

import torch
from torch import Tensor

from whybox.recipe import InputLimits
from whybox_proto import images
from whybox_proto.images import FORMATS as FORMATS


def decode_image(data: bytes, limits: InputLimits) -> Tensor:
    """Decode a picture: EXIF orientation applied, transparency on white, the first frame of several.

    Args:
        data: the encoded picture, one of `FORMATS`.
        limits: larger ones are refused before their pixels are decoded.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ContractError: ``invalid_image``, or ``request_too_large``.
    """
    return torch.from_numpy(images.decode(data, limits))
