"""The lanes to the models' workers: who goes in, who waits, who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from whybox_proto.errors import ContractError
from whybox_service.admission import Admission, Lane
from whybox_service.calls import Deadline

LONG = 3600.0


def make(slots: int = 1, waiting: int = 2) -> tuple[Lane, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    return Lane("m", slots, waiting, lambda running, queued: told.append((running, queued))), told


async def waits(work: Awaitable[None]) -> asyncio.Future[None]:
    """Start something and let it go as far as it gets."""
    task = asyncio.ensure_future(work)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


def test_requests_go_in_turn_and_the_load_is_told() -> None:
    async def main() -> None:
        lane, told = make()
        await lane.enter(Deadline.after(LONG))
        first = await waits(lane.enter(Deadline.after(LONG)))
        second = await waits(lane.enter(Deadline.after(LONG)))
        assert told[-1] == (1, 2)
        lane.leave()
        await first
        assert not second.done()
        lane.leave()
        await second
        lane.leave()
        assert told[-1] == (0, 0)

    asyncio.run(main())


def test_more_than_may_wait_are_refused_at_once() -> None:
    async def main() -> None:
        lane, _ = make(waiting=0)
        await lane.enter(Deadline.after(LONG))
        with pytest.raises(ContractError) as refused:
            lane.check()
        assert refused.value.type == "overloaded"
        assert refused.value.retry_after >= 1
        with pytest.raises(ContractError, match="too many wait"):
            await lane.enter(Deadline.after(LONG))
        lane.leave()
        lane.check()

    asyncio.run(main())


def test_a_further_part_of_what_was_let_in_waits_in_turn() -> None:
    async def main() -> None:
        lane, told = make(waiting=0)
        await lane.enter(Deadline.after(LONG))
        part = await waits(lane.enter(Deadline.after(LONG), admitted=True))
        assert not part.done()
        assert told[-1] == (1, 1)
        lane.leave()
        await part
        with pytest.raises(ContractError) as late:
            await lane.enter(Deadline.after(0.02), admitted=True)
        assert late.value.type == "deadline_exceeded"

    asyncio.run(main())


def test_who_waits_too_long_leaves_its_place() -> None:
    async def main() -> None:
        lane, told = make()
        await lane.enter(Deadline.after(LONG))
        with pytest.raises(ContractError) as late:
            await lane.enter(Deadline.after(0.02))
        assert late.value.type == "deadline_exceeded"
        assert told[-1] == (1, 0)

    asyncio.run(main())


def test_a_turn_that_comes_as_its_request_leaves_is_passed_on() -> None:
    async def main() -> None:
        lane, told = make()
        await lane.enter(Deadline.after(LONG))
        leaver = await waits(lane.enter(Deadline.after(LONG)))
        heir = await waits(lane.enter(Deadline.after(LONG)))
        lane.leave()  # the turn is the leaver's now, though it has not run yet
        leaver.cancel()
        await heir
        assert leaver.cancelled()
        assert told[-1] == (1, 0)

    asyncio.run(main())


def test_a_cancelled_place_is_not_given_a_turn() -> None:
    async def main() -> None:
        lane, told = make()
        await lane.enter(Deadline.after(LONG))
        leaver = await waits(lane.enter(Deadline.after(LONG)))
        heir = await waits(lane.enter(Deadline.after(LONG)))
        leaver.cancel()
        lane.leave()
        await heir
        assert told[-1] == (1, 0)

    asyncio.run(main())


def test_more_slots_let_the_waiting_in() -> None:
    async def main() -> None:
        lane, told = make()
        await lane.enter(Deadline.after(LONG))
        waiting = [await waits(lane.enter(Deadline.after(LONG))) for _ in range(2)]
        lane.resize(3)
        await asyncio.gather(*waiting)
        assert told[-1] == (3, 0)
        lane.resize(0)  # one is the least: a model whose workers are gone comes back
        for _ in range(3):
            lane.leave()
        await lane.enter(Deadline.after(LONG))

    asyncio.run(main())


def with_clock(
    monkeypatch: pytest.MonkeyPatch, main: Callable[[list[float]], Coroutine[None, None, None]]
) -> None:
    """Run something on a clock that stands still until it is set; the loop's own stands still as well."""
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main(clock))
    loop.close()


def test_a_turn_after_the_deadline_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come every 10 s: a request that has 5 s is refused, one that has 60 waits."""

    async def main(clock: list[float]) -> None:
        lane, _ = make(waiting=9)
        await lane.enter(Deadline(5000.0))
        waiting = [await waits(lane.enter(Deadline(5000.0))) for _ in range(4)]
        for _ in range(2):
            lane.leave()
            clock[0] += 10
        with pytest.raises(ContractError, match="before the request's deadline") as refused:
            await lane.enter(Deadline(clock[0] + 5))
        assert refused.value.type == "overloaded"
        assert refused.value.retry_after >= 10
        patient = await waits(lane.enter(Deadline(clock[0] + 60)))
        assert not patient.done()
        for task in (*waiting, patient):
            task.cancel()

    with_clock(monkeypatch, main)


def test_a_pace_that_lets_nobody_wait_mends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer took 40 s; after some that took a moment, a request with 30 s may wait again."""

    async def main(clock: list[float]) -> None:
        lane, _ = make(waiting=9)
        await lane.enter(Deadline(1e6))
        waiting = [await waits(lane.enter(Deadline(1e6))) for _ in range(2)]
        lane.leave()
        clock[0] += 40
        lane.leave()
        await asyncio.gather(*waiting)
        with pytest.raises(ContractError, match="before the request's deadline"):
            await lane.enter(Deadline(clock[0] + 30))
        for _ in range(10):  # nobody can wait, so they come one after another
            clock[0] += 0.05
            lane.leave()
            await lane.enter(Deadline(clock[0] + 30))
        patient = await waits(lane.enter(Deadline(clock[0] + 30)))
        assert not patient.done()
        patient.cancel()

    with_clock(monkeypatch, main)


def test_pauses_are_no_part_of_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request a minute, each answered at once: the next but one still waits its turn."""

    async def main(clock: list[float]) -> None:
        lane, _ = make(waiting=9)
        for _ in range(5):
            clock[0] += 60
            await lane.enter(Deadline(clock[0] + 30))
            clock[0] += 0.05
            lane.leave()
        await lane.enter(Deadline(clock[0] + 30))
        patient = await waits(lane.enter(Deadline(clock[0] + 30)))
        assert not patient.done()
        patient.cancel()

    with_clock(monkeypatch, main)


def test_versions_have_lanes_of_their_own_and_one_load() -> None:
    async def main() -> None:
        told: list[tuple[str, int, int]] = []
        admission = Admission(0, lambda model, running, waiting: told.append((model, running, waiting)))
        first, second = admission.lane("m", "1"), admission.lane("m", "2")
        first.resize(1)
        second.resize(1)
        await first.enter(Deadline.after(LONG))
        await second.enter(Deadline.after(LONG))
        assert told[-1] == ("m", 2, 0)
        assert admission.lane("m", "1") is first
        first.leave()
        assert told[-1] == ("m", 1, 0)

    asyncio.run(main())
