"""`whybox.v1.Explainer` over gRPC: each rpc of the service, straight from its descriptor.

Requests arrive as bytes and are parsed here, so that malformed ones get an error of the table.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2
from whybox_service import messages, stages
from whybox_service.buffers import Room
from whybox_service.calls import Call
from whybox_service.errors import to_status
from whybox_service.intake import Arrival, Intake, RefusedError
from whybox_service.metrics import Metrics, Observation
from whybox_service.operations import Operations, operation_name

SERVICE = explainer_pb2.DESCRIPTOR.services_by_name["Explainer"]
REQUEST_ID = "x-request-id"

Context = grpc.aio.ServicerContext[bytes, bytes]


class Servicer:
    """Answers the rpcs of the service with the operations of the same names."""

    def __init__(
        self, operations: Operations, metrics: Metrics, intake: Intake, max_request_bytes: int
    ) -> None:
        self._operations = operations
        self._metrics = metrics
        self._intake = intake
        self._max_request_bytes = max_request_bytes

    def handlers(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """Return the handlers of all rpcs, for `grpc.aio.Server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            SERVICE.full_name,
            {
                method.name: (
                    grpc.unary_stream_rpc_method_handler(self._streaming(method))
                    if method.server_streaming
                    else grpc.unary_unary_rpc_method_handler(self._unary(method))
                )
                for method in SERVICE.methods
            },
        )

    def _unary(self, method: MethodDescriptor) -> Callable[[bytes, Context], Awaitable[bytes]]:
        read = self._reader(method)
        operation = operation_name(method.name)

        async def respond(body: bytes, context: Context) -> bytes:
            async def work(call: Call, observation: Observation) -> bytes:
                await _tell_request_id(context, call.request_id)
                self._operations.require(method.name)
                with self._intake.buffers.room() as room:
                    request = read(body, room, observation)
                    answer = await self._operations.perform(method.name, request, call)
                answer_body, timed = stages.serialize(answer)
                self._metrics.stages(operation, observation.model, timed)
                return answer_body

            try:
                answer, _ = await self._intake.take(_arrival(operation, context), work)
                return answer
            except RefusedError as refused:
                await _abort(context, refused.error, refused.request_id)

        return respond

    def _streaming(self, method: MethodDescriptor) -> Callable[[bytes, Context], Awaitable[None]]:
        """Return what writes answers by itself, each when the client has taken the one before."""
        read = self._reader(method)
        operation = operation_name(method.name)

        async def respond(body: bytes, context: Context) -> None:
            async def work(call: Call, observation: Observation) -> None:
                await _tell_request_id(context, call.request_id)
                self._operations.require(method.name)

                async def send(answer: Message, last: bool) -> None:
                    written, timed = stages.serialize(answer)
                    if last:
                        self._metrics.stages(operation, observation.model, timed)
                    await context.write(written)

                with self._intake.buffers.room() as room:
                    request = read(body, room, observation)
                    await self._operations.stream(method.name, request, call, send)

            try:
                await self._intake.take(_arrival(operation, context), work)
            except RefusedError as refused:
                await _abort(context, refused.error, refused.request_id)

        return respond

    def _reader(self, method: MethodDescriptor) -> Callable[[bytes, Room, Observation], Any]:
        """Return what reads the message that a method takes."""
        make: Callable[[], Any] = GetMessageClass(method.input_type)

        def read(body: bytes, room: Room, observation: Observation) -> Any:
            if len(body) > self._max_request_bytes:
                raise ContractError(
                    "request_too_large",
                    "the message is too large",
                    expected=f"at most {self._max_request_bytes} bytes",
                    got=f"{len(body)} bytes",
                )
            room.grow(len(body))
            request = make()
            messages.parse(body, request)
            observation.model = messages.model_of(request)
            return request

        return read


def _arrival(operation: str, context: Context) -> Arrival:
    headers = {
        name: value if isinstance(value, str) else repr(value)
        for name, value in context.invocation_metadata() or ()
    }

    def timeout() -> float | None:
        remaining = context.time_remaining()
        return None if remaining is None or math.isinf(remaining) else remaining

    return Arrival("grpc", operation, headers, REQUEST_ID, timeout)


async def _tell_request_id(context: Context, request_id: str) -> None:
    """Echo the id as early as can be, and once more at the end, where errors carry theirs."""
    context.set_trailing_metadata(((REQUEST_ID, request_id),))
    await context.send_initial_metadata(((REQUEST_ID, request_id),))


async def _abort(context: Context, error: ContractError, request_id: str) -> NoReturn:
    """End the rpc with the error as its status, and the message in the status's details."""
    status = rpc_status.to_status(to_status(error, request_id))
    await context.abort(status.code, status.details, (*status.trailing_metadata, (REQUEST_ID, request_id)))
    raise AssertionError("abort returned")
