"""What can be asked of whybox, whichever transport asks it. Knows neither HTTP nor gRPC.

An operation is a coroutine method named after its rpc in snake case; an rpc that has none here answers
`not_implemented` on both transports. Adding an operation is adding a method.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from google.protobuf import empty_pb2
from google.protobuf.message import Message

from whybox_proto import checks
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service import paging, pictures
from whybox_service.asking import Asking, check_named
from whybox_service.backend import Backend
from whybox_service.calls import Call
from whybox_service.catalogue import Catalogue
from whybox_service.explaining import EXPLAIN, Explaining, Send, within
from whybox_service.jobs.inversions import Inversions, SendEvent
from whybox_service.metrics import Metrics
from whybox_service.settings import Settings
from whybox_service.spreading import Spreading
from whybox_service.traces import Tracing

SendAny = Callable[[Any, bool], Awaitable[None]]
"""Sends an answer of a stream; the flag says whether it is the last one."""


@cache
def operation_name(rpc: str) -> str:
    """Return an rpc's name in snake case, such as ``list_models`` for ``ListModels``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()


class Operations:
    """The operations of `whybox.v1.Explainer`, over one TorchServe.

    Attributes:
        inversions: the jobs; begun and stopped with the servers.

    Raises:
        JobsError: where the settings of jobs cannot be used.
    """

    def __init__(
        self, backend: Backend, catalogue: Catalogue, metrics: Metrics, tracing: Tracing, settings: Settings
    ) -> None:
        self._catalogue = catalogue
        self._metrics = metrics
        self._settings = settings
        self._asking = Asking(backend, catalogue, metrics, tracing, settings)
        self._explaining = Explaining(self._asking, Spreading(catalogue), metrics, settings)
        self.inversions = Inversions(self._asking, metrics, settings)

    def require(self, rpc: str) -> Any:
        """Return what performs an rpc, or say that nothing does yet."""
        operation = getattr(self, operation_name(rpc), None)
        if operation is None:
            raise ContractError("not_implemented", f"{rpc} is not served yet")
        return operation

    def check_room(self, model: str) -> None:
        """Refuse early, before the costly reading of a body, what a model's default version would refuse.

        Raises:
            ContractError: `overloaded`.
        """
        self._asking.check_room(model)

    async def perform(self, rpc: str, request: Message, call: Call) -> Message:
        """Perform the operation of an rpc of the service, such as ``ListModels``.

        Raises:
            ContractError: whatever went wrong, as a row of the table of errors.
        """
        answer: Message = await self.require(rpc)(request, call)
        self._check_size(rpc, answer)
        return answer

    async def stream(self, rpc: str, request: Message, call: Call, send: SendAny) -> None:
        """Perform the operation of an rpc that answers with a stream, such as ``ExplainStream``.

        Args:
            rpc: its name.
            request: its message.
            call: the request's id and deadline.
            send: given each answer, when the one before has been sent.

        Raises:
            ContractError: as `perform`; answers may have been sent by then.
        """

        async def checked(answer: Message, last: bool) -> None:
            self._check_size(rpc, answer)
            await send(answer, last)

        await self.require(rpc)(request, call, checked)

    def _check_size(self, rpc: str, answer: Message) -> None:
        if (size := answer.ByteSize()) > self._settings.max_response_bytes:
            less = "ask for a smaller page_size" if rpc.startswith("List") else pictures.ASK_FOR_LESS
            raise ContractError(
                "response_too_large",
                f"the answer would be too large: {less}",
                expected=f"at most {self._settings.max_response_bytes} bytes",
                got=f"{size} bytes",
            )

    async def list_models(
        self, request: explainer_pb2.ListModelsRequest, call: Call
    ) -> explainer_pb2.ListModelsResponse:
        """List the models by name, a page at a time, with their descriptions and states."""
        size = paging.size_of(request.page_size)
        after = paging.read_token(request.page_token)
        names = [name for name in await self._catalogue.current_names(call.deadline) if name > after]
        entries = await asyncio.gather(*(self._entry(name, call) for name in names[:size]))
        return explainer_pb2.ListModelsResponse(
            models=[entry for entry in entries if entry is not None],
            next_page_token=paging.token(names[size - 1]) if len(names) > size else "",
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
        check_named(request.model)
        return await self._catalogue.entry(request.model, request.model_version, call.deadline)

    async def detect(self, request: explainer_pb2.DetectRequest, call: Call) -> explainer_pb2.DetectResponse:
        """Find objects in a picture."""
        model = await self._asking.description(request.model, request.model_version, call)
        checks.check_detect(request, model)
        asked = await self._asking.ask(model, worker_pb2.WorkerRequest(detect=request), call)
        answer = asked.reply.detect
        answer.model, answer.model_version = model.name, model.version
        self._metrics.detections("detect", model.name, len(answer.detections))
        asked.add_stages(answer)
        return answer

    async def explain(
        self, request: explainer_pb2.ExplainRequest, call: Call
    ) -> explainer_pb2.ExplainResponse:
        """Find objects in a picture and show what the detector looked at for each of them."""
        model = await self._checked(request, call)
        return await self._explaining.explain(model, request, call)

    async def explain_stream(self, request: explainer_pb2.ExplainRequest, call: Call, send: Send) -> None:
        """Explain, and tell what is known so far as it grows."""
        await self._explaining.stream(await self._checked(request, call), request, call, send)

    async def evaluate(
        self, request: explainer_pb2.EvaluateRequest, call: Call
    ) -> explainer_pb2.EvaluateResponse:
        """Explain, and measure how faithful the maps are."""
        with within(EXPLAIN):
            model = await self._asking.description(request.explain.model, request.explain.model_version, call)
        checks.check_evaluate(request, model)
        return await self._explaining.evaluate(model, request, call)

    async def create_inversion(
        self, request: explainer_pb2.CreateInversionRequest, call: Call
    ) -> explainer_pb2.Inversion:
        """Queue a layout inversion, and tell of it."""
        checks.check_known(request)
        return await self.inversions.create(request, call)

    async def get_inversion(
        self, request: explainer_pb2.GetInversionRequest, call: Call
    ) -> explainer_pb2.Inversion:
        """Tell how a layout inversion is."""
        checks.check_known(request)
        return await self.inversions.get(request, call)

    async def list_inversions(
        self, request: explainer_pb2.ListInversionsRequest, call: Call
    ) -> explainer_pb2.ListInversionsResponse:
        """List layout inversions, the newest first, a page at a time."""
        checks.check_known(request)
        return await self.inversions.page(request, call)

    async def cancel_inversion(
        self, request: explainer_pb2.CancelInversionRequest, call: Call
    ) -> explainer_pb2.Inversion:
        """End a layout inversion; its last picture stays."""
        checks.check_known(request)
        return await self.inversions.cancel(request, call)

    async def delete_inversion(
        self, request: explainer_pb2.DeleteInversionRequest, call: Call
    ) -> empty_pb2.Empty:
        """Forget a layout inversion and its pictures."""
        checks.check_known(request)
        return await self.inversions.delete(request, call)

    async def watch_inversion(
        self, request: explainer_pb2.WatchInversionRequest, call: Call, send: SendEvent
    ) -> None:
        """Tell of a layout inversion as it changes, until it has ended."""
        checks.check_known(request)
        await self.inversions.watch(request, call, send)

    async def _checked(self, request: explainer_pb2.ExplainRequest, call: Call) -> types_pb2.Model:
        """Check an explain request, and return the description of the model that it names."""
        model = await self._asking.description(request.model, request.model_version, call)
        checks.check_explain(request, model)
        return model
