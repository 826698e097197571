"""An answer as server-sent events, each sent when the client has taken the one before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.types import Send

from whybox_service.rest import media

PARTIAL, RESULT, ERROR = "partial", "result", "error"
"""Kinds of events: an answer that grows, the whole answer, and what went wrong, as a problem."""

# While nothing else is sent, so that nobody on the way takes the connection for dead.
HEARTBEAT_SECONDS = 10.0
# Bytes of an event that are handed over at a time; more follow when the client has taken most of them.
SENT_AT_ONCE = 256 << 10

_HEADERS = (
    (b"content-type", f"{media.EVENT_STREAM}; charset=utf-8".encode()),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Events:
    """The stream of one exchange; nothing is sent before its first event.

    Args:
        send: of the exchange.

    Attributes:
        begun: whether there is a status and a first event, so that what goes wrong must be an event too.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._turn = asyncio.Lock()
        self._count = 0
        self._whole = True
        self._named = False
        self.begun = False

    async def tell(self, kind: str, data: bytes, request_id: str = "", *, id: str = "") -> None:
        """Send an event.

        Args:
            kind: of event.
            data: JSON, in one line.
            request_id: for the header of the first one.
            id: of the event; empty: its number in the stream.
        """
        async with self._turn:
            if not self.begun:
                headers = [*_HEADERS, (b"x-request-id", request_id.encode("ascii"))]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
                self.begun = True
            self._count += 1
            self._named |= bool(id)
            # An error in a stream whose events have names is none to go on after.
            name = id if self._named else str(self._count)
            line = b"id: %b\n" % name.encode("ascii") if name else b""
            body = b"%bevent: %b\ndata: %b\n\n" % (line, kind.encode(), data)
            self._whole = False
            for start in range(0, len(body), SENT_AT_ONCE):
                await self._write(body[start : start + SENT_AT_ONCE])
            self._whole = True

    async def end(self) -> None:
        """End the stream."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, data: bytes) -> None:
        """Send what went wrong and end the stream; behind half an event only the end can stand."""
        if self._whole:
            await self.tell(ERROR, data)
        await self.end()

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Send a comment every so often while the block lasts and nothing else is being sent."""

        async def beat() -> None:
            while True:
                count = self._count
                await asyncio.sleep(HEARTBEAT_SECONDS)
                if self.begun and count == self._count and not self._turn.locked():
                    async with self._turn:
                        await self._write(b": still at work\n\n")

        beats = asyncio.create_task(beat())
        try:
            yield
        finally:
            beats.cancel()
            await asyncio.gather(beats, return_exceptions=True)

    async def _write(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


def events_of(request: Request) -> Events:
    """Return the stream that an exchange may be answered with."""
    events = request.state.events
    assert isinstance(events, Events)
    return events


def begun_events(request: Request) -> Events | None:
    """Return the stream that an exchange is being answered with; None where it is not."""
    events = getattr(request.state, "events", None)
    return events if isinstance(events, Events) and events.begun else None
