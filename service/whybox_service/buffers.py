"""Memory that all requests share: what their bodies take, or what is added up for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from whybox_proto.errors import ContractError


class Room:
    """The bytes that one request holds of the memory that all of them share."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self.size = 0

    def grow(self, size: int) -> None:
        """Take more.

        Raises:
            ContractError: `overloaded` where there is no more.
        """
        self._buffers.take(size)
        self.size += size


class Buffers:
    """Counts the bytes that requests in hand take for one purpose.

    Args:
        limit: most bytes.
        what: the purpose, in the words of the error.
    """

    def __init__(self, limit: int, what: str = "bodies") -> None:
        self._free = limit
        self._what = what

    @contextmanager
    def room(self) -> Iterator[Room]:
        """Hold what a request takes until it has been answered."""
        room = Room(self)
        try:
            yield room
        finally:
            self._free += room.size

    def take(self, size: int) -> None:
        """Take some of the shared memory; for `Room`."""
        if size > self._free:
            raise ContractError(
                "overloaded", f"the {self._what} in hand take all the memory that is meant for them"
            )
        self._free -= size
