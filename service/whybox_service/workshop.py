"""Threads for what is heavy, few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Workshop:
    """Runs functions in threads, and never more of them at one time than it has places.

    A thread cannot be told to stop: one whose request has gone keeps its place until it is done, so the
    memory that the functions take is bounded as well.

    Args:
        places: functions that may run at one time.
    """

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function as soon as there is a place, and return what it returns."""
        await self._places.acquire()
        running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))

        def leave(running: asyncio.Future[T]) -> None:
            self._places.release()
            if not running.cancelled():
                running.exception()  # seen, whether or not somebody still waits

        running.add_done_callback(leave)
        return await asyncio.shield(running)
