"""From an explain request to its answer, at once or as it grows: asked, measured, and written as wished."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from whybox_proto import checks
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service import pictures
from whybox_service.asking import Asking
from whybox_service.calls import Call
from whybox_service.evaluating import Evaluating, Measuring, check_measured
from whybox_service.metrics import Metrics
from whybox_service.sampling import Explanation, Sampling
from whybox_service.settings import Settings
from whybox_service.spreading import Spreading
from whybox_service.workshop import Workshop

# Each holds an answer of up to `max_response_bytes`.
ENLARGING_AT_ONCE = 4
# Between two partial answers; more where they take long to make.
PARTIAL_SECONDS = 0.5
# A partial answer is followed by a pause of so many times what making it took, so that samples come first.
PAUSE_FACTOR = 4.0

EXPLAIN, TRUTH = "explain", "truth"
"""Fields of an evaluate request: the explain request that it holds, and what its maps are measured by."""

Send = Callable[[explainer_pb2.ExplainResponse, bool], Awaitable[None]]
"""Sends an answer of a stream; the flag says whether it is the last one."""


class Explaining:
    """Answers explain requests."""

    def __init__(self, asking: Asking, spreading: Spreading, metrics: Metrics, settings: Settings) -> None:
        self._asking = asking
        self._metrics = metrics
        self._sampling = Sampling(asking, spreading, settings)
        self._evaluating = Evaluating(asking, spreading)
        self._workshop = Workshop(ENLARGING_AT_ONCE)
        self._limit = settings.max_response_bytes

    async def explain(
        self, model: types_pb2.Model, request: explainer_pb2.ExplainRequest, call: Call
    ) -> explainer_pb2.ExplainResponse:
        """Answer a request that has been checked."""
        measuring = _measuring(request, model)
        answer = await self._explained(model, request, measuring, call)
        await self._finish(model, request, answer, measuring, call)
        return answer

    async def evaluate(
        self, model: types_pb2.Model, request: explainer_pb2.EvaluateRequest, call: Call
    ) -> explainer_pb2.EvaluateResponse:
        """Answer a request that has been checked, and measure the answer's maps."""
        check_measured(model)
        truth = request.truth if request.HasField("truth") else None
        measuring = Measuring(truth, list(request.measures))
        with within(EXPLAIN):
            answer = await self._explained(model, request.explain, measuring, call)
        evaluations = await self._measured(model, request.explain, answer, measuring, call)
        with within(EXPLAIN):
            await self._write(request.explain, answer, call)
        return explainer_pb2.EvaluateResponse(explanation=answer, evaluations=evaluations)

    async def stream(
        self, model: types_pb2.Model, request: explainer_pb2.ExplainRequest, call: Call, send: Send
    ) -> None:
        """Answer a request as the answer grows: what was found first, then with more and more in its maps.

        A partial answer is made when the one before has been sent, so none waits for a slow reader.
        """
        if not checks.find_method(request, model).sampling:
            await send(await self.explain(model, request, call), True)
            return
        measuring = _measuring(request, model)
        async with self._sampling.begin(model, _question(request, measuring), call) as explanation:
            self._check_beginning(explanation, request, measuring)
            running = asyncio.create_task(explanation.run())
            try:
                if explanation.samples:
                    await send(_partial(await explanation.so_far()), False)
                while await _grown(explanation, running):
                    started = time.monotonic()
                    answer = await explanation.so_far()
                    await self._write(request, answer, call)
                    made = time.monotonic() - started
                    await send(_partial(answer), False)
                    pause = max(PARTIAL_SECONDS, PAUSE_FACTOR * made)
                    await asyncio.wait([running], timeout=pause)
                await running
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            answer = await explanation.complete()
        await self._finish(model, request, answer, measuring, call)
        await send(answer, True)

    async def _explained(
        self,
        model: types_pb2.Model,
        request: explainer_pb2.ExplainRequest,
        measuring: Measuring | None,
        call: Call,
    ) -> explainer_pb2.ExplainResponse:
        """Return the answer as it comes from the workers; see `_question`."""
        question = _question(request, measuring)
        if checks.find_method(request, model).sampling:
            async with self._sampling.begin(model, question, call) as explanation:
                self._check_beginning(explanation, request, measuring)
                await explanation.run()
                return await explanation.complete()
        asked = await self._asking.ask(model, worker_pb2.WorkerRequest(explain=question), call)
        answer = asked.reply.explain
        answer.model, answer.model_version = model.name, model.version
        self._metrics.detections("explain", model.name, len(answer.detections))
        asked.add_stages(answer)
        if request.output.size == "image":
            cells = len(pictures.heat_maps_of(answer)) * answer.image.width * answer.image.height
            self._check_cells(cells, request)
        if measuring is not None and measuring.truth is not None:
            checks.check_same_size(measuring.truth, answer.image.width, answer.image.height)
        return answer

    def _check_cells(self, cells: int, request: explainer_pb2.ExplainRequest) -> None:
        pictures.check_cells(cells, pictures.encoding_of(request), self._limit)

    def _check_beginning(
        self,
        explanation: Explanation,
        request: explainer_pb2.ExplainRequest,
        measuring: Measuring | None,
    ) -> None:
        """Refuse what cannot be answered, before samples are drawn for it."""
        image = explanation.beginning.image
        self._metrics.detections("explain", request.model, len(explanation.beginning.detections))
        if request.output.size == "image" and explanation.samples:
            cells = explanation.detections * len(explanation.targets) * image.width * image.height
            self._check_cells(cells, request)
        if measuring is not None and measuring.truth is not None:
            checks.check_same_size(measuring.truth, image.width, image.height)

    async def _finish(
        self,
        model: types_pb2.Model,
        request: explainer_pb2.ExplainRequest,
        answer: explainer_pb2.ExplainResponse,
        measuring: Measuring | None,
        call: Call,
    ) -> None:
        """Measure an answer's maps where that is asked for, and write them as they are wished."""
        if measuring is not None:
            await self._measured(model, request, answer, measuring, call)
        await self._write(request, answer, call)

    async def _measured(
        self,
        model: types_pb2.Model,
        request: explainer_pb2.ExplainRequest,
        answer: explainer_pb2.ExplainResponse,
        measuring: Measuring,
        call: Call,
    ) -> list[explainer_pb2.Evaluation]:
        """Measure an answer's maps; where `evaluate` is set, they say it themselves too."""
        evaluations = await self._evaluating.measure(model, request, answer, measuring, call)
        if request.evaluate:
            for heat_map, evaluation in zip(pictures.heat_maps_of(answer), evaluations, strict=True):
                heat_map.faithfulness.update(evaluation.values)
        return evaluations

    async def _write(
        self, request: explainer_pb2.ExplainRequest, answer: explainer_pb2.ExplainResponse, call: Call
    ) -> None:
        """Write an answer's maps in the size and the encoding that the request asks for."""
        started = time.perf_counter()
        maps = pictures.heat_maps_of(answer)
        encoding = pictures.encoding_of(request)
        if request.output.size == "image":
            async with call.deadline.limit():
                await self._workshop.run(pictures.enlarge_maps, answer, encoding, self._limit, call.deadline)
            answer.stages.add(name="enlarge", seconds=time.perf_counter() - started)
        elif maps and maps[0].encoding != encoding:
            async with call.deadline.limit():
                await self._workshop.run(pictures.write_maps, answer, encoding, call.deadline)


