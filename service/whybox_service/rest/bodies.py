"""The ways a request can arrive, each read into the same message.

multipart/form-data      parts `image` and `request` (JSON)
application/json         the message; `image` in base64
application/x-protobuf   the message in binary
image/*, or octets       the picture itself; the other fields in the query string
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request

from whybox_proto.errors import ContractError, shorten, unknown_name
from whybox_service import messages
from whybox_service.buffers import Room
from whybox_service.intake import ClientGoneError
from whybox_service.rest import json_in, media, multipart
from whybox_service.rest.query import read_query
from whybox_service.settings import Settings

MAX_CONTENT_TYPE = 512
READ = (media.MULTIPART, media.JSON, media.PROTOBUF, "image/*", media.OCTETS)

ReadJson = Callable[[Any, Message], None]


class Bodies:
    """Reads bodies, each within its limits."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_request_bytes
        self._seconds = settings.body_seconds

    async def read(
        self, request: Request, message: Message, room: Room, read_json: ReadJson = json_in.read_message
    ) -> None:
        """Read a request's body, and its query string, into a message.

        Args:
            request: with the body not yet read.
            message: to fill.
            room: grows with the body.
            read_json: fills the message from the value of a JSON body.

        Raises:
            ContractError: for whatever is wrong with it.
        """
        kind, header = _kind(request)
        raw = kind.startswith("image/") or kind == media.OCTETS
        if not raw and request.url.query:
            raise ContractError(
                "invalid_request",
                f"with a body of type {kind} the fields stand in the body, not in the query string",
                field=shorten(next(iter(request.query_params), "")),
                expected="no query string",
                got=shorten(request.url.query),
            )
        if raw:
            read_query(request.query_params.multi_items(), message)
        body = await self._bytes(request, room)
        if raw:
            # What takes no picture takes no body at all.
            if body or "image" in messages.subject(message).DESCRIPTOR.fields_by_name:
                _set_image(message, body, "in the query string")
        elif kind == media.JSON:
            read_json(json_in.parse(body), message)
        elif kind == media.PROTOBUF:
            messages.parse(body, message)
        else:
            _read_form(multipart.split(body, header), message)

    async def _bytes(self, request: Request, room: Room) -> bytes:
        """Read the body, and stop as soon as it is known to be too long, or takes too long."""
        announced = request.headers.get("content-length", "")
        size = int(announced) if announced.isdecimal() and len(announced) < 20 else 0
        if size > self._limit:
            raise _too_large(self._limit, f"{size} bytes")
        chunks: list[bytes] = []
        size = 0
        patience = asyncio.timeout(self._seconds)
        # Should the request's deadline, or this limit, end the wait, it stays so.
        request.state.body_late = True
        try:
            async with patience:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self._limit:
                        raise _too_large(self._limit, f"more than {self._limit} bytes")
                    room.grow(len(chunk))
                    chunks.append(chunk)
        except ContractError:
            request.state.body_late = False
            raise
        except ClientDisconnect:
            raise ClientGoneError from None
        except TimeoutError:
            if not patience.expired():
                raise
            raise ContractError(
                "request_timeout",
                "the body did not arrive in time",
                expected=f"all of it within {self._seconds:g} s",
                got=f"{size} bytes",
            ) from None
        request.state.body_late = False
        return b"".join(chunks)


def is_body_late(request: Request) -> bool:
    """Whether a request was given up because its body did not come in time."""
    return getattr(request.state, "body_late", False)


def _kind(request: Request) -> tuple[str, str]:
    """Return the body's media type, which is one that is read here, and the whole header that names it."""
    header = request.headers.get("content-type", "")
    if len(header) > MAX_CONTENT_TYPE:
        # Reading its parameters takes time that grows with the square of their number.
        raise ContractError(
            "invalid_request",
            "the header cannot be read",
            field="Content-Type",
            expected=f"at most {MAX_CONTENT_TYPE} characters",
            got=f"{len(header)} characters",
        )
    kind = media.base(header) or media.OCTETS
    if not kind.startswith("image/") and kind not in READ:
        raise ContractError(
            "unsupported_media_type",
            "the body is of a type that is not read here",
            field="Content-Type",
            expected=f"one of: {', '.join(READ)}",
            got=shorten(kind),
        )
    if (coding := request.headers.get("content-encoding", "identity")) != "identity":
        raise ContractError(
            "unsupported_media_type",
            "compressed bodies are not read",
            field="Content-Encoding",
            expected="identity",
            got=shorten(coding),
        )
    return kind, header


def _read_form(parts: list[multipart.Part], message: Message) -> None:
    seen: dict[str, multipart.Part] = {}
    for part in parts:
        if part.name not in ("image", "request"):
            raise unknown_name(
                "unknown_field", "part", part.name, ("image", "request"), field=shorten(part.name)
            )
        if part.name in seen:
            raise ContractError(
                "invalid_argument",
                "a part is given twice",
                field=part.name,
                expected="each once",
                got="twice",
            )
        seen[part.name] = part
    if (described := seen.get("request")) is not None:
        if described.content_type not in ("", media.JSON, "text/plain"):
            raise ContractError(
                "unsupported_media_type",
                "the part `request` is of a type that is not read here",
                field="request",
                expected=media.JSON,
                got=shorten(described.content_type),
            )
        json_in.read_message(json_in.parse(described.data, "request"), message)
    if (image := seen.get("image")) is not None:
        _set_image(message, image.data, "in the part `request`")


def _set_image(message: Message, image: bytes, elsewhere: str) -> None:
    """Put the picture into the message, which must have a place for it that is still free."""
    holder = messages.subject(message)
    if "image" not in holder.DESCRIPTOR.fields_by_name:
        raise ContractError(
            "unsupported_media_type",
            "this operation takes no picture",
            field="Content-Type",
            expected=f"one of: {media.JSON}, {media.PROTOBUF}",
        )
    if holder.image:
        raise ContractError(
            "invalid_argument",
            f"there is one picture in the body and one {elsewhere}",
            field=messages.path_in(message.DESCRIPTOR, "image"),
        )
    holder.image = image


def _too_large(limit: int, got: str) -> ContractError:
    return ContractError(
        "request_too_large", "the body is too large", expected=f"at most {limit} bytes", got=got
    )
