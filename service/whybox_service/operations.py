"""What can be asked of whybox, whichever transport asks it. Knows neither HTTP nor gRPC.

An operation is a coroutine method named after its rpc in snake case; an rpc that has none here answers
`not_implemented` on both transports. Adding an operation is adding a method.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from collections.abc import Awaitable, Callable
from functools import cache

from google.protobuf.message import Message

from whybox_proto import checks
from whybox_proto.errors import ContractError, shorten
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service import pictures
from whybox_service.backend import Backend
from whybox_service.calls import Call
from whybox_service.catalogue import Catalogue
from whybox_service.settings import Settings

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

Operation = Callable[[Message, Call], Awaitable[Message]]


@cache
def operation_name(rpc: str) -> str:
    """Return an rpc's name in snake case, such as ``list_models`` for ``ListModels``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()


class Operations:
    """The operations of `whybox.v1.Explainer`, over one TorchServe."""

    def __init__(self, backend: Backend, catalogue: Catalogue, settings: Settings) -> None:
        self._backend = backend
        self._catalogue = catalogue
        self._settings = settings

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
            raise ContractError(
                "response_too_large",
                f"the answer would be too large: {pictures.ASK_FOR_LESS}",
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
        entries = await asyncio.gather(
            *(self._catalogue.entry(name, "", call.deadline) for name in names[:size])
        )
        return explainer_pb2.ListModelsResponse(
            models=entries, next_page_token=_page_token(names[size - 1]) if len(names) > size else ""
        )

    async def get_model(self, request: explainer_pb2.GetModelRequest, call: Call) -> types_pb2.Model:
        """Describe one model, and say how its workers are now."""
        _check_model_name(request.model)
        return await self._catalogue.entry(request.model, request.model_version, call.deadline)

    async def detect(self, request: explainer_pb2.DetectRequest, call: Call) -> explainer_pb2.DetectResponse:
        """Find objects in a picture."""
        _check_model_name(request.model)
        model = await self._catalogue.description(request.model, request.model_version, call.deadline)
        checks.check_detect(request, model)
        return (await self._ask(model, worker_pb2.WorkerRequest(detect=request), call)).detect

    async def explain(
        self, request: explainer_pb2.ExplainRequest, call: Call
    ) -> explainer_pb2.ExplainResponse:
        """Find objects in a picture and show what the detector looked at for each of them."""
        _check_model_name(request.model)
        model = await self._catalogue.description(request.model, request.model_version, call.deadline)
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
                await asyncio.to_thread(pictures.enlarge_maps, answer, encoding, limit, call.deadline)
            answer.stages.add(name="enlarge", seconds=time.perf_counter() - started)
        return answer

    async def _ask(
        self, model: types_pb2.Model, question: worker_pb2.WorkerRequest, call: Call
    ) -> worker_pb2.WorkerReply:
        """Have a worker answer, and add how long that took to the answer's stages."""
        question.request_id = call.request_id
        question.deadline = call.deadline.epoch()
        started = time.perf_counter()
        try:
            reply = await self._backend.ask(model.name, model.version, question, call.deadline)
        except ContractError as error:
            raise self._catalogue.judge(error, model) from None
        result = getattr(reply, reply.WhichOneof("result") or "")
        result.model, result.model_version = model.name, model.version
        result.stages.add(name="backend", seconds=time.perf_counter() - started)
        return reply


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
