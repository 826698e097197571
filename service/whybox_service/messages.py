"""Messages from bytes."""

from __future__ import annotations

from google.protobuf.message import DecodeError, Message

from whybox_proto.errors import ContractError

MAX_BYTES_BESIDE = 1 << 20
"""Of all fields but the picture. Two bytes may be a message, which takes twenty times as much when read."""

_IMAGE = "image"
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5


def parse(body: bytes, message: Message) -> None:
    """Read a message in binary.

    Raises:
        ContractError: `invalid_request` where the bytes are none, `request_too_large` where there are more
            than `MAX_BYTES_BESIDE` beside the picture.
    """
    if len(body) > MAX_BYTES_BESIDE:
        image = message.DESCRIPTOR.fields_by_name.get(_IMAGE)
        _check_beside(body, 0 if image is None else image.number)
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise ContractError(
            "invalid_request",
            "the protobuf is malformed",
            expected=f"a {message.DESCRIPTOR.full_name}",
            got=f"{len(body)} bytes",
        ) from None


def _check_beside(body: bytes, image: int) -> None:
    """Add up the fields but the picture's, without reading them; what is malformed ends the sum."""
    beside = position = 0
    while position < len(body):
        start = position
        tag, position = _varint(body, position)
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(body, position)
        elif kind == _LENGTH:
            length, position = _varint(body, position)
            position += length
        else:
            position += {_EIGHT: 8, _FOUR: 4}.get(kind, 0)
        if tag >> 3 != image or kind != _LENGTH:
            beside += min(position, len(body)) - start
            if beside > MAX_BYTES_BESIDE:
                raise ContractError(
                    "request_too_large",
                    "there is too much beside the picture",
                    expected=f"at most {MAX_BYTES_BESIDE} bytes in all fields but the picture",
                    got=f"more than {MAX_BYTES_BESIDE} bytes",
                )


def _varint(body: bytes, position: int) -> tuple[int, int]:
    """Read a number of at most ten bytes; return it, and where it ends."""
    number = shift = 0
    for byte in body[position : position + 10]:
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return number, position
