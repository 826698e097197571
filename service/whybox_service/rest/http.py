"""The HTTP/1.1 protocol, with limits on how long a request's headers may be and may take.

uvicorn limits how long a connection may be idle after a request, but not how long one may stay silent, or
trickle, before the headers are complete, nor how many bytes of headers it keeps.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 << 10


def protocol(header_seconds: float) -> type[asyncio.Protocol]:
    """Return a protocol that closes connections whose headers take longer than so many seconds."""

    class Protocol(HttpToolsProtocol):
        _patience: asyncio.TimerHandle | None = None
        _header_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait_for_headers()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._header_bytes = 0
            self._wait_for_headers()

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._headers_came()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._headers_came()
            super().connection_lost(exc)

        def _wait_for_headers(self) -> None:
            self._headers_came()
            self._patience = self.loop.call_later(header_seconds, self._give_up)

        def _headers_came(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def _count(self, size: int) -> None:
            self._header_bytes += size
            if self._header_bytes > MAX_HEADER_BYTES:
                raise ValueError("the headers are too long")  # ends the parsing, and with it the connection

        def _give_up(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Protocol
