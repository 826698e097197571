"""Media types: what a body is, and which representation of the answer a client wants."""

from __future__ import annotations

from collections.abc import Sequence

from whybox_proto.errors import ContractError, shorten
from whybox_proto.media import PROTOBUF as PROTOBUF

JSON = "application/json"
PNG = "image/png"
EVENT_STREAM = "text/event-stream"
MULTIPART = "multipart/form-data"
OCTETS = "application/octet-stream"


def base(content_type: str) -> str:
    """Return a Content-Type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def choose(accept: str, offers: Sequence[str]) -> str:
    """Choose among `offers`, which stand in the server's order of liking, by an Accept header.

    Raises:
        ContractError: `not_acceptable` where the client wants none of them.
    """
    if not accept.strip():
        return offers[0]
    ranges = [_range(entry) for entry in accept.split(",")]
    qualities = [_quality(offer, ranges) for offer in offers]
    best = max(qualities)
    if best <= 0:
        raise ContractError(
            "not_acceptable",
            "the answer has no such representation",
            field="Accept",
            expected=f"one of: {', '.join(offers)}",
            got=shorten(accept),
        )
    return offers[qualities.index(best)]


def _range(entry: str) -> tuple[str, float]:
    media, *parameters = (part.strip().lower() for part in entry.split(";"))
    quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
        return media, float(quality)
    except ValueError:
        return media, 0.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the quality that the most specific range gives an offer."""
    kind = offer.partition("/")[0]
    for pattern in (offer, f"{kind}/*", "*/*"):
        given = [quality for media, quality in ranges if media == pattern]
        if given:
            return max(given)
    return 0.0
