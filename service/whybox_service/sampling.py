"""Explanations by methods that draw samples: planned by one worker, worked on by all, added up here.

A plan's chunks go out as the model's workers become free, and their sums are added in their own order
(`whybox_proto.sums`), so the maps do not depend on who did the work. NumPy is imported with the first such
explanation, in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from whybox_proto import checks
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service import pictures
from whybox_service.asking import Asked, Asking, worked
from whybox_service.buffers import Buffers, Room
from whybox_service.calls import Call
from whybox_service.settings import Settings
from whybox_service.spreading import Spreading
from whybox_service.workshop import Workshop

if TYPE_CHECKING:
    from whybox_proto.sums import Chunk, Totals

ADDING_AT_ONCE = 2
# Rounds that may have come and wait for an earlier one: while a worker hangs, the others fill no memory.
ROUNDS_AHEAD = 4
# What adding up takes, for a cell of a map: four sums, and what waits, each round two numbers.
BYTES_PER_CELL = 64
# Of the time until the deadline: whoever has not answered by then is given up, if there are maps without it.
SHARE_OF_WAITING = 0.9


class Sampling:
    """Begins explanations by sampling methods."""

    def __init__(self, asking: Asking, spreading: Spreading, settings: Settings) -> None:
        self.asking = asking
        self.spreading = spreading
        self.workshop = Workshop(ADDING_AT_ONCE)
        self.max_sums_bytes = settings.max_sums_bytes
        self.max_response_bytes = settings.max_response_bytes
        self._buffers = Buffers(settings.max_sums_bytes, "sums of explanations")

    @asynccontextmanager
    async def begin(
        self, model: types_pb2.Model, request: explainer_pb2.ExplainRequest, call: Call
    ) -> AsyncIterator[Explanation]:
        """Have a worker plan an explanation, and keep the memory that it takes while the block lasts."""
        remaining, started = call.deadline.remaining(), time.monotonic()
        asked = await self.asking.ask(model, worker_pb2.WorkerRequest(plan=request), call)
        with self._buffers.room() as room:
            yield Explanation(self, model, request, call, asked, room, started, remaining)


class Explanation:
    """One explanation as it grows.

    Attributes:
        beginning: the answer, without heat maps.
        detections: that are explained.
        grown: set whenever there is more to see.
    """

    def __init__(
        self,
        sampling: Sampling,
        model: types_pb2.Model,
        request: explainer_pb2.ExplainRequest,
        call: Call,
        planned: Asked,
        room: Room,
        started: float,
        remaining: float,
    ) -> None:
        self._sampling = sampling
        self._model = model
        self._request = request
        self._call = call
        self._room = room
        self._started = started
        self._remaining = remaining
        self._plan = planned.reply.plan
        self._asked = [planned]
        # Seconds that all chunks so far took, from the question to the answer.
        self._drawing = 0.0
        self._totals: Totals | None = None
        self._adding = asyncio.Lock()
        self._cells = 0
        self.beginning = self._plan.answer
        self.beginning.model, self.beginning.model_version = model.name, model.version
        self.detections = 1 if self.beginning.HasField("why_not") else len(self.beginning.detections)
        self.grown = asyncio.Event()
        if self.samples and not (self._plan.round_samples and 0 < self._plan.groups <= checks.MAX_DETECTIONS):
            raise ContractError("internal", "the worker's plan cannot be followed")

    @property
    def targets(self) -> list[str]:
        """What is explained of each detection."""
        return list(self._request.targets or checks.DEFAULT_TARGETS)

    @property
    def samples(self) -> int:
        """Samples that are to be drawn; 0 where there is nothing to explain."""
        return self._plan.samples

    async def run(self) -> None:
        """Draw samples until there are enough, or the time is used up.

        Raises:
            ContractError: that of the chunk that failed.
        """
        if not self.samples:
            return
        self._totals = await self._sampling.workshop.run(_begin, self._plan)
        spread = self._sampling.spreading.over(self._model, self._due(), self._sample)
        async with aclosing(spread) as done:
            while True:
                scope = asyncio.timeout(self._patience())
                try:
                    async with scope:
                        chunk, asked = await anext(done)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    if scope.expired():
                        return
                    raise
                await self._add(chunk, asked)

    async def so_far(self) -> explainer_pb2.ExplainResponse:
        """Return the answer with the maps as they are now."""
        answer = explainer_pb2.ExplainResponse()
        answer.CopyFrom(self.beginning)
        if self._totals is not None and self._totals.started:
            async with self._adding:
                made = await self._sampling.workshop.run(
                    self._totals.heat_maps, self.targets, pictures.encoding_of(self._request)
                )
            pictures.heat_maps_of(answer).extend(made)
        return answer

    async def complete(self) -> explainer_pb2.ExplainResponse:
        """Return the answer after the run: what was not drawn is a warning, what took time is a stage."""
        ended = max(one.ended for one in self._asked)
        planned = self._asked[0]
        started = time.perf_counter()
        answer = await self.so_far()
        if self._totals is not None:
            answer.warnings.extend(self._totals.warnings(self.detections))
            answer.stages.add(name="sample", seconds=ended - planned.ended)
            answer.stages.add(name="encode", seconds=time.perf_counter() - started)
        spent = ended - planned.started
        answer.stages.add(name="queue", seconds=max(0.0, spent - worked(self._asked)))
        answer.stages.add(name="backend", seconds=spent)
        return answer

    def _due(self) -> Iterator[Chunk | None]:
        """Yield the chunks that there is time for, the first one whatever the time; None: not yet."""
        from whybox_proto.sums import chunks, seconds_of

        seconds = seconds_of(self._request.budget, self._remaining)
        for chunk in chunks(self._plan):
            while self._totals is not None and self._totals.waiting >= ROUNDS_AHEAD * self._plan.groups:
                yield None
            expected = self._drawing / max(1, len(self._asked) - 1)
            if chunk.index and time.monotonic() - self._started + expected > seconds:
                return
            yield chunk

    def _patience(self) -> float | None:
        """Return the seconds for which to wait for a chunk; None: as long as the request waits."""
        if self._totals is None or not self._totals.started:
            return None
        return self._started + SHARE_OF_WAITING * self._remaining - time.monotonic()

    async def _sample(self, chunk: Chunk) -> Asked:
        question = worker_pb2.WorkerRequest(
            sample=worker_pb2.SampleRequest(
                explain=self._request,
                state=self._plan.state,
                first=chunk.first,
                count=chunk.count,
                group=chunk.group,
                groups=self._plan.groups,
            )
        )
        return await self._sampling.asking.ask(self._model, question, self._call, admitted=True)

    async def _add(self, chunk: Chunk, asked: Asked) -> None:
        assert self._totals is not None
        sums = asked.reply.sample
        if cells := self._totals.check(chunk, sums, self.detections, self.targets):
            self._take_room(cells)
        async with self._adding:
            changed = await self._sampling.workshop.run(self._totals.add, chunk, sums)
        self._drawing += asked.seconds
        # The chunk's time is kept, its sums are not.
        self._asked.append(
            Asked(worker_pb2.WorkerReply(seconds=asked.reply.seconds), asked.started, asked.ended)
        )
        if changed:
            self.grown.set()

    def _take_room(self, cells: int) -> None:
        """Take the memory that a group's maps need, as long as their answer can be sent at all."""
        self._cells += cells
        limit = self._sampling.max_response_bytes
        pictures.check_cells(self._cells, pictures.encoding_of(self._request), limit)
        if self._cells * BYTES_PER_CELL > self._sampling.max_sums_bytes:
            raise ContractError(
                "response_too_large",
                f"the heat maps are too large to be added up: {pictures.ASK_FOR_LESS}",
                field="output.max_side",
                expected=f"at most {self._sampling.max_sums_bytes // BYTES_PER_CELL} cells in all maps",
                got=f"more than {self._cells} cells",
            )
        self._room.grow(cells * BYTES_PER_CELL)


def _begin(plan: worker_pb2.Plan) -> Totals:
    from whybox_proto.sums import Totals

    return Totals(plan)
