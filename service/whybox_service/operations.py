"""What can be asked of whybox, whichever transport asks it. Knows neither HTTP nor gRPC.

An operation is a coroutine method named after its rpc in snake case; an rpc that has none here answers
`not_implemented` on both transports. Adding an operation is adding a method.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
import time
from collections.abc import Awaitable, Callable
from functools import cache

from google.protobuf.message import Message

from whybox_proto import checks
from whybox_proto.errors import ContractError, shorten
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service import pictures
from whybox_service.admission import BATCHES_IN_HAND, Admission, Lane
from whybox_service.backend import Backend, WorkerLostError
from whybox_service.calls import Call
from whybox_service.catalogue import Catalogue, StalledError
from whybox_service.metrics import Metrics
from whybox_service.settings import Settings
from whybox_service.traces import Tracing
from whybox_service.workshop import Workshop

log = logging.getLogger(__name__)

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
# Each holds an answer of up to `max_response_bytes`.
ENLARGING_AT_ONCE = 4

Operation = Callable[[Message, Call], Awaitable[Message]]


@cache
def operation_name(rpc: str) -> str:
    """Return an rpc's name in snake case, such as ``list_models`` for ``ListModels``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()


class Operations:
    """The operations of `whybox.v1.Explainer`, over one TorchServe."""

    def __init__(
        self, backend: Backend, catalogue: Catalogue, metrics: Metrics, tracing: Tracing, settings: Settings
    ) -> None:
        self._backend = backend
        self._catalogue = catalogue
        self._metrics = metrics
        self._tracing = tracing
        self._settings = settings
        self._workshop = Workshop(ENLARGING_AT_ONCE)
        self._admission = Admission(settings.max_waiting, metrics.load)

    def require(self, rpc: str) -> Operation:
        """Return what performs an rpc, or say that nothing does yet."""
        operation: Operation | None = getattr(self, operation_name(rpc), None)
        if operation is None:
            raise ContractError("not_implemented", f"{rpc} is not served yet")
        return operation

    async def perform(self, rpc: str, request: Message, call: Call) -> Message:
        """Perform the operation of an rpc of the service, such as ``ListModels``.

        Raises:
            ContractError: whatever went wrong, as a row of the table of errors.
        """
        answer = await self.require(rpc)(request, call)
        if (size := answer.ByteSize()) > self._settings.max_response_bytes:
            less = "ask for a smaller page_size" if rpc == "ListModels" else pictures.ASK_FOR_LESS
            raise ContractError(
                "response_too_large",
                f"the answer would be too large: {less}",
                expected=f"at most {self._settings.max_response_bytes} bytes",
                got=f"{size} bytes",
            )
        return answer

    async def list_models(
        self, request: explainer_pb2.ListModelsRequest, call: Call
    ) -> explainer_pb2.ListModelsResponse:
        """List the models by name, a page at a time, with their descriptions and states."""
        checks.check_range(request.page_size, field="page_size", low=0, high=MAX_PAGE_SIZE)
        size = request.page_size or DEFAULT_PAGE_SIZE
        after = _read_page_token(request.page_token)
        names = [name for name in await self._catalogue.current_names(call.deadline) if name > after]
        entries = await asyncio.gather(*(self._entry(name, call) for name in names[:size]))
        return explainer_pb2.ListModelsResponse(
            models=[entry for entry in entries if entry is not None],
            next_page_token=_page_token(names[size - 1]) if len(names) > size else "",
        )

    async def _entry(self, name: str, call: Call) -> types_pb2.Model | None:
        """Return a model as the list has it; None for one that has gone meanwhile."""
        try:
            return await self._catalogue.entry(name, "", call.deadline)
        except ContractError as error:
            if error.type != "unknown_model":
                raise
            return None

    async def get_model(self, request: explainer_pb2.GetModelRequest, call: Call) -> types_pb2.Model:
        """Describe one model, and say how its workers are now."""
        _check_model_name(request.model)
        return await self._catalogue.entry(request.model, request.model_version, call.deadline)

    async def detect(self, request: explainer_pb2.DetectRequest, call: Call) -> explainer_pb2.DetectResponse:
        """Find objects in a picture."""
        model = await self._model(request, call)
        checks.check_detect(request, model)
        return (await self._ask(model, worker_pb2.WorkerRequest(detect=request), call)).detect

    async def explain(
        self, request: explainer_pb2.ExplainRequest, call: Call
    ) -> explainer_pb2.ExplainResponse:
        """Find objects in a picture and show what the detector looked at for each of them."""
        model = await self._model(request, call)
        checks.check_explain(request, model)
        question = worker_pb2.WorkerRequest(explain=request)
        enlarging = request.output.size == "image"
        if enlarging:
            # The worker sends cells as they are, so that nothing is rounded twice.
            question.explain.output.size = "feature"
            question.explain.output.encoding = "f32"
        answer = (await self._ask(model, question, call)).explain
        if enlarging:
            encoding = request.output.encoding or checks.DEFAULT_ENCODING
            limit = self._settings.max_response_bytes
            pictures.check_enlarged_size(answer, encoding, limit)
            started = time.perf_counter()
            async with call.deadline.limit():
                await self._workshop.run(pictures.enlarge_maps, answer, encoding, limit, call.deadline)
            answer.stages.add(name="enlarge", seconds=time.perf_counter() - started)
        return answer

    async def _model(
        self, request: explainer_pb2.DetectRequest | explainer_pb2.ExplainRequest, call: Call
    ) -> types_pb2.Model:
        """Return the description of the model that a request names."""
        _check_model_name(request.model)
        try:
            return await self._catalogue.description(request.model, request.model_version, call.deadline)
        except StalledError:
            self._metrics.rejected(request.model, "stalled")
            raise

    def check_room(self, model: str) -> None:
        """Refuse early, before the costly reading of a body, what a model's default version would refuse.

        Raises:
            ContractError: `overloaded`.
        """
        if (version := self._catalogue.default_version(model)) is not None:
            try:
                self._admission.lane(model, version).check()
            except ContractError:
                self._metrics.rejected(model, "queue_full")
                raise

    async def _ask(
        self, model: types_pb2.Model, question: worker_pb2.WorkerRequest, call: Call
    ) -> worker_pb2.WorkerReply:
        """Have a worker answer, and add how long that took to the answer's stages."""
        question.request_id = call.request_id
        question.deadline = call.deadline.epoch()
        lane = self._admission.lane(model.name, model.version)
        lane.resize(BATCHES_IN_HAND * self._catalogue.slots(model.name, model.version))
        started = time.perf_counter()
        reply = await self._ask_twice(model, question, call, lane)
        spent = time.perf_counter() - started
        operation = reply.WhichOneof("result") or ""
        result = getattr(reply, operation)
        result.model, result.model_version = model.name, model.version
        self._metrics.detections(operation, model.name, len(result.detections))
        result.stages.add(name="queue", seconds=max(0.0, spent - reply.seconds))
        result.stages.add(name="backend", seconds=spent)
        return reply

    async def _ask_twice(
        self, model: types_pb2.Model, question: worker_pb2.WorkerRequest, call: Call, lane: Lane
    ) -> worker_pb2.WorkerReply:
        """Ask; where the worker is lost on the way, ask another one once, as soon as there is one."""
        try:
            return await self._ask_once(model, question, call, lane)
        except WorkerLostError as error:
            patience = self._settings.recovery_seconds
            if not await self._catalogue.recovered(model, call.deadline, patience):
                raise self._catalogue.judge(error, model) from None
            log.info("asking again, since a worker of %s was lost", model.name)
        return await self._ask_once(model, question, call, lane)

    async def _ask_once(
        self, model: types_pb2.Model, question: worker_pb2.WorkerRequest, call: Call, lane: Lane
    ) -> worker_pb2.WorkerReply:
        try:
            await lane.enter(call.deadline)
        except ContractError as error:
            if error.type == "overloaded":
                self._metrics.rejected(model.name, "queue_full")
            raise
        try:
            with self._tracing.call(question.WhichOneof("operation") or "", model.name) as parent:
                question.traceparent = parent
                return await self._backend.ask(model.name, model.version, question, call.deadline, lane.leave)
        except WorkerLostError as error:
            self._metrics.backend_error(model.name, error.type)
            raise
        except ContractError as error:
            judged = self._catalogue.judge(error, model)
            if judged.type == "overloaded":
                self._metrics.rejected(model.name, "queue_full")
            elif judged.row.http_status >= 500:
                self._metrics.backend_error(model.name, judged.type)
            raise judged from None


def _check_model_name(name: str) -> None:
    if not name:
        raise ContractError(
            "invalid_argument", "no model is named", field="model", expected="the name of a model"
        )


def _page_token(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode()).decode("ascii")


def _read_page_token(token: str) -> str:
    try:
        return base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise ContractError(
            "invalid_argument",
            "the page token is none of ours",
            field="page_token",
            expected="the next_page_token of the page before",
            got=shorten(token),
        ) from None
