"""Messages from bytes."""

from __future__ import annotations

from google.protobuf.message import DecodeError, Message

from whybox_proto.errors import ContractError


def parse(body: bytes, message: Message) -> None:
    """Read a message in binary.

    Raises:
        ContractError: `invalid_request` where the bytes are none.
    """
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise ContractError(
            "invalid_request",
            "the protobuf is malformed",
            expected=f"a {message.DESCRIPTOR.full_name}",
            got=f"{len(body)} bytes",
        ) from None
