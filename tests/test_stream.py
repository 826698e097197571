"""Explanations that grow: `ExplainStream` and server-sent events, on a live service."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import httpx
import pytest
from google.protobuf import json_format

import stream_parts
from gateway_calls import over_rest as ask_over_rest
from sampling_parts import (
    ONE,
    TWO,
    Sampler,
    asking,
    eventually,
    expected_maps,
    message,
    parsed,
    same_maps,
)
from stream_parts import Told, events, grpc_stream, rest_stream
from test_gateway_operations import count, scrape
from whybox_service.rest.events import HEARTBEAT_SECONDS, Events

F32 = {"encoding": "f32"}
# Long enough for several partial answers.
LONG = {"samples": 96, "seconds": 0.25}


def told(sampler: Sampler, request: dict[str, Any], transport: str, seconds: float = 100.0) -> Told:
    if transport == "rest":
        return stream_parts.over_rest(sampler.live, request, {"X-Request-Timeout": str(seconds)})
    return stream_parts.over_grpc(sampler.live, request, seconds)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
class TestAnswers:
    """What is told, over both transports."""

    def test_an_answer_grows(self, sampler: Sampler, transport: str) -> None:
        request = asking(TWO, LONG, seed=5, output=F32)
        stream = told(sampler, request, transport)
        assert not stream.error
        first, *growing, last = stream.answers
        assert first.partial
        assert len(first.detections) == 2
        assert not first.heat_maps
        assert growing
        drawn = [answer.heat_maps[0].samples for answer in growing]
        assert drawn == sorted(set(drawn))
        for answer, samples in zip(growing, drawn, strict=True):
            assert answer.partial
            fewer = asking(TWO, {**LONG, "samples": samples}, seed=5, output=F32)
            assert same_maps(answer.heat_maps, expected_maps(fewer))
        assert not last.partial
        assert same_maps(last.heat_maps, expected_maps(request))
        assert {stage.name for stage in last.stages} >= {"forward", "sample", "backend", "serialize"}

    def test_the_last_answer_is_the_one_without_a_stream(self, sampler: Sampler, transport: str) -> None:
        output = {"size": "image", "encoding": "png"}
        request = asking(TWO, {"samples": 16}, targets=["class", "x1"], output=output)
        last = told(sampler, request, transport).answers[-1]
        alone = ask_over_rest(sampler.live.rest, "Explain", request)
        del last.stages[:]
        assert alone.answer is not None
        unstaged = parsed(alone.answer)
        del unstaged.stages[:]
        assert last == unstaged

    def test_partial_maps_come_in_the_size_that_is_asked_for(self, sampler: Sampler, transport: str) -> None:
        answers = told(sampler, asking(TWO, LONG, output={"size": "image"}), transport).answers
        assert {(m.width, m.height) for answer in answers for m in answer.heat_maps} == {(40, 30)}

    @pytest.mark.parametrize(
        ("wishes", "method"), [({}, "odam"), ({"detections": 0}, "sampler")], ids=["no samples", "nothing"]
    )
    def test_what_draws_no_samples_is_told_once(
        self, sampler: Sampler, transport: str, wishes: dict[str, Any], method: str
    ) -> None:
        (answer,) = told(sampler, asking(TWO, wishes, method=method), transport).answers
        assert not answer.partial
        assert answer.stages

    def test_maps_of_what_was_missed_grow_too(self, sampler: Sampler, transport: str) -> None:
        answers = told(sampler, asking(TWO, {**LONG, "missed": True, "detections": 1}), transport).answers
        assert [len(answer.why_not.heat_maps) for answer in answers] == [0] + [1] * (len(answers) - 1)

    def test_a_budget_ends_it(self, sampler: Sampler, transport: str) -> None:
        request = asking(TWO, {"samples": 8000, "seconds": 0.1}, budget={"seconds": 1.0})
        last = told(sampler, request, transport).answers[-1]
        assert 8 <= last.heat_maps[0].samples < 8000
        assert "the time was used up" in last.warnings[0]

    def test_the_last_answer_is_measured(self, sampler: Sampler, transport: str) -> None:
        *growing, last = told(sampler, asking(TWO, LONG, evaluate=True), transport).answers
        assert not any(m.faithfulness for answer in growing for m in answer.heat_maps)
        assert all("mean" in heat_map.faithfulness for heat_map in last.heat_maps)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
class TestErrors:
    """What goes wrong, before the first answer and after it."""

    @pytest.mark.parametrize(
        ("change", "type", "field"),
        [
            ({"method": "sampelr"}, "unknown_method", "method"),
            ({"budget": {"samples": 0}}, "invalid_argument", "budget.samples"),
            ({"image": ""}, "missing_image", "image"),
        ],
    )
    def test_a_bad_request_has_no_stream(
        self, sampler: Sampler, transport: str, change: dict[str, Any], type: str, field: str
    ) -> None:
        stream = told(sampler, {**asking(TWO), **change}, transport)
        assert not stream.answers
        assert (stream.error["type"], stream.error["field"]) == (type, field)

    def test_an_error_on_the_way_ends_the_stream(self, sampler: Sampler, transport: str) -> None:
        stream = told(sampler, asking(ONE, {**LONG, "fail_at": 64}), transport)
        assert len(stream.answers) >= 2
        assert all(answer.partial for answer in stream.answers)
        assert stream.error == {"type": "invalid_argument", "message": "told", "field": "params.x"}

    def test_a_deadline_without_samples_is_exceeded(self, sampler: Sampler, transport: str) -> None:
        stream = told(sampler, asking(ONE, {"seconds": 30}), transport, seconds=1.5)
        assert len(stream.answers) <= 1
        assert stream.error["type"].lower() == "deadline_exceeded"
        assert told(sampler, asking(ONE), transport).answers, "the worker is free again"


def leave_rest(sampler: Sampler, request: dict[str, Any], request_id: str) -> None:
    with rest_stream(sampler.live, request, {"X-Request-Id": request_id}) as response:
        seen = events(response)
        assert [next(seen).kind for _ in range(2)] == ["partial", "partial"]


def leave_grpc(sampler: Sampler, request: dict[str, Any], request_id: str) -> None:
    with grpc_stream(sampler.live, request, metadata=(("x-request-id", request_id),)) as stream:
        assert [next(stream).partial for _ in range(2)] == [True, True]
        stream.cancel()


class TestClients:
    """Clients that leave, or read slowly."""

    @pytest.mark.parametrize("leave", [leave_rest, leave_grpc])
    def test_who_leaves_ends_the_work(
        self, sampler: Sampler, leave: Callable[[Sampler, dict[str, Any], str], None]
    ) -> None:
        request_id = leave.__name__
        leave(sampler, asking(TWO, {"samples": 8000, "seconds": 0.5}), request_id)
        eventually(lambda: sum(chunk["told"] for chunk in sampler.done(request_id)) == 2)
        done = len(sampler.done(request_id))
        started = time.monotonic()
        assert ask_over_rest(sampler.live.rest, "Explain", asking(TWO)).answer
        assert time.monotonic() - started < 60
        assert len(sampler.done(request_id)) == done, "no further chunk was sent"

    def test_who_reads_slowly_holds_nothing_up_and_gets_no_pile(self, sampler: Sampler) -> None:
        wishes = {"cells": [400, 400], "samples": 160, "seconds": 0.1}
        request = asking(TWO, wishes, output=F32)
        with rest_stream(sampler.live, request, {"X-Request-Id": "slow"}) as response:
            seen = events(response)
            next(seen)
            eventually(lambda: len(sampler.done("slow")) == 20)
            rest = list(seen)
        assert rest[-1].kind == "result"
        assert rest[-1].data["heat_maps"][0]["samples"] == 160
        assert len(rest) < 12

    def test_who_reads_nothing_is_cut_off(self, sampler: Sampler) -> None:
        wishes = {"cells": [400, 400], "samples": 8000, "seconds": 0.1}
        request = asking(TWO, wishes, output=F32)
        body = json_format.MessageToJson(message(request)).encode()
        parts = urlsplit(sampler.live.rest)
        assert parts.hostname
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((parts.hostname, parts.port or 80))
            head = (
                f"POST /v1/models/{TWO}:explain HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
                f"Content-Type: application/json\r\nX-Request-Id: deaf\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            client.sendall(head.encode() + body)
            eventually(lambda: any(chunk["told"] for chunk in sampler.done("deaf")))
        assert ask_over_rest(sampler.live.rest, "Explain", asking(TWO)).answer

    def test_a_slow_reader_of_grpc_gets_no_pile(self, sampler: Sampler) -> None:
        request = asking(TWO, {"cells": [400, 400], "samples": 160, "seconds": 0.1}, output=F32)
        metadata = (("x-request-id", "slow-grpc"),)
        with grpc_stream(sampler.live, request, metadata=metadata) as stream:
            next(stream)
            eventually(lambda: len(sampler.done("slow-grpc")) == 20)
            rest = list(stream)
        assert [answer.partial for answer in rest] == [True] * (len(rest) - 1) + [False]
        assert rest[-1].heat_maps[0].samples == 160
        assert len(rest) < 12


def test_the_headers_of_a_stream(sampler: Sampler) -> None:
    with rest_stream(sampler.live, asking(TWO), {"X-Request-Id": "mine"}) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["X-Request-Id"] == "mine"
        assert "Content-Length" not in response.headers
        assert list(events(response))[-1].kind == "result"
    with grpc_stream(sampler.live, asking(TWO), metadata=(("x-request-id", "mine"),)) as stream:
        assert list(stream)[-1].heat_maps
        assert dict(stream.initial_metadata())["x-request-id"] == "mine"
        assert dict(stream.trailing_metadata())["x-request-id"] == "mine"


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_http_1_0_gets_a_body_that_the_end_of_the_connection_ends(sampler: Sampler, connection: str) -> None:
    """As proxies ask, nginx with `proxy_http_version 1.0`: they need not know chunks."""
    wishes = {"Accept": "text/event-stream", "Connection": connection}
    with asking_in_http_1_0(sampler, asking(TWO, LONG), **wishes) as answer:
        status, headers = head_of(answer)
        assert (status, headers["content-type"]) == ("200", "text/event-stream; charset=utf-8")
        assert headers["connection"] == "close"
        assert not {"transfer-encoding", "content-length"} & set(headers)
        body = answer.readlines()
    assert len(body) % 4 == 0
    lines = [body[i : i + 4] for i in range(0, len(body), 4)]
    assert [number for number, *_ in lines] == [b"id: %d\n" % (i + 1) for i in range(len(lines))]
    assert {kind for _, kind, *_ in lines[:-1]} == {b"event: partial\n"}
    assert lines[-1][1] == b"event: result\n"
    assert all(json.loads(data.removeprefix(b"data: ")) for _, _, data, _ in lines)


def test_http_1_0_gets_events_as_they_come(sampler: Sampler) -> None:
    """The whole answer would take longer than the socket waits."""
    request = asking(TWO, {"samples": 8000, "seconds": 0.5})
    wishes = {"Accept": "text/event-stream", "X-Request-Timeout": "110", "X-Request-Id": "old"}
    with asking_in_http_1_0(sampler, request, **wishes) as answer:
        head_of(answer)
        for number in (1, 2):
            lines = [answer.readline() for _ in range(4)]
            assert lines[:2] == [b"id: %d\n" % number, b"event: partial\n"]
    eventually(lambda: any(chunk["told"] for chunk in sampler.done("old")))


def test_http_1_0_gets_the_length_of_what_has_one(sampler: Sampler) -> None:
    for request, expected in ((asking(TWO), "200"), (asking(TWO, method="sampelr"), "400")):
        with asking_in_http_1_0(sampler, request) as answer:
            status, headers = head_of(answer)
            body = answer.read()
        assert status == expected
        assert (headers["connection"], int(headers["content-length"])) == ("close", len(body))
        assert json.loads(body)


@contextmanager
def asking_in_http_1_0(sampler: Sampler, request: dict[str, Any], **headers: str) -> Iterator[BinaryIO]:
    """Send a request over a bare socket; what is yielded reads all that comes until it is closed."""
    parts = urlsplit(sampler.live.rest)
    body = json_format.MessageToJson(message(request)).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = [
        f"POST /v1/models/{TWO}:explain HTTP/1.0",
        *(f"{name}: {told}" for name, told in headers.items()),
    ]
    assert parts.hostname
    address = parts.hostname, parts.port or 80
    with socket.create_connection(address, 60) as client, client.makefile("rb") as answer:
        client.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        yield answer


def head_of(answer: BinaryIO) -> tuple[str, dict[str, str]]:
    """Read an answer's status and headers."""
    status = answer.readline().decode().split()[1]
    lines = iter(lambda: answer.readline().decode().strip(), "")
    return status, {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


def test_a_connection_goes_on_after_a_stream(sampler: Sampler) -> None:
    with httpx.Client(base_url=sampler.live.rest, verify=False, timeout=60) as client:
        for _ in range(2):
            request = {name: value for name, value in asking(TWO).items() if name != "model"}
            response = client.post(
                f"/v1/models/{TWO}:explain", json=request, headers={"Accept": "text/event-stream"}
            )
            assert response.text.count("event: result") == 1


def test_instances_have_no_stream(sampler: Sampler) -> None:
    request = {name: value for name, value in asking(TWO).items() if name != "model"}
    response = httpx.post(
        f"{sampler.live.rest}/v1/models/{TWO}:explain",
        json={"instances": [request]},
        headers={"Accept": "text/event-stream"},
        verify=False,
        timeout=60,
    )
    assert (response.status_code, response.json()["field"]) == (406, "Accept")


def test_streams_are_an_operation_of_their_own(sampler: Sampler) -> None:
    before = scrape(f"{sampler.live.rest}/metrics")
    for transport in ("rest", "grpc"):
        told(sampler, asking(TWO), transport)
        told(sampler, asking(TWO, {"fail_at": 0}), transport)
    after = scrape(f"{sampler.live.rest}/metrics")

    def more(name: str, **labels: str) -> float:
        return count(after, name, **labels) - count(before, name, **labels)

    of_stream = {"operation": "explain_stream", "model": TWO}
    for transport in ("rest", "grpc"):
        for code in ("ok", "invalid_argument"):
            assert more("whybox_request_seconds_count", transport=transport, code=code, **of_stream) == 1
    for stage in ("sample", "queue", "backend", "serialize"):
        assert more("whybox_stage_seconds_count", stage=stage, **of_stream) == 2
    assert not [labels for (_, labels), _ in after.items() if ("stage", "other") in labels]


class TestEvents:
    """The writing of events, without a service."""

    def test_a_heartbeat_fills_a_silence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("whybox_service.rest.events.HEARTBEAT_SECONDS", 0.01)
        assert HEARTBEAT_SECONDS >= 1
        sent: list[bytes] = []

        async def send(part: Any) -> None:
            sent.append(part.get("body", b"head"))

        async def stream() -> None:
            events = Events(send)
            async with events.beating():
                await asyncio.sleep(0.05)
                assert not sent, "nothing comes before the first event"
                await events.tell("partial", b"{}", "id")
                while len(sent) < 4:
                    await asyncio.sleep(0.01)
                await events.tell("result", b"{}")
            await events.end()

        asyncio.run(asyncio.wait_for(stream(), 60))
        assert sent[:2] == [b"head", b"id: 1\nevent: partial\ndata: {}\n\n"]
        assert {part[:1] for part in sent[2:-2]} == {b":"}
        assert sent[-2:] == [b"id: 2\nevent: result\ndata: {}\n\n", b""]

    def test_behind_half_an_event_comes_only_the_end(self) -> None:
        sent: list[bytes] = []

        async def send(part: Any) -> None:
            sent.append(part.get("body", b"head"))
            if len(sent) == 2:
                raise TimeoutError

        async def stream() -> None:
            events = Events(send)
            with pytest.raises(TimeoutError):
                await events.tell("result", b"x" * (1 << 20), "id")
            await events.fail(b"{}")

        asyncio.run(stream())
        assert sent[2:] == [b""]
