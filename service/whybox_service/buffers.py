"""The memory that requests' bodies may take, all of them together."""

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
    """Counts the bytes of all bodies in hand.

    Args:
        limit: most bytes.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit

    @contextmanager
    def room(self) -> Iterator[Room]:
        """Hold what a request's body takes until the request has been answered."""
        room = Room(self)
        try:
            yield room
        finally:
            self._free += room.size

    def take(self, size: int) -> None:
        """Take some of the shared memory; for `Room`."""
        if size > self._free:
            raise ContractError("overloaded", "the bodies in hand take all the memory that is meant for them")
        self._free -= size
