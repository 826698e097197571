"""The HTTP/1.1 protocol, with limits on what a connection may cost while no request of it is being answered.

uvicorn limits how long a connection may be idle after an answer, but lets any byte end that limit. It limits
neither how long a request's headers may take, nor how many bytes of them it keeps, nor how long a client may
leave an answer unread. And it sends a body of unknown length in chunks, which HTTP/1.0 does not know.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEADER_BYTES = 64 << 10


def protocol(header_seconds: float, idle_seconds: float, send_seconds: float) -> type[asyncio.Protocol]:
    """Return a protocol that closes connections on which no request comes about.

    Args:
        header_seconds: from the first byte (or the connection's begin) to the end of a request's headers. The
            rest of a body whose request was answered before it had come has as long.
        idle_seconds: from the end of such a rest to the next byte.
        send_seconds: in which a client that is to take what has been written for it takes the most of it.
    """

    class Protocol(HttpToolsProtocol):
        _patience: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _header_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait(header_seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait(None)
            self.resume_writing()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._end_unless_read()

        def resume_writing(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._end_unless_read()

        def data_received(self, data: bytes) -> None:
            # The clock that runs goes on, whatever trickles in.
            if self._patience is None and not self._answering():
                self._wait(header_seconds)
            super().data_received(data)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._header_bytes = 0
            if not self._answering():
                self._wait(header_seconds)

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._wait(None)
            super().on_headers_complete()
            if self.parser.get_http_version() == "1.0":
                self.cycle.send = _unchunked(self.cycle)  # type: ignore[assignment,method-assign]

        def on_message_complete(self) -> None:
            super().on_message_complete()
            if not self._answering():
                self._wait(idle_seconds)

        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait(self, seconds: float | None) -> None:
            if self._patience is not None:
                self._patience.cancel()
            self._patience = None if seconds is None else self.loop.call_later(seconds, self._give_up)

        def _count(self, size: int) -> None:
            self._header_bytes += size
            if self._header_bytes > MAX_HEADER_BYTES:
                raise ValueError("the headers are too long")  # ends the parsing, and with it the connection

        def _give_up(self) -> None:
            self._patience = None
            if not self._answering():
                self.transport.close()
                self._end_unless_read()

        def _end_unless_read(self) -> None:
            """Cut the connection off, should it still be there, and not have been read from, in a while."""
            if self._unread is None:
                self._unread = self.loop.call_later(send_seconds, self.transport.abort)

    return Protocol


def _unchunked(cycle: RequestResponseCycle) -> Send:
    """Return what sends an answer to a client of HTTP/1.0, which gets each piece of a body as it is.

    Such a body ends with the connection, which uvicorn closes after every answer to such a client.
    """
    send: Any = cycle.send
    sized = True

    async def unchunked(message: Message) -> None:
        nonlocal sized
        if message["type"] == "http.response.start":
            sized = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if not sized:
                cycle.chunked_encoding = False
        elif not sized:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return unchunked
