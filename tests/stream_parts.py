"""Streams of explanations over both transports, read in the same form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from google.protobuf import json_format

from conftest import Live
from gateway_calls import grpc_outcome
from whybox_proto.errors import TYPE_PREFIX
from whybox_proto.v1 import explainer_pb2

PATIENCE_SECONDS = 100.0
PATH = "/whybox.v1.Explainer/ExplainStream"


@dataclass(frozen=True)
class Event:
    """A server-sent event."""

    id: int
    kind: str
    data: dict[str, Any]


@contextmanager
def rest_stream(
    live: Live, request: dict[str, Any], headers: dict[str, str] | None = None
) -> Iterator[httpx.Response]:
    """Open a stream of events."""
    with httpx.stream(
        "POST",
        f"{live.rest}/v1/models/{request['model']}:explain",
        json=request,
        headers={"Accept": "text/event-stream", **(headers or {})},
        timeout=PATIENCE_SECONDS,
        verify=False,
    ) as response:
        yield response


def events(response: httpx.Response) -> Iterator[Event]:
    """Read the events of a stream, as far as they have come."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            assert name not in fields, "data in several lines"
            fields[name] = value
        elif fields:
            yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


@contextmanager
def grpc_stream(
    live: Live,
    request: dict[str, Any],
    timeout: float = PATIENCE_SECONDS,
    metadata: tuple[tuple[str, str], ...] = (),
) -> Iterator[Any]:
    """Open a stream of messages."""
    body = json_format.ParseDict(request, explainer_pb2.ExplainRequest()).SerializeToString()
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(live.target, options=options) as channel:
        stub = channel.unary_stream(PATH, response_deserializer=explainer_pb2.ExplainResponse.FromString)
        yield stub(body, timeout=timeout, metadata=metadata)


@dataclass(frozen=True)
class Told:
    """All that a stream told.

    Attributes:
        answers: one after the other.
        error: type, message and field of what ended it; empty where it ended well.
    """

    answers: list[explainer_pb2.ExplainResponse]
    error: dict[str, str]


def over_rest(live: Live, request: dict[str, Any], headers: dict[str, str] | None = None) -> Told:
    """Read a stream over REST to its end; events must come in order, and their kinds say what they are."""
    with rest_stream(live, request, headers) as response:
        if response.headers["Content-Type"] == "application/problem+json":
            response.read()
            return Told([], _problem(response.json()))
        told = list(events(response))
    assert [event.id for event in told] == list(range(1, len(told) + 1))
    assert [event.kind for event in told[:-1]] == ["partial"] * (len(told) - 1)
    last = told.pop() if told[-1].kind == "error" else None
    answers = [json_format.ParseDict(event.data, explainer_pb2.ExplainResponse()) for event in told]
    assert [event.kind for event in told] == ["partial" if a.partial else "result" for a in answers]
    return Told(answers, _problem(last.data) if last else {})


def over_grpc(live: Live, request: dict[str, Any], timeout: float = PATIENCE_SECONDS) -> Told:
    """Read a stream over gRPC to its end."""
    answers: list[explainer_pb2.ExplainResponse] = []
    with grpc_stream(live, request, timeout) as stream:
        try:
            answers += stream
        except grpc.RpcError as failure:
            error = grpc_outcome(failure).error
            return Told(answers, {name: error.get(name, "") for name in ("type", "message", "field")})
    return Told(answers, {})


def _problem(problem: dict[str, Any]) -> dict[str, str]:
    return {
        "type": problem["type"].removeprefix(TYPE_PREFIX),
        "message": problem["detail"],
        "field": problem.get("field", ""),
    }
