"""Pieces of work spread over workers: how many at a time, with what between them, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from itertools import pairwise

import pytest

from whybox_proto.v1 import types_pb2, worker_pb2
from whybox_service.asking import Asked, worked
from whybox_service.spreading import Spreading

MODEL = types_pb2.Model(name="m", version="1.0")


class Workers:
    """What `Spreading` asks a catalogue."""

    def __init__(self, ready: int, delay: float = 0.0) -> None:
        self.ready = ready
        self.delay = delay

    def ready_workers(self, model: str, version: str) -> int:
        assert (model, version) == ("m", "1.0")
        return self.ready

    def batch_delay(self, _model: str, _version: str) -> float:
        return self.delay


def spreading(ready: int, delay: float = 0.0) -> Spreading:
    return Spreading(Workers(ready, delay))  # type: ignore[arg-type]


@pytest.mark.parametrize("ready", [1, 2, 3])
def test_each_worker_has_one_piece_at_a_time(ready: int) -> None:
    in_hand, most = 0, 0

    async def work(piece: int) -> int:
        nonlocal in_hand, most
        in_hand += 1
        most = max(most, in_hand)
        await asyncio.sleep(0.001 * (piece % 3))
        in_hand -= 1
        return piece * piece

    async def run() -> dict[int, int]:
        async with aclosing(spreading(ready).over(MODEL, iter(range(20)), work)) as done:
            return {piece: result async for piece, result in done}

    assert asyncio.run(run()) == {piece: piece * piece for piece in range(20)}
    assert most == ready


def test_pieces_are_taken_when_there_is_a_worker_for_them() -> None:
    taken: list[int] = []

    def pieces() -> Iterator[int]:
        for piece in range(4):
            taken.append(piece)
            yield piece

    async def work(piece: int) -> int:
        return piece

    async def run() -> list[list[int]]:
        seen = []
        async with aclosing(spreading(2).over(MODEL, pieces(), work)) as done:
            async for _ in done:
                seen.append(list(taken))
        return seen

    assert asyncio.run(run())[0] == [0, 1, 2, 3], "both were done, and two more begun, before one was told"


def test_there_may_be_no_piece_until_a_result_has_been_taken() -> None:
    taken: list[int] = []

    def pieces() -> Iterator[int | None]:
        for piece in range(4):
            while len(taken) < piece:
                yield None
            yield piece

    async def work(piece: int) -> int:
        return piece

    async def run() -> None:
        async with aclosing(spreading(2).over(MODEL, pieces(), work)) as done:
            async for piece, _ in done:
                taken.append(piece)

    asyncio.run(run())
    assert taken == [0, 1, 2, 3]


def test_a_piece_that_fails_gives_up_the_others() -> None:
    given_up: list[int] = []

    async def work(piece: int) -> int:
        if piece == 1:
            await asyncio.sleep(0.01)
            raise ValueError("told")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            given_up.append(piece)
            raise
        return piece

    async def run() -> None:
        async with aclosing(spreading(3).over(MODEL, iter(range(9)), work)) as done:
            async for _ in done:
                pass

    with pytest.raises(ValueError, match="told"):
        asyncio.run(run())
    assert sorted(given_up) == [0, 2]


def test_who_stops_early_gives_up_what_is_in_hand() -> None:
    given_up: list[int] = []

    async def work(piece: int) -> int:
        try:
            await asyncio.sleep(60 if piece else 0)
        except asyncio.CancelledError:
            given_up.append(piece)
            raise
        return piece

    async def run() -> None:
        async with aclosing(spreading(2).over(MODEL, iter(range(9)), work)) as done:
            assert await anext(done) == (0, 0)

    asyncio.run(run())
    assert given_up == [1], "piece 2 had not been begun when the caller stopped"


def test_pieces_of_all_requests_keep_their_distance() -> None:
    begun: list[float] = []

    async def work(_: int) -> None:
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)

    async def run() -> None:
        spread = spreading(3, delay=0.02)

        async def one() -> None:
            async with aclosing(spread.over(MODEL, iter(range(4)), work)) as done:
                async for _ in done:
                    pass

        await asyncio.gather(one(), one())

    asyncio.run(run())
    assert len(begun) == 8
    assert all(later - earlier > 0.02 for earlier, later in pairwise(begun))


def test_the_time_that_some_worker_had_it() -> None:
    def asked(seconds: float, ended: float) -> Asked:
        return Asked(worker_pb2.WorkerReply(seconds=seconds), 0.0, ended)

    # 0 to 2, 1 to 3 and 2.5 to 3 make 3; 5 to 6 stands alone.
    assert worked([asked(1, 6), asked(2, 2), asked(2, 3), asked(0.5, 3)]) == 4
    assert worked([]) == 0
