"""What answers at each address of the contract, in the representation that the client wants."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.requests import Request
from starlette.responses import Response

from whybox_proto.errors import ContractError, shorten
from whybox_proto.v1 import explainer_pb2, types_pb2
from whybox_service import messages, pictures, stages
from whybox_service.buffers import Buffers
from whybox_service.calls import Call
from whybox_service.metrics import Metrics, Observation
from whybox_service.operations import Operations, operation_name
from whybox_service.rest import bodies, json_in, kserve, media
from whybox_service.rest.events import PARTIAL, RESULT, Events, events_of
from whybox_service.rest.exchange import Answer, while_client_waits
from whybox_service.rest.json_out import to_dict, to_json
from whybox_service.rest.query import read_query
from whybox_service.rest.routes import Address
from whybox_service.settings import Settings
from whybox_service.workshop import Workshop

CREATE_INVERSION = "CreateInversion"
LAST_EVENT_ID = "Last-Event-ID"
NO_CONTENT = 204
# A drawing takes up to a gigabyte.
DRAWING_AT_ONCE = 2


class Answers:
    """Makes what answers at an address out of the operation behind it."""

    def __init__(
        self, operations: Operations, metrics: Metrics, buffers: Buffers, settings: Settings
    ) -> None:
        self._operations = operations
        self._metrics = metrics
        self._buffers = buffers
        self._bodies = bodies.Bodies(settings)
        self._workshop = Workshop(DRAWING_AT_ONCE)
        self._max_response_bytes = settings.max_response_bytes

    def at(self, address: Address) -> Answer:
        """Return what answers at an address."""
        make: Callable[[], Any] = GetMessageClass(address.request)

        async def answer(request: Request, call: Call, observation: Observation) -> Response | None:
            observation.model = request.path_params.get("model", "")
            self._operations.require(address.rpc)
            observe = address.rpc == CREATE_INVERSION
            kind = media.choose(request.headers.get("accept", ""), address.offers)
            message, batch = make(), kserve.Batch(make)
            with self._buffers.room() as room:
                if address.verb == "POST":
                    self._operations.check_room(observation.model)
                    read_json = batch.read if address.instances else json_in.read_message
                    await self._bodies.read(request, message, room, read_json)
                else:
                    read_query(request.query_params.multi_items(), message)
                for name in address.fields:
                    _set_from_path(message, name, address.collection + request.path_params[name])
                if observe:
                    observation.model = messages.model_of(message)
                async with while_client_waits(request):
                    if address.kind == media.EVENT_STREAM and request.method == "HEAD":
                        await self._operations.inversions.get(
                            explainer_pb2.GetInversionRequest(name=message.name), call
                        )
                        return Response(media_type=media.EVENT_STREAM)
                    if address.kind == media.EVENT_STREAM:
                        return await self._watch(address, message, call, request)
                    if address.kind == media.PNG:
                        picture = await self._operations.inversions.picture(message.name, call)
                        return Response(picture, media_type=media.PNG)
                    if batch.messages:
                        return await self._instances(address, batch.messages, kind, request, call)
                    if kind == media.PNG:
                        return await self._picture(message, call)
                    if kind == media.EVENT_STREAM:
                        await self._stream(address, message, call, events_of(request))
                        return None
                    result: Any = await self._operations.perform(address.rpc, message, call)
            body, timed = _write(result, kind)
            self._metrics.stages(address.operation, observation.model, timed)
            if address.status == NO_CONTENT:
                return Response(status_code=NO_CONTENT)
            headers = {"Location": f"/v1/{result.name}"} if address.rpc == CREATE_INVERSION else None
            return Response(body, address.status, headers, kind)

        return answer

    async def _stream(self, address: Address, message: Any, call: Call, events: Events) -> None:
        """Send the answers of a stream as events."""

        async def send(answer: explainer_pb2.ExplainResponse, last: bool) -> None:
            written, timed = stages.tree(answer, to_dict) if last else (to_dict(answer), [])
            if last:
                self._metrics.stages(operation_name(address.stream), message.model, timed)
            await events.tell(RESULT if last else PARTIAL, to_json(written), call.request_id)

        async with events.beating():
            await self._operations.stream(address.stream, message, call, send)
        await events.end()

    async def _watch(self, address: Address, message: Any, call: Call, request: Request) -> Response | None:
        """Send what happens to an inversion as events, each with the id that it can be gone on after."""
        events = events_of(request)
        message.last_event_id = message.last_event_id or request.headers.get(LAST_EVENT_ID, "")

        async def send(event: explainer_pb2.InversionEvent, last: bool) -> None:
            await events.tell(
                RESULT if last else PARTIAL, to_json(to_dict(event)), call.request_id, id=event.id
            )

        async with events.beating():
            await self._operations.stream(address.rpc, message, call, send)
        if not events.begun:  # it had ended, and the client knows
            return Response(status_code=NO_CONTENT)
        await events.end()
        return None

    async def _instances(
        self, address: Address, messages: list[Any], kind: str, request: Request, call: Call
    ) -> Response:
        """Answer the instances of a body of KServe V1."""
        if kind != media.JSON:
            raise ContractError(
                "not_acceptable",
                f"a body with {kserve.INSTANCES} is answered in JSON",
                field="Accept",
                expected=media.JSON,
                got=kind,
            )

        async def perform(message: Any) -> Message:
            for name in address.fields:
                _set_from_path(message, name, request.path_params[name])
            return await self._operations.perform(address.rpc, message, call)

        written = []
        for result in await kserve.perform_all(messages, perform, self._max_response_bytes):
            tree, timed = stages.tree(result, to_dict)
            self._metrics.stages(address.operation, request.path_params["model"], timed)
            written.append(tree)
        return Response(to_json({address.instances: written}), media_type=kind)

    async def _picture(self, message: explainer_pb2.ExplainRequest, call: Call) -> Response:
        """Answer an explain request with the overlay of its one map."""
        if len(message.targets) > 1:
            raise _not_one_map("targets", len(message.targets), "targets")
        answer = await self._operations.explain(message, call)
        if (count := len(pictures.heat_maps_of(answer))) != 1:
            raise _not_one_map("select", count, "heat maps")
        started = time.perf_counter()
        picture = await self._workshop.run(
            pictures.draw_overlay, message.image, answer, self._max_response_bytes
        )
        overlay = types_pb2.Stage(name="overlay", seconds=time.perf_counter() - started)
        self._metrics.stages("explain", answer.model, [*answer.stages, overlay])
        return Response(picture, media_type=media.PNG)


def _write(answer: Message, kind: str) -> tuple[bytes, list[types_pb2.Stage]]:
    if kind == media.PROTOBUF:
        return stages.serialize(answer)
    tree, timed = stages.tree(answer, to_dict)
    return to_json(tree), timed


def _set_from_path(message: Message, name: str, value: str) -> None:
    """Set a field that stands in the path; the body may repeat it, but not contradict it."""
    holder = messages.subject(message)
    given = getattr(holder, name)
    if given and given != value:
        raise ContractError(
            "invalid_argument",
            "the body contradicts the path",
            field=messages.path_in(message.DESCRIPTOR, name),
            expected=f"{shorten(value)!r}, as in the path, or nothing",
            got=shorten(given),
        )
    setattr(holder, name, value)


def _not_one_map(field: str, count: int, what: str) -> ContractError:
    return ContractError(
        "invalid_argument",
        "a picture shows exactly one heat map: choose one detection and one target",
        field=field,
        expected="what gives one heat map",
        got=f"{count} {what}",
    )
