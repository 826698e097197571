"""Messages from bytes."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError, Message

from whybox_proto.errors import ContractError

MAX_BYTES_BESIDE = 1 << 20
"""Of all fields but the picture. Two bytes may be a message, which takes twenty times as much when read."""

_IMAGE, _EXPLAIN = "image", "explain"
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5


def subject(message: Any) -> Any:
    """Return the part of a request that names model and picture: all of it, or its `explain`."""
    return message.explain if _EXPLAIN in message.DESCRIPTOR.fields_by_name else message


def subject_fields(descriptor: Any) -> Any:
    """Return the fields, by name, of a request's `subject`."""
    within = descriptor.fields_by_name.get(_EXPLAIN)
    return (descriptor if within is None else within.message_type).fields_by_name


def path_in(descriptor: Any, name: str) -> str:
    """Return the path of a field of a request's `subject`."""
    return f"{_EXPLAIN}.{name}" if _EXPLAIN in descriptor.fields_by_name else name


def model_of(message: Any) -> str:
    """Return the name of the model that a request is about; empty where it is about none."""
    return getattr(subject(message), "model", "")


def parse(body: bytes, message: Message) -> None:
    """Read a message in binary.

    Raises:
        ContractError: `invalid_request` where the bytes are none, `request_too_large` where there are more
            than `MAX_BYTES_BESIDE` beside the picture.
    """
    if len(body) > MAX_BYTES_BESIDE:
        _check_beside(body, message.DESCRIPTOR)
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise ContractError(
            "invalid_request",
            "the protobuf is malformed",
            expected=f"a {message.DESCRIPTOR.full_name}",
            got=f"{len(body)} bytes",
        ) from None


def _check_beside(body: bytes, descriptor: Any) -> None:
    """Refuse a message whose fields but the picture's take too much, without reading them."""
    if _beside(memoryview(body), descriptor) > MAX_BYTES_BESIDE:
        raise ContractError(
            "request_too_large",
            "there is too much beside the picture",
            expected=f"at most {MAX_BYTES_BESIDE} bytes in all fields but the picture",
            got=f"more than {MAX_BYTES_BESIDE} bytes",
        )


def _beside(body: memoryview, descriptor: Any) -> int:
    """Add up the fields but the picture's; what is malformed, or already too much, ends the sum."""
    beside = position = 0
    while position < len(body) and beside <= MAX_BYTES_BESIDE:
        start = position
        tag, position = _varint(body, position)
        kind = tag & 7
        inside: memoryview | None = None
        if kind == _VARINT:
            _, position = _varint(body, position)
        elif kind == _LENGTH:
            length, position = _varint(body, position)
            inside = body[position : position + length]
            position += length
        else:
            position += {_EIGHT: 8, _FOUR: 4}.get(kind, 0)
        field = descriptor.fields_by_number.get(tag >> 3)
        if inside is not None and field is not None and field.name == _EXPLAIN:
            beside += _beside(inside, field.message_type)
        elif inside is None or field is None or field.name != _IMAGE:
            beside += min(position, len(body)) - start
    return beside


def _varint(body: memoryview, position: int) -> tuple[int, int]:
    """Read a number of at most ten bytes; return it, and where it ends."""
    number = shift = 0
    for byte in body[position : position + 10]:
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return number, position
