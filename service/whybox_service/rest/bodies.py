"""The ways a request can arrive, each read into the same message.

multipart/form-data      parts `image` and `request` (JSON)
application/json         the message; `image` in base64
application/x-protobuf   the message in binary
image/*, or octets       the picture itself; the other fields in the query string
"""

from __future__ import annotations

from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request

from whybox_proto.errors import ContractError, shorten, unknown_name
from whybox_service import messages
from whybox_service.rest import json_in, media, multipart
from whybox_service.rest.query import read_query

READ = (media.MULTIPART, media.JSON, media.PROTOBUF, "image/*", media.OCTETS)


async def read(request: Request, message: Message, limit: int) -> None:
    """Read a request's body, and its query string, into a message.

    Args:
        request: with the body not yet read.
        message: to fill.
        limit: bytes of the largest body that is read.

    Raises:
        ContractError: for whatever is wrong with it.
    """
    header = request.headers.get("content-type", "")
    kind = media.base(header) or media.OCTETS
    raw = kind.startswith("image/") or kind == media.OCTETS
    if not raw and kind not in READ:
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
        _set_image(message, await _body(request, limit), "in the query string")
    elif kind == media.JSON:
        json_in.read_message(json_in.parse(await _body(request, limit)), message)
    elif kind == media.PROTOBUF:
        messages.parse(await _body(request, limit), message)
    else:
        _read_form(multipart.split(await _body(request, limit), header), message)


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
    if "image" not in message.DESCRIPTOR.fields_by_name:
        raise ContractError(
            "unsupported_media_type",
            "this operation takes no picture",
            field="Content-Type",
            expected=f"one of: {media.JSON}, {media.PROTOBUF}",
        )
    if message.image:  # type: ignore[attr-defined]
        raise ContractError(
            "invalid_argument", f"there is one picture in the body and one {elsewhere}", field="image"
        )
    message.image = image  # type: ignore[attr-defined]


async def _body(request: Request, limit: int) -> bytes:
    """Read the body, and stop as soon as it is known to be too long."""
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdecimal() and len(announced) < 20 else 0
    chunks: list[bytes] = []
    try:
        if size > limit:
            raise _too_large(limit, f"{size} bytes")
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit, f"more than {limit} bytes")
            chunks.append(chunk)
    except ClientDisconnect:
        raise ContractError("invalid_request", "the client went away before the body's end") from None
    return b"".join(chunks)


def _too_large(limit: int, got: str) -> ContractError:
    return ContractError(
        "request_too_large", "the body is too large", expected=f"at most {limit} bytes", got=got
    )
