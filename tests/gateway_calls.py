"""The same question over REST and over gRPC, and what came of it in a form that compares."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from whybox_proto.errors import TYPE_PREFIX
from whybox_proto.v1 import explainer_pb2
from whybox_service.rest.routes import ADDRESSES

SERVICE = explainer_pb2.DESCRIPTOR.services_by_name["Explainer"]
PATIENCE_SECONDS = 100.0


@dataclass(frozen=True)
class Outcome:
    """An answer, or an error with all that it says; how long the stages took does not count."""

    answer: dict[str, Any] | None = None
    error: dict[str, str] = field(default_factory=dict)
    request_id: str = field(default="", compare=False)


def over_rest(url: str, rpc: str, request: dict[str, Any], **headers: str) -> Outcome:
    """Ask over REST with JSON."""
    address = next(a for a in ADDRESSES if a.rpc == rpc)
    path = address.path
    for name in address.fields:
        path = path.replace(f"{{{name}}}", str(request.get("explain", request).get(name, "")))
    asked: dict[str, Any] = {"params": request} if address.verb == "GET" else {"json": request}
    response = httpx.request(
        address.verb, url + path, headers=headers, timeout=PATIENCE_SECONDS, verify=False, **asked
    )
    return rest_outcome(response, rpc)


def rest_outcome(response: httpx.Response, rpc: str = "Detect") -> Outcome:
    """Read what REST answered."""
    request_id = response.headers["X-Request-Id"]
    if response.is_success:
        answer = GetMessageClass(SERVICE.methods_by_name[rpc].output_type)()
        return Outcome(_plain(json_format.Parse(response.text, answer)), request_id=request_id)
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["request_id"] == request_id
    assert problem["type"].startswith(TYPE_PREFIX)
    error = {
        "type": problem["type"].removeprefix(TYPE_PREFIX),
        "message": problem["detail"],
        **{name: problem.get(name, "") for name in ("field", "expected", "got")},
    }
    return Outcome(error=error, request_id=request_id)


def over_grpc(
    target: str,
    rpc: str,
    request: dict[str, Any] | Message | bytes,
    *,
    timeout: float = PATIENCE_SECONDS,
    metadata: tuple[tuple[str, str], ...] = (),
) -> Outcome:
    """Ask over gRPC, with the message of that JSON, a message, or bytes that need be none."""
    method = SERVICE.methods_by_name[rpc]
    if isinstance(request, dict):
        request = json_format.ParseDict(request, GetMessageClass(method.input_type)())
    body = request if isinstance(request, bytes) else request.SerializeToString()
    with grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", -1)]) as channel:
        path = f"/{SERVICE.full_name}/{rpc}"
        try:
            if method.server_streaming:
                stream = channel.unary_stream(path)(body, timeout=timeout, metadata=metadata)
                raise AssertionError(f"an answer: {list(stream)}")
            reply, call = channel.unary_unary(path).with_call(body, timeout=timeout, metadata=metadata)
        except grpc.RpcError as failure:
            return grpc_outcome(failure)
    request_id = dict(call.trailing_metadata())["x-request-id"]
    assert dict(call.initial_metadata())["x-request-id"] == request_id
    answer = GetMessageClass(method.output_type).FromString(reply)
    return Outcome(_plain(answer), request_id=request_id)


def grpc_outcome(failure: Any) -> Outcome:
    """Read the error that gRPC answered."""
    status = rpc_status.from_call(failure)
    if status is None:
        return Outcome(error={"type": failure.code().name, "message": failure.details()})
    error = explainer_pb2.Error()
    assert status.details[0].Unpack(error)
    assert error.message == failure.details()
    request_id = dict(failure.trailing_metadata())["x-request-id"]
    assert error.request_id == request_id
    names = ("type", "message", "field", "expected", "got")
    return Outcome(error={name: getattr(error, name) for name in names}, request_id=request_id)


def everywhere(live: Any, rpc: str, request: dict[str, Any]) -> Outcome:
    """Ask over both transports, which must agree."""
    rest = over_rest(live.rest, rpc, request)
    rpc_outcome = over_grpc(live.target, rpc, request)
    assert rest == rpc_outcome
    return rest


def b64(data: bytes) -> str:
    """Bytes as JSON has them."""
    return base64.b64encode(data).decode()


def _plain(answer: Message) -> dict[str, Any]:
    for stage in getattr(getattr(answer, "explanation", answer), "stages", ()):
        assert 0 <= stage.seconds < PATIENCE_SECONDS
        stage.seconds = 0
    plain: dict[str, Any] = json_format.MessageToDict(answer, preserving_proto_field_name=True)
    return plain
