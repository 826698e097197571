"""Server-sent events, as a browser's `EventSource` reads them (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Event:
    """One event of a stream.

    Attributes:
        name: of its kind; ``message`` where it has none.
        data: its lines, joined by newlines.
        id: of the last event that had one; empty where none had.
    """

    name: str
    data: str
    id: str


class EventReader:
    """Reads events from the bytes of a stream, however these are cut. What has no end yet is kept.

    Comments (heartbeats) and `retry` are passed over; an event without data is none.
    """

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._after_return = False
        self._begun = False
        self._name = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that the next bytes of the stream complete."""
        if not chunk:
            return
        if self._after_return:
            chunk = chunk.removeprefix(b"\n")  # the second half of a line's end
        self._after_return = chunk.endswith(b"\r")
        *ended, rest = _LINE_END.split(chunk)
        for part in ended:
            line = b"".join([*self._rest, part])
            self._rest.clear()
            yield from self._line(line)
        self._rest.append(rest)

    def _line(self, line: bytes) -> Iterator[Event]:
        if not self._begun:
            line, self._begun = line.removeprefix(_BYTE_ORDER_MARK), True
        if not line:
            if self._data:
                yield Event(self._name or "message", "\n".join(self._data), self._id)
            self._name, self._data = "", []
            return
        field, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._id = value
