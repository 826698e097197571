"""An event loop in a thread of its own, for the client that waits.

A blocking HTTP call can bound each read and each write, but not their sum, and nobody can call it off. On an
event loop both are plain: a deadline holds from the connection to the last byte of the body, and Ctrl-C, or a
batch that ends early, closes the socket at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

T = TypeVar("T")

_STOP_S = 5.0


class Closing(Protocol):
    """Something that is closed on the event loop it was used on."""

    async def aclose(self) -> None: ...


C = TypeVar("C", bound=Closing)

_Loop: TypeAlias = tuple[asyncio.AbstractEventLoop, asyncio.Event]


class Background(Generic[C]):
    """A thread with an event loop, started when there is work, and what lives there.

    Attributes:
        tenant: what lives there; it is closed when the loop ends.
        process: id of the process that the thread runs in; after a fork the child has none.
    """

    def __init__(self, tenant: C) -> None:
        self.tenant = tenant
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self._thread: threading.Thread | None = None
        self._left: set[asyncio.Future[None]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start work on the loop; cancelling the future cancels the work."""
        with self._lock:
            if self._loop is None:
                started: Future[_Loop] = Future()
                self._thread = threading.Thread(
                    target=_run, args=(self.tenant, started), name="whybox client", daemon=True
                )
                self._thread.start()
                self._loop = started.result()
        return asyncio.run_coroutine_threadsafe(work, self._loop[0])

    def leave(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have something done on the loop that nobody waits for; nothing where the loop has ended."""
        if self._loop is None or self.process != os.getpid():
            return

        def begin() -> None:
            task = asyncio.ensure_future(work())
            self._left.add(task)  # the loop itself would let it go
            task.add_done_callback(self._left.discard)

        with suppress(RuntimeError):  # the loop is closed, and with it whatever lived there
            self._loop[0].call_soon_threadsafe(begin)

    def stop(self) -> None:
        """Cancel what runs, close the tenant, and end the thread."""
        if self._loop is None or self._thread is None or self.process != os.getpid():
            return
        loop, stopping = self._loop
        with suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(stopping.set)
        if threading.current_thread() is not self._thread:  # as it is where the garbage collector calls
            self._thread.join(_STOP_S)


def _run(tenant: Closing, started: Future[_Loop]) -> None:
    asyncio.run(_live(tenant, started))


async def _live(tenant: Closing, started: Future[_Loop]) -> None:
    stopping = asyncio.Event()
    started.set_result((asyncio.get_running_loop(), stopping))
    await stopping.wait()
    running = asyncio.all_tasks() - {asyncio.current_task()}
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await tenant.aclose()
