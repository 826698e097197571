"""What can be asked of whybox, whichever transport asks it. Knows neither HTTP nor gRPC.

An operation is a coroutine method named after its rpc in snake case; an rpc that has none here answers
`not_implemented` on both transports. Adding an operation is adding a method.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from functools import cache
from typing import Any

from google.protobuf.message import Message

from whybox_proto import checks
from whybox_proto.errors import ContractError, shorten
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service import pictures
from whybox_service.asking import Asking, check_named
from whybox_service.backend import Backend
from whybox_service.calls import Call
from whybox_service.catalogue import Catalogue
from whybox_service.explaining import EXPLAIN, Explaining, Send, within
from whybox_service.metrics import Metrics
from whybox_service.settings import Settings
from whybox_service.spreading import Spreading
from whybox_service.traces import Tracing

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


@cache
def operation_name(rpc: str) -> str:
    """Return an rpc's name in snake case, such as ``list_models`` for ``ListModels``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()


class Operations:
    """The operations of `whybox.v1.Explainer`, over one TorchServe."""

    def __init__(
        self, backend: Backend, catalogue: Catalogue, metrics: Metrics, tracing: Tracing, settings: Settings
    ) -> None:
        self._catalogue = catalogue
        self._metrics = metrics
        self._settings = settings
        self._asking = Asking(backend, catalogue, metrics, tracing, settings)
        self._explaining = Explaining(self._asking, Spreading(catalogue), metrics, settings)

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

    async def stream(self, rpc: str, request: Message, call: Call, send: Send) -> None:
        """Perform the operation of an rpc that answers with a stream, such as ``ExplainStream``.

        Args:
            rpc: its name.
            request: its message.
            call: the request's id and deadline.
            send: given each answer, when the one before has been sent.

        Raises:
            ContractError: as `perform`; answers may have been sent by then.
        """

        async def checked(answer: explainer_pb2.ExplainResponse, last: bool) -> None:
            self._check_size(rpc, answer)
            await send(answer, last)

        await self.require(rpc)(request, call, checked)

    def _check_size(self, rpc: str, answer: Message) -> None:
        if (size := answer.ByteSize()) > self._settings.max_response_bytes:
            less = "ask for a smaller page_size" if rpc == "ListModels" else pictures.ASK_FOR_LESS
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

    async def _checked(self, request: explainer_pb2.ExplainRequest, call: Call) -> types_pb2.Model:
        """Check an explain request, and return the description of the model that it names."""
        model = await self._asking.description(request.model, request.model_version, call)
        checks.check_explain(request, model)
        return model


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
