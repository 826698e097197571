"""Errors are typed: the table is complete, and what is foreign is mapped, on both transports.

The servers here answer what a live whybox never would: another service's pages, half an answer, nothing.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2

from whybox_client import AsyncClient, Client, errors
from whybox_client.transports import rest, rpc
from whybox_proto.errors import ERRORS, ContractError
from whybox_proto.v1 import explainer_pb2

ACCEPTED = explainer_pb2.DetectResponse(model="signs")


def tree(kind: type[errors.WhyboxError]) -> list[type[errors.WhyboxError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


class TestTable:
    def test_every_row_has_a_class_and_no_class_a_row_that_is_not_there(self) -> None:
        assert set(errors.CLASSES) == set(ERRORS)

    def test_refusals_and_breakdowns_are_told_apart_as_the_statuses_tell_them(self) -> None:
        for name, row in ERRORS.items():
            at_fault = row.http_status < 500 and not row.retryable
            assert issubclass(
                errors.CLASSES[name], errors.RequestError if at_fault else errors.ServiceError
            ), name

    def test_every_class_is_drawn_in_the_tree_and_has_a_type(self) -> None:
        drawn = re.findall(r"[├└]─ (\w+)", errors.__doc__ or "")
        kinds = tree(errors.WhyboxError)[1:]
        assert sorted(drawn) == sorted(kind.__name__ for kind in kinds)
        for kind in kinds:
            assert kind.default_type in {*ERRORS, "connection_failed", "invalid_answer", "cancelled"}

    def test_whether_to_ask_again_is_what_the_table_says(self) -> None:
        assert errors.OverloadedError("full").retryable
        assert not errors.UnknownLabelError("none").retryable
        assert errors.ConnectionFailedError("refused").retryable
        assert not errors.InvalidAnswerError("a page").retryable

    def test_every_code_of_grpc_has_a_class(self) -> None:
        assert set(rpc.CODE_CLASSES) == {code.name for code in grpc.StatusCode} - {"OK"}

    def test_every_error_of_httpx_has_a_class(self) -> None:
        def below(kind: type[httpx.RequestError]) -> Iterator[type[httpx.RequestError]]:
            yield kind
            for child in kind.__subclasses__():
                yield from below(child)

        for kind in below(httpx.RequestError):
            assert any(issubclass(kind, theirs) for theirs, _ in rest.FOREIGN_CLASSES), kind

    def test_the_message_shows_everything_in_one_line(self) -> None:
        error = errors.UnknownLabelError(
            "there is no label 'stopp'",
            field="select.labels[0]",
            expected="one of: stop, yield",
            got="stopp",
            request_id="42",
        )
        assert str(error) == (
            "there is no label 'stopp' (field select.labels[0]; expected one of: stop, yield; got stopp; "
            "request 42)"
        )
        assert error.type == "unknown_label"
        assert str(errors.OverloadedError("full")) == "full"

    def test_errors_survive_pickling(self) -> None:
        error = errors.InvalidArgumentError("bad", field="seed", got="-1", request_id="7")
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)


class Web(ThreadingHTTPServer):
    """Answers every request with one canned answer, and remembers the last request."""

    daemon_threads = True

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.answer = answer
        self.seen: dict[str, Any] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hung up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.body = body
        server.seen = {"path": self.path, "headers": self.headers, "body": body}
        server.answer(self)

    do_GET = do_DELETE = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def web(answer: Callable[[Any], None]) -> Iterator[Web]:
    server = Web(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(status: int, media_type: str, body: bytes, **headers: str) -> Callable[[Any], None]:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": media_type, "Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


@contextmanager
def grpc_server(behaviour: Callable[[bytes, grpc.ServicerContext], bytes], **options: int) -> Iterator[str]:
    class Any_(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:  # noqa: ARG002
            return grpc.unary_unary_rpc_method_handler(behaviour)

    pool = futures.ThreadPoolExecutor(16)
    server = grpc.server(pool, handlers=[Any_()], options=[(f"grpc.{k}", v) for k, v in options.items()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
        pool.shutdown()


def ask(url: str, **arguments: Any) -> object:
    with Client(url, timeout=10) as client:
        return client.detect("signs", b"image", **arguments)


def ask_async(url: str, **arguments: Any) -> object:
    async def go() -> object:
        async with AsyncClient(url, timeout=10) as client:
            return await client.detect("signs", b"image", **arguments)

    return asyncio.run(go())


@pytest.fixture(params=[ask, ask_async], ids=["sync", "async"])
def asked(request: pytest.FixtureRequest) -> Callable[..., object]:
    kind: Callable[..., object] = request.param
    return kind


def caught(asked: Callable[..., object], url: str, **arguments: Any) -> errors.WhyboxError:
    with pytest.raises(errors.WhyboxError) as info:
        asked(url, **arguments)
    return info.value


REFUSAL = ContractError("unknown_label", "there is no label 'stopp'", field="f", expected="stop", got="stopp")


def problem(type_uri: str, status: int = 400, **more: object) -> Callable[[Any], None]:
    body = {"type": type_uri, "title": "Title", "status": status, **more}
    return answer(status, "application/problem+json; charset=utf-8", json.dumps(body).encode())


def status_of(refusal: ContractError, request_id: str, type: str | None = None) -> status_pb2.Status:
    message = refusal.to_message(request_id)
    message.type = type or message.type
    detail = any_pb2.Any()
    detail.Pack(message)
    code: grpc.StatusCode = grpc.StatusCode[refusal.row.grpc_code]
    return status_pb2.Status(code=code.value[0], message=refusal.message, details=[detail])


def abort_with(status: status_pb2.Status) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def behaviour(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        code = next(c for c in grpc.StatusCode if c.value[0] == status.code)
        context.abort(code, status.message)
        raise AssertionError

    return behaviour


class TestRest:
    def test_a_good_answer_with_its_headers(self, asked: Callable[..., object]) -> None:
        body = ACCEPTED.SerializeToString()
        good = answer(200, "application/x-protobuf", body, **{"X-Request-Id": "theirs"})
        with web(good) as server:
            result: Any = asked(server.url + "/", timeout=2.5, request_id="mine")
            assert (result.model, result.request_id) == ("signs", "theirs")
            assert server.seen["path"] == "/v1/models/signs:detect"
            headers = server.seen["headers"]
            assert headers["Content-Type"] == headers["Accept"] == "application/x-protobuf"
            assert (headers["X-Request-Id"], headers["X-Request-Timeout"]) == ("mine", "2.5")
            assert explainer_pb2.DetectRequest.FromString(server.seen["body"]).model == "signs"

    def test_names_are_quoted_and_queries_built(self) -> None:
        with web(answer(200, "application/x-protobuf", b"")) as server, Client(server.url) as client:
            client.model("a/b c?", model_version="1.0")
            assert server.seen["path"] == "/v1/models/a%2Fb%20c%3F?model_version=1.0"
            client.models()
            assert server.seen["path"] == "/v1/models?page_size=1000"

    @pytest.mark.parametrize("prefix", ["urn:whybox:error:", "https://example.org/errors/", "/e#", ""])
    def test_a_problem_becomes_its_class(self, asked: Callable[..., object], prefix: str) -> None:
        details = {"detail": "there is no label 'stopp'", "field": "f", "expected": "stop", "got": "stopp"}
        with web(problem(f"{prefix}unknown_label", **details, request_id="42")) as server:
            error = caught(asked, server.url)
        assert type(error) is errors.UnknownLabelError
        assert str(error) == "there is no label 'stopp' (field f; expected stop; got stopp; request 42)"
        assert error.type == "unknown_label"

    @pytest.mark.parametrize("name", sorted(ERRORS))
    def test_every_row_arrives(self, name: str) -> None:
        with web(problem(f"urn:whybox:error:{name}", ERRORS[name].http_status)) as server:
            error = caught(ask, server.url, request_id="mine")
        assert type(error) is errors.CLASSES[name]
        assert (error.type, error.message, error.request_id) == (name, "Title", "mine")

    def test_a_row_of_the_future_is_told_by_its_status(self) -> None:
        for status, kind in (
            (418, errors.RequestError),
            (429, errors.OverloadedError),
            (599, errors.ServiceError),
        ):
            with web(problem("urn:whybox:error:too_lazy", status, detail="no")) as server:
                error = caught(ask, server.url)
            assert (type(error), error.type, error.message) == (kind, "too_lazy", "no")

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (302, errors.InvalidAnswerError),
            (401, errors.UnauthenticatedError),
            (404, errors.NotFoundError),
            (408, errors.RequestTimeoutError),
            (413, errors.RequestTooLargeError),
            (429, errors.OverloadedError),
            (500, errors.InternalError),
            (502, errors.UnavailableError),
            (503, errors.UnavailableError),
            (504, errors.DeadlineExceededError),
            (507, errors.ServiceError),
        ],
    )
    def test_pages_of_something_on_the_way(self, status: int, kind: type[errors.WhyboxError]) -> None:
        with web(answer(status, "text/html", b"<h1>nginx</h1>")) as server:
            error = caught(ask, server.url)
        assert type(error) is kind
        assert f"answered {status}" in error.message
        assert error.request_id

    @pytest.mark.parametrize("body", [b"[1]", b"{", b""])
    def test_a_broken_problem(self, body: bytes) -> None:
        with web(answer(400, "application/problem+json", body)) as server:
            assert type(caught(ask, server.url)) is errors.RequestError

    def test_another_service_at_the_address(self, asked: Callable[..., object]) -> None:
        with web(answer(200, "text/html", b"<h1>Hello</h1>")) as server:
            error = caught(asked, server.url)
        assert type(error) is errors.InvalidAnswerError
        assert (error.expected, error.got) == ("application/x-protobuf", "text/html")

    def test_an_answer_cut_off(self, asked: Callable[..., object]) -> None:
        def half(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", "100")
            handler.end_headers()
            handler.wfile.write(b"half")
            handler.close_connection = True

        with web(half) as server:
            assert type(caught(asked, server.url)) is errors.ConnectionFailedError

    def test_an_answer_that_does_not_come(self, asked: Callable[..., object]) -> None:
        released = threading.Event()
        with web(lambda _: released.wait(20)) as server:
            start = time.monotonic()
            error = caught(asked, server.url, timeout=0.2)
            seconds = time.monotonic() - start
            released.set()
        assert type(error) is errors.DeadlineExceededError
        assert error.retryable
        assert seconds < 8

    def test_ready_follows_the_status(self) -> None:
        for status, ready in ((200, True), (503, False)):
            with web(answer(status, "application/json", b"{}")) as server, Client(server.url) as client:
                assert client.ready() is ready
                assert server.seen["path"] == "/readyz"


class TestGrpc:
    def test_a_good_answer_with_its_metadata(self, asked: Callable[..., object]) -> None:
        seen: dict[str, Any] = {}

        def behaviour(body: bytes, context: grpc.ServicerContext) -> bytes:
            seen.update(
                body=body, metadata=dict(context.invocation_metadata()), left=context.time_remaining()
            )
            context.send_initial_metadata((("x-request-id", "theirs"),))
            return ACCEPTED.SerializeToString()

        with grpc_server(behaviour) as url:
            result: Any = asked(url, timeout=7.5, request_id="mine")
        assert (result.model, result.request_id) == ("signs", "theirs")
        assert seen["metadata"]["x-request-id"] == "mine"
        assert 0 < seen["left"] < 7.6  # gRPC rounds up
        assert explainer_pb2.DetectRequest.FromString(seen["body"]).model == "signs"

    def test_the_details_become_the_class(self, asked: Callable[..., object]) -> None:
        with grpc_server(abort_with(status_of(REFUSAL, "42"))) as url:
            error = caught(asked, url)
        assert type(error) is errors.UnknownLabelError
        assert str(error) == "there is no label 'stopp' (field f; expected stop; got stopp; request 42)"

    def test_every_row_arrives(self) -> None:
        status = status_pb2.Status()

        def behaviour(body: bytes, context: grpc.ServicerContext) -> bytes:
            return abort_with(status)(body, context)

        with grpc_server(behaviour) as url:
            for name in ERRORS:
                status.CopyFrom(status_of(ContractError(name, "no"), ""))
                error = caught(ask, url, request_id="mine")
                assert (type(error), error.type, error.request_id) == (errors.CLASSES[name], name, "mine")

    def test_a_row_of_the_future_is_told_by_its_code(self) -> None:
        status = status_of(ContractError("overloaded", "no"), "", type="too_lazy")
        with grpc_server(abort_with(status)) as url:
            error = caught(ask, url)
        assert (type(error), error.type) == (errors.OverloadedError, "too_lazy")

    @pytest.mark.parametrize("code", ["UNIMPLEMENTED", "UNAVAILABLE", "PERMISSION_DENIED", "INTERNAL"])
    def test_a_code_without_details(self, asked: Callable[..., object], code: str) -> None:
        with grpc_server(
            abort_with(status_pb2.Status(code=grpc.StatusCode[code].value[0], message="odd"))
        ) as url:
            error = caught(asked, url)
        assert type(error) is rpc.CODE_CLASSES[code]
        assert error.message.endswith("odd")

    def test_a_message_larger_than_the_server_takes(self, asked: Callable[..., object]) -> None:
        with grpc_server(lambda *_: b"", max_receive_message_length=2) as url:
            assert type(caught(asked, url)) is errors.RequestTooLargeError

    def test_an_answer_larger_than_grpc_takes_by_default(self, asked: Callable[..., object]) -> None:
        large = explainer_pb2.DetectResponse(warnings=["x" * (5 << 20)]).SerializeToString()
        with grpc_server(lambda *_: large) as url:
            result: Any = asked(url)
        assert len(result.warnings[0]) == 5 << 20

    def test_an_answer_that_does_not_come(self, asked: Callable[..., object]) -> None:
        released = threading.Event()
        with grpc_server(lambda *_: b"x" * released.wait(20)) as url:
            error = caught(asked, url, timeout=0.3)
            released.set()
        assert type(error) is errors.DeadlineExceededError

    def test_ready_follows_the_health_service(self) -> None:
        for body, ready in ((b"\x08\x01", True), (b"\x08\x02", False), (b"", False)):
            with grpc_server(lambda *_, body=body: body) as url, Client(url) as client:  # type: ignore[misc]
                assert client.ready() is ready


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "grpc://127.0.0.1:9", "http://no-such-host.invalid"])
def test_nothing_at_the_address(asked: Callable[..., object], url: str) -> None:
    error = caught(asked, url, request_id="mine")
    assert type(error) is errors.ConnectionFailedError
    assert url in error.message
    assert error.request_id == "mine"


def test_ready_is_false_where_nothing_listens() -> None:
    for url in ("http://127.0.0.1:9", "grpc://127.0.0.1:9"):
        with Client(url) as client:
            assert client.ready() is False


def test_a_grpc_service_that_comes_back_is_found_soon() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Client(f"grpc://127.0.0.1:{port}") as client:
        for _ in range(6):
            assert client.ready(timeout=1) is False
            time.sleep(0.1)

        class Health(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails) -> Any:  # noqa: ARG002
                return grpc.unary_unary_rpc_method_handler(lambda *_: b"\x08\x01")

        pool = futures.ThreadPoolExecutor(1)
        server = grpc.server(pool, handlers=[Health()])
        assert server.add_insecure_port(f"127.0.0.1:{port}") == port
        server.start()
        try:
            deadline = time.monotonic() + 20
            while not client.ready() and time.monotonic() < deadline:
                time.sleep(0.1)
            assert client.ready()
        finally:
            server.stop(0).wait()
            pool.shutdown()