@contextmanager
def within(field: str) -> Iterator[None]:
    """Have errors about a request that stands in a field of another one say so in their own field."""
    try:
        yield
    except ContractError as error:
        if error.field and not error.field.startswith(TRUTH):
            error.field = f"{field}.{error.field}"
        raise


def _measuring(request: explainer_pb2.ExplainRequest, model: types_pb2.Model) -> Measuring | None:
    if not request.evaluate:
        return None
    check_measured(model)
    return Measuring()


def _question(
    request: explainer_pb2.ExplainRequest, measuring: Measuring | None
) -> explainer_pb2.ExplainRequest:
    """Return what the workers are asked: cells as they are where the gateway goes on with them.

    So nothing is rounded twice, and what is measured is the map and not its rounding.
    """
    question = explainer_pb2.ExplainRequest()
    question.CopyFrom(request)
    question.evaluate = False
    if measuring is not None or request.output.size == "image":
        question.output.size = "feature"
        question.output.encoding = "f32"
    return question


def _partial(answer: explainer_pb2.ExplainResponse) -> explainer_pb2.ExplainResponse:
    """Mark an answer as one that others follow."""
    answer.partial = True
    return answer


async def _grown(explanation: Explanation, running: asyncio.Task[None]) -> bool:
    """Wait until an explanation that runs has more to show; False when it runs no more."""
    growing = asyncio.create_task(explanation.grown.wait())
    try:
        await asyncio.wait({growing, running}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        growing.cancel()
    explanation.grown.clear()
    return not running.done()
