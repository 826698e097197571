"""Many pieces of one request, spread over all of a model's workers.

At most one piece is in hand for each ready worker, so that other requests' turns come in between, and little
is lost when the client leaves. TorchServe gives whatever arrives within its batch delay to one worker, as a
batch; so pieces are sent with that much time between them.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import TypeVar

from whybox_proto.v1 import types_pb2
from whybox_service.catalogue import Catalogue

# Beyond the batch delay, for what happens between the gateway and TorchServe's queue.
MARGIN_SECONDS = 0.005

P = TypeVar("P")
R = TypeVar("R")


class Spreading:
    """Spreads pieces of work over the workers of each model."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._paces: defaultdict[tuple[str, str], _Pace] = defaultdict(_Pace)

    async def over(
        self, model: types_pb2.Model, pieces: Iterator[P | None], work: Callable[[P], Awaitable[R]]
    ) -> AsyncGenerator[tuple[P, R], None]:
        """Work on pieces and yield each with its result, in the order in which they are done.

        Where the caller stops early, the pieces in hand are given up; so close it (`contextlib.aclosing`).

        Args:
            model: whose workers do it.
            pieces: asked for the next one whenever a worker is free, and after each result; None: there is
                none until more of those in hand are done. Where it ends, no more are begun.
            work: has a worker do one.

        Raises:
            Exception: what the work on a piece raises; the others in hand are given up.
        """
        name, version = model.name, model.version
        pace = self._paces[name, version]
        in_hand: dict[asyncio.Task[R], P] = {}

        async def begin(piece: P) -> R:
            await pace.turn(self._catalogue.batch_delay(name, version))
            return await work(piece)

        def refill() -> None:
            while len(in_hand) < self._catalogue.ready_workers(name, version):
                if (piece := next(pieces, None)) is None:
                    return
                in_hand[asyncio.create_task(begin(piece))] = piece

        try:
            refill()
            while in_hand:
                done, _ = await asyncio.wait(in_hand, return_when=asyncio.FIRST_COMPLETED)
                failed = [error for task in done if (error := task.exception()) is not None]
                if failed:
                    raise failed[0]
                ended = [(in_hand.pop(task), task.result()) for task in done]
                refill()
                for piece, result in ended:
                    yield piece, result
                refill()
        finally:
            for task in in_hand:
                task.cancel()
            await asyncio.gather(*in_hand, return_exceptions=True)


class _Pace:
    """The moments at which pieces may be sent to one model, whichever request they belong to."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._sent = float("-inf")

    async def turn(self, delay: float) -> None:
        """Wait until the piece before is out of the way.

        Args:
            delay: seconds within which two would be taken for one batch; 0: there are no batches.
        """
        if not delay:
            return
        async with self._turn:
            wait = self._sent + delay + MARGIN_SECONDS - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            self._sent = time.monotonic()
