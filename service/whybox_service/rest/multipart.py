"""multipart/form-data (RFC 7578), read strictly from a body that is all here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP

from whybox_proto.errors import ContractError

MAX_BOUNDARY = 70
MAX_PARTS = 16
MAX_HEADER_BYTES = 1024


@dataclass(frozen=True)
class Part:
    """One named part: its content type (empty where it names none) and its bytes."""

    name: str
    content_type: str
    data: bytes


def split(body: bytes, content_type: str) -> list[Part]:
    """Split a body into its parts.

    Args:
        body: the whole body.
        content_type: the request's header of that name, with the boundary.

    Raises:
        ContractError: `invalid_request` where the body is cut off or breaks the rules.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= MAX_BOUNDARY or not boundary.isascii():
        raise _broken("the Content-Type names no usable boundary")
    return [_part(raw) for raw in _sections(body, b"--" + boundary.encode("ascii"))]


def _sections(body: bytes, delimiter: bytes) -> Iterator[bytes]:
    """Yield what lies between the delimiters; they begin a line."""
    if not body.startswith(delimiter):
        start = body.find(b"\r\n" + delimiter)
        if start < 0:
            raise _broken("the boundary does not occur in the body")
        start += 2
    else:
        start = 0
    for _ in range(MAX_PARTS):
        line_end = body.find(b"\r\n", start)
        tail = body[start + len(delimiter) : line_end if line_end >= 0 else len(body)]
        if tail.rstrip(b" \t") == b"--":
            return
        if line_end < 0 or tail.strip(b" \t"):
            raise _broken("the body is cut off, or a boundary is not followed by a line's end")
        end = body.find(b"\r\n" + delimiter, line_end)
        if end < 0:
            raise _broken("the body is cut off: its last boundary is missing")
        yield body[line_end + 2 : end]
        start = end + 2
    raise _broken(f"the body has more than {MAX_PARTS} parts")


def _part(raw: bytes) -> Part:
    head, separator, data = raw.partition(b"\r\n\r\n")
    if not separator or len(head) > MAX_HEADER_BYTES:
        raise _broken("a part has no end of its headers")
    try:
        name, content_type = _described(head)
    except ContractError:
        raise
    except Exception as error:  # the parser has many kinds for what it cannot read, RecursionError among them
        raise _broken("a part's headers make no sense") from error
    return Part(name, content_type, data)


def _described(head: bytes) -> tuple[str, str]:
    """Read a part's headers: its name, and its content type, which may be empty."""
    headers = BytesParser(policy=HTTP).parsebytes(head + b"\r\n\r\n", headersonly=True)
    disposition = headers["Content-Disposition"]
    name = disposition.params.get("name") if disposition is not None else None
    if disposition is None or disposition.content_disposition != "form-data" or not name:
        raise _broken("a part has no Content-Disposition: form-data with a name")
    encoding = headers["Content-Transfer-Encoding"]
    if encoding is not None and str(encoding).lower() not in ("binary", "8bit", "7bit"):
        raise _broken("a part has a transfer encoding")
    content_type = headers["Content-Type"]
    return name, content_type.content_type if content_type is not None else ""


def _broken(why: str) -> ContractError:
    return ContractError("invalid_request", f"the multipart body cannot be read: {why}")
