"""Streams in the client: server-sent events however they are cut, both transports, and how a stream ends."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import aclosing, contextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format

from test_client_errors import answer, problem, status_of, web
from whybox_client import AsyncClient, Client, Explanation, errors
from whybox_client.retrying import Backoff
from whybox_client.transports.events import Event, EventReader
from whybox_client.transports.lines import Line
from whybox_proto import maps
from whybox_proto.errors import ContractError, to_problem
from whybox_proto.v1 import explainer_pb2, types_pb2

PATIENCE_S = 30.0
NO_WAIT = Backoff(uniform=lambda _low, _high: 0.0)
FULL = ContractError("overloaded", "full", retry_after=0.01)
LOST = ContractError("backend_unavailable", "the worker is gone")


class TestEvents:
    STREAM = (
        b"\xef\xbb\xbf: a heartbeat\r\n\r\nid: 1\nevent: partial\ndata: {\ndata:  }\n\n"
        b"event:result\rdata\rdata: caf\xc3\xa9 \xe2\x80\xa8 end\r\rretry: 3\nnonsense\n\n"
        b"id: a\0b\nid\ndata: x\n\nevent: partial\n\nevent: cut\ndata: off\n"
    )
    EVENTS = (
        Event("partial", "{\n }", "1"),
        Event("result", "\ncafé \u2028 end", "1"),
        Event("message", "x", ""),
    )

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
    def test_they_are_read_however_they_are_cut(self, size: int) -> None:
        reader = EventReader()
        pieces = [self.STREAM[i : i + size] for i in range(0, len(self.STREAM), size)]
        assert tuple(event for piece in pieces for event in reader.feed(piece)) == self.EVENTS
        assert list(reader.feed(b"")) == []

    def test_a_long_line_in_many_pieces_takes_linear_time(self) -> None:
        reader = EventReader()
        piece = b"x" * 1000
        assert list(reader.feed(b"data: ")) == []
        for _ in range(20_000):
            assert not list(reader.feed(piece))
        (event,) = reader.feed(b"\n\n")
        assert len(event.data) == 20_000_000

    def test_a_line_that_ends_between_pieces_ends_once(self) -> None:
        reader = EventReader()
        assert list(reader.feed(b"data: a\r")) == []
        assert list(reader.feed(b"\n")) == []
        assert list(reader.feed(b"data: b\r\n\r")) == [Event("message", "a\nb", "")]
        assert list(reader.feed(b"\ndata: c\n\n")) == [Event("message", "c", "")]


def result(samples: int | None, *, partial: bool = False) -> explainer_pb2.ExplainResponse:
    """An answer with one map; None samples: of a method that draws none."""
    made = explainer_pb2.ExplainResponse(
        model="signs",
        image=types_pb2.ImageSize(width=8, height=6),
        detections=[types_pb2.Detection(box=[1, 1, 4, 4], label="stop", score=0.9)],
        partial=partial,
    )
    heat_map = made.heat_maps.add(target="class", method="d_rise", region=[0, 0, 8, 6])
    if samples is not None:
        heat_map.samples, heat_map.standard_error = samples, 1 / samples
    maps.encode(np.full((2, 2), samples or 1, np.float32), heat_map, "f32")
    return made


GROWING = (result(10, partial=True), result(20, partial=True), result(30))


def event_of(response: explainer_pb2.ExplainResponse, number: int = 0) -> bytes:
    name = "partial" if response.partial else "result"
    data = json_format.MessageToJson(response, indent=None, preserving_proto_field_name=True)
    return f": beat\n\nid: {number}\nevent: {name}\ndata: {data}\n\n".encode()


def error_of(error: ContractError) -> bytes:
    return f"event: error\ndata: {json.dumps(to_problem(error, 'theirs'))}\n\n".encode()


class Script:
    """What a service sends, one part after the other; and what it sees.

    A part is a response, a `ContractError`, or None: hang up. `pause` is waited for before each part but the
    first.
    """

    def __init__(self, *parts: explainer_pb2.ExplainResponse | ContractError | None) -> None:
        self.parts = parts
        self.pause: Callable[[], object] = lambda: None
        self.asked: list[Any] = []
        self.refusals: list[ContractError] = []
        self.left = threading.Event()


@contextmanager
def rest(script: Script) -> Iterator[str]:
    def send(handler: Any) -> None:
        script.asked.append(dict(handler.headers))
        if script.refusals:
            error = script.refusals.pop(0)
            problem(f"urn:whybox:error:{error.type}", error.row.http_status)(handler)
            return
        handler.send_response(200)
        for name, value in (("Content-Type", "text/event-stream; charset=utf-8"), ("X-Request-Id", "theirs")):
            handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        try:
            for number, part in enumerate(script.parts):
                if number:
                    script.pause()
                if part is None:
                    return
                body = error_of(part) if isinstance(part, ContractError) else event_of(part, number)
                handler.wfile.write(body)
        except OSError:
            script.left.set()

    with web(send) as server:
        yield server.url


@contextmanager
def rpc(script: Script) -> Iterator[str]:
    def behave(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        script.asked.append(dict(context.invocation_metadata()))
        context.add_callback(script.left.set)
        parts = [script.refusals.pop(0)] if script.refusals else script.parts
        context.send_initial_metadata((("x-request-id", "theirs"),))
        for number, part in enumerate(parts):
            if number:
                script.pause()
            if part is None:
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            elif isinstance(part, ContractError):
                status = status_of(part, "theirs")
                context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
                context.abort(grpc.StatusCode[part.row.grpc_code], part.message)
            else:
                yield part.SerializeToString()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            assert details.method == "/whybox.v1.Explainer/ExplainStream"
            return grpc.unary_stream_rpc_method_handler(behave)

    pool = futures.ThreadPoolExecutor(4)
    server = grpc.server(pool, handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
        pool.shutdown()


def sync_stream(url: str, *, stop_after: int | None = None, **settings: Any) -> list[Explanation]:
    with Client(url, timeout=settings.pop("timeout", PATIENCE_S)) as client:
        client._backoff = NO_WAIT
        results = []
        for explanation in client.explain_stream("signs", b"image", **settings):
            results.append(explanation)
            if len(results) == stop_after:
                break
        return results


def async_stream(url: str, *, stop_after: int | None = None, **settings: Any) -> list[Explanation]:
    async def go() -> list[Explanation]:
        async with AsyncClient(url, timeout=settings.pop("timeout", PATIENCE_S)) as client:
            client._backoff = NO_WAIT
            results = []
            async with aclosing(client.explain_stream("signs", b"image", **settings)) as stream:
                async for explanation in stream:
                    results.append(explanation)
                    if len(results) == stop_after:
                        break
            return results

    return asyncio.run(go())


@pytest.fixture(params=[sync_stream, async_stream], ids=["sync", "async"])
def streamed(request: pytest.FixtureRequest) -> Callable[..., list[Explanation]]:
    kind: Callable[..., list[Explanation]] = request.param
    return kind


@pytest.fixture(params=[rest, rpc], ids=["rest", "grpc"])
def serve(request: pytest.FixtureRequest) -> Callable[[Script], Any]:
    kind: Callable[[Script], Any] = request.param
    return kind


@contextmanager
def interrupted(_line: Line, cancel: Callable[[], object]) -> Iterator[None]:
    """What happens at Ctrl-C while a reply is waited for."""
    cancel()
    raise KeyboardInterrupt
    yield


class TestStreams:
    def test_results_grow(self, serve: Any, streamed: Any) -> None:
        script = Script(*GROWING)
        with serve(script) as url:
            results = streamed(url, request_id="mine", samples=30)
        assert [explanation.final for explanation in results] == [False, False, True]
        assert [explanation.samples for explanation in results] == [10, 20, 30]
        assert [explanation.heat_map().values[0, 0] for explanation in results] == [10, 20, 30]
        assert results[-1].standard_error == pytest.approx(1 / 30, rel=1e-6)
        assert {explanation.request_id for explanation in results} == {"theirs"}
        (headers,) = script.asked
        if "Accept" in headers:
            assert headers["Accept"] == "text/event-stream"
            assert headers["Content-Type"] == "application/x-protobuf"
            assert float(headers["X-Request-Timeout"]) <= PATIENCE_S
        else:
            assert headers["x-request-id"] == "mine"

    def test_each_is_handed_out_as_it_comes(self, serve: Any) -> None:
        script, seen = Script(*GROWING), threading.Semaphore(0)
        script.pause = lambda: seen.acquire(timeout=PATIENCE_S)
        with serve(script) as url, Client(url, timeout=PATIENCE_S) as client:
            for number, explanation in enumerate(client.explain_stream("signs", b"image")):
                assert explanation.samples == 10 * (number + 1)  # the next is not sent before
                seen.release()
        assert number == 2

    def test_a_method_that_draws_nothing_has_one_result(self, serve: Any, streamed: Any) -> None:
        with serve(Script(result(None))) as url:
            (only,) = streamed(url)
        assert (only.final, only.samples, only.standard_error, only.convergence) == (True, None, None, "")

    def test_leaving_closes_the_connection(self, serve: Any, streamed: Any) -> None:
        script = Script(*[result(n, partial=True) for n in range(1, 2000)])
        script.pause = lambda: script.left.wait(0.01)
        with serve(script) as url:
            assert len(streamed(url, stop_after=2)) == 2
            assert script.left.wait(PATIENCE_S)
        gc.collect()
        assert not [t.name for t in threading.enumerate() if t.name == "whybox client"]

    def test_what_is_refused_at_first_is_asked_again(self, serve: Any, streamed: Any) -> None:
        script = Script(*GROWING)
        script.refusals = [FULL, FULL]
        with serve(script) as url:
            assert len(streamed(url)) == 3
        assert len(script.asked) == 3
        script.refusals = [FULL] * 3
        with serve(script) as url, pytest.raises(errors.OverloadedError):
            streamed(url, retries=1)

    @pytest.mark.parametrize("end", [LOST, None], ids=["error", "hung up"])
    def test_what_broke_is_not_asked_again(
        self, serve: Any, streamed: Any, end: ContractError | None
    ) -> None:
        script = Script(GROWING[0], end)
        kind = errors.UnavailableError if end else errors.ConnectionFailedError
        with serve(script) as url, pytest.raises(kind) as caught:
            streamed(url)
        assert len(script.asked) == 1
        if end:
            assert (caught.value.message, caught.value.request_id) == (end.message, "theirs")

    def test_a_stream_that_ends_before_its_result_is_broken(self, serve: Any, streamed: Any) -> None:
        with serve(Script(*GROWING[:2])) as url, pytest.raises(errors.ConnectionFailedError, match="ended"):
            streamed(url)

    def test_the_time_is_for_all_of_it(self, serve: Any, streamed: Any) -> None:
        script = Script(*[result(n, partial=True) for n in range(1, 2000)])
        script.pause = lambda: script.left.wait(0.05)
        begun = time.monotonic()
        with serve(script) as url, pytest.raises(errors.DeadlineExceededError):
            streamed(url, timeout=0.5)
        assert time.monotonic() - begun < PATIENCE_S

    def test_closing_the_client_ends_it(self, serve: Any) -> None:
        script = Script(*[result(n, partial=True) for n in range(1, 2000)])
        script.pause = lambda: script.left.wait(0.01)
        with serve(script) as url:
            client = Client(url, timeout=PATIENCE_S)
            stream = client.explain_stream("signs", b"image")
            next(stream)
            client.close()
            with pytest.raises(RuntimeError, match="closed"):
                next(stream)
            assert script.left.wait(PATIENCE_S)

    def test_an_interrupted_wait_closes_the_connection(
        self, serve: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = Script(*[result(n, partial=True) for n in range(1, 2000)])
        script.pause = lambda: script.left.wait(0.2)
        with serve(script) as url, Client(url, timeout=PATIENCE_S) as client:
            stream = client.explain_stream("signs", b"image")
            next(stream)
            with monkeypatch.context() as patch:
                patch.setattr(Line, "holding", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    next(stream)
            assert script.left.wait(PATIENCE_S)
            with pytest.raises(StopIteration):
                next(stream)

    def test_what_cannot_be_sent_is_told_before_anything_is(self) -> None:
        with Client("http://127.0.0.1:9") as client, pytest.raises(ValueError, match="seed: "):
            client.explain_stream("signs", b"image", seed=-1)


class TestRestAlone:
    @pytest.mark.parametrize(
        ("reply", "kind"),
        [
            (answer(200, "application/json", b"{}"), errors.InvalidAnswerError),
            (answer(404, "text/html", b"<h1>no</h1>"), errors.NotFoundError),
            (
                answer(200, "text/event-stream", b"event: result\ndata: no json\n\n"),
                errors.InvalidAnswerError,
            ),
            (answer(200, "text/event-stream", b"event: error\ndata: []\n\n"), errors.InvalidAnswerError),
            (answer(200, "text/event-stream", b"event: later\ndata: 1\n\n"), errors.ConnectionFailedError),
        ],
        ids=["json", "404", "garbled result", "garbled error", "nothing known"],
    )
    def test_what_no_whybox_sends(self, reply: Any, kind: type[errors.WhyboxError], streamed: Any) -> None:
        with web(reply) as server, pytest.raises(kind):
            streamed(server.url, retries=0)

    def test_a_field_of_a_newer_service_is_passed_over(self) -> None:
        data = b'event: result\ndata: {"model": "signs", "of_tomorrow": 1}\n\n'
        with web(answer(200, "text/event-stream", data)) as server:
            assert [e.detections.model for e in sync_stream(server.url)] == ["signs"]


class TestShow:
    def test_a_terminal_gets_a_line_for_each(self, capsys: pytest.CaptureFixture[str]) -> None:
        with rest(Script(*GROWING)) as url:
            for explanation in sync_stream(url):
                explanation.show()
        first, _, last = capsys.readouterr().out.splitlines()
        assert first.startswith("<Explanation by signs: 1 detections, 1 maps (class), 10 samples")
        assert first.endswith(", standard error 0.1, not yet final>")
        assert last.endswith("30 samples, standard error 0.033>")

    def test_a_notebook_draws_one_stream_in_one_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        places: list[list[Any]] = []

        def display(thing: object, *, display_id: bool) -> Any:
            assert display_id
            places.append([thing])
            return SimpleNamespace(update=places[-1].append)

        shell: Any = SimpleNamespace(kernel=object())
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))  # type: ignore[arg-type]
        with rest(Script(*GROWING)) as url:
            results = [sync_stream(url), sync_stream(url)]
        for explanation in (*results[0], *results[1]):
            explanation.show()
        assert places == results
