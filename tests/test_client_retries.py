"""What a client does by itself: it asks again where that is safe and can help, and never beyond its time."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2, empty_pb2
from google.rpc import error_details_pb2, status_pb2

from test_client_errors import ACCEPTED, abort_with, answer, grpc_server, problem, status_of, tree, web
from whybox_client import AsyncClient, Client, errors, retrying, wire
from whybox_client.retrying import Backoff, Send, Wait
from whybox_client.transports import advice
from whybox_client.wire import Call, Flow, Operation, Reply, Streaming
from whybox_proto.errors import ERRORS, ContractError, to_problem

PROTOBUF = "application/x-protobuf"
GOOD = answer(200, PROTOBUF, ACCEPTED.SerializeToString())
NO_WAIT = Backoff(uniform=lambda _low, _high: 0.0)
# The tests' own patience; what is waited for takes a fraction of a second.
PATIENCE_S = 30.0


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def flow(operation: Operation) -> Flow[str]:
    reply = yield Call(operation, empty_pb2.Empty(), "id", None)
    return reply.request_id


def backoff(clock: Clock, share: float = 1.0) -> Backoff:
    return Backoff(uniform=lambda low, high: low + share * (high - low), clock=clock)


def persist(
    outcomes: list[errors.WhyboxError | None],
    *,
    clock: Clock,
    share: float = 1.0,
    timeout: float = 60.0,
    retries: int = 2,
    takes: float = 0.0,
    operation: Operation = wire.DETECT,
) -> tuple[list[float], list[float], BaseException | str]:
    """Play the outcomes of the attempts; return the seconds of each attempt, the waits, and the end."""
    steps = retrying.persist(flow(operation), timeout, retries, backoff(clock, share))
    sends, waits, left = [], [], list(outcomes)
    try:
        step = next(steps)
        while True:
            if isinstance(step, Wait):
                waits.append(step.seconds)
                clock.now += step.seconds
                step = steps.send(None)
                continue
            assert isinstance(step, Send)
            sends.append(step.seconds)
            clock.now += takes
            outcome = left.pop(0)
            step = steps.send(Reply(b"", "done")) if outcome is None else steps.throw(outcome)
    except StopIteration as end:
        return sends, waits, end.value
    except errors.WhyboxError as error:
        return sends, waits, error


class TestPolicy:
    @pytest.mark.parametrize("kind", tree(errors.WhyboxError)[1:])
    def test_only_what_may_pass_is_asked_again(self, kind: type[errors.WhyboxError]) -> None:
        sends, _, end = persist([kind("no"), None], clock=Clock())
        again = kind in (
            errors.OverloadedError,
            errors.UnavailableError,
            errors.RequestTimeoutError,
            errors.ConnectionFailedError,
        )
        assert len(sends) == (2 if again else 1)
        assert (end == "done") is again
        if again:
            assert kind("no").retryable

    def test_what_is_not_safe_is_asked_once(self) -> None:
        cancel = Operation("/whybox.v1.Explainer/CancelInversion", "POST", "/v1/{name}:cancel", safe=False)
        sends, waits, end = persist([errors.OverloadedError("full"), None], clock=Clock(), operation=cancel)
        assert len(sends) == 1
        assert waits == []
        assert isinstance(end, errors.OverloadedError)

    def test_what_starts_or_deletes_something_is_not_safe_by_itself(self) -> None:
        operations = {name: value for name, value in vars(wire).items() if isinstance(value, Operation)}
        assert len(operations) == 13
        unsafe = {name for name, operation in operations.items() if not operation.safe}
        assert unsafe == {"CREATE_INVERSION", "DELETE_INVERSION"}

    def test_a_stream_may_last_longer_than_its_first_reply_is_waited_for(self) -> None:
        for timeout, lasting, patience in ((10.0, 300.0, 10.0), (10.0, 4.0, 4.0)):
            clock = Clock()

            def watching(lasting: float = lasting) -> Flow[str]:
                call = Call(wire.WATCH_INVERSION, empty_pb2.Empty(), "id", None, 1000, lasting=lasting)
                return (yield call).request_id

            steps = retrying.persist(watching(), timeout, 0, backoff(clock, share=0.5))
            step, sends = next(steps), []
            with suppress(errors.OverloadedError):
                while True:
                    if isinstance(step, Send):
                        sends.append(step.seconds)
                        step = steps.throw(errors.OverloadedError("full"))
                    else:
                        clock.now += step.seconds
                        step = steps.send(None)
            assert set(sends) == {lasting}
            assert 0 < clock.now - 100 < patience

    def test_where_a_stream_goes_on_that_broke(self) -> None:
        def call(name: str) -> Call:
            return Call(wire.WATCH_INVERSION, empty_pb2.Empty(), name, None)

        def resume(last: str, error: errors.WhyboxError) -> Call:
            if isinstance(error, errors.NotFoundError):
                raise error
            return call(f"after {last}")

        gone = errors.ConnectionFailedError("gone")
        streaming: Streaming[str] = Streaming(call("first"), lambda reply: reply.request_id, bool, resume)
        resuming = retrying.Resuming(streaming, backoff(Clock()))
        assert resuming.call.request_id == "first"
        with pytest.raises(errors.ConnectionFailedError):
            retrying.Resuming(streaming, backoff(Clock())).seconds(gone)  # nothing has come yet
        # It waits longer while nothing new comes between the breaks.
        waits = [resuming.seconds(gone, last) for last in ("a", "a", None, "a", "b", "c")]
        assert waits == [0.5, 1, 2, 4, 0.5, 0.5]
        assert resuming.call.request_id == "after c"
        with pytest.raises(errors.NotFoundError):
            resuming.seconds(errors.NotFoundError("deleted"), "c")
        plain: Streaming[str] = Streaming(call("first"), lambda reply: reply.request_id, bool)
        with pytest.raises(errors.ConnectionFailedError):
            retrying.Resuming(plain, backoff(Clock())).seconds(gone, "a")

    def test_the_waits_double_up_to_a_limit(self) -> None:
        full = [errors.OverloadedError("full") for _ in range(8)]
        sends, waits, end = persist([*full[:7], None], clock=Clock(), retries=7, timeout=600)
        assert waits == [0.5, 1, 2, 4, 8, 8, 8]
        assert end == "done"
        assert sends[0] == 600
        assert sends[3] == pytest.approx(600 - 3.5)

    def test_the_jitter_is_full(self) -> None:
        drawn: list[tuple[float, float]] = []

        def uniform(low: float, high: float) -> float:
            drawn.append((low, high))
            return low

        assert Backoff(uniform).seconds(errors.OverloadedError("full"), 2) == 0
        assert Backoff(uniform).seconds(errors.OverloadedError("full", retry_after=3), 0) == 3
        assert Backoff(uniform).seconds(errors.OverloadedError("full"), 10**6) == 0
        assert drawn == [(0, 2), (0, 0.5), (0, 8)]

    def test_as_often_as_was_said_and_no_more(self) -> None:
        last = errors.UnavailableError("third")
        gone = [errors.UnavailableError("first"), errors.UnavailableError("second"), last]
        sends, _, end = persist(gone, clock=Clock())
        assert len(sends) == 3
        assert end is last
        sends, _, end = persist(gone, clock=Clock(), retries=0)
        assert (len(sends), end) == (1, gone[0])

    def test_when_the_service_says_when_it_is_waited_for(self) -> None:
        sends, waits, end = persist(
            [errors.OverloadedError("full", retry_after=7), None], clock=Clock(), share=0.5
        )
        assert waits == [7.25]
        assert sends == [60, pytest.approx(52.75)]
        assert end == "done"

    @pytest.mark.parametrize(("after", "asks"), [(5.0, 1), (60.0, 1), (3.4, 2)])
    def test_a_wait_beyond_the_time_is_not_begun(self, after: float, asks: int) -> None:
        clock = Clock()
        sends, waits, _ = persist(
            [errors.OverloadedError("full", retry_after=after), None],
            clock=clock,
            timeout=5,
            takes=1,
        )
        assert len(sends) == asks
        assert len(waits) == asks - 1
        assert clock.now < 100 + 5 + 1

    def test_each_attempt_has_what_is_left(self) -> None:
        gone = [errors.ConnectionFailedError("gone") for _ in range(3)]
        sends, waits, _ = persist(gone, clock=Clock(), timeout=30, takes=4)
        assert sends == [30, pytest.approx(30 - 4 - 0.5), pytest.approx(30 - 8 - 1.5)]
        assert waits == [0.5, 1]

    def test_a_call_may_say_its_own(self) -> None:
        said = Call(wire.DETECT, empty_pb2.Empty(), "id", timeout=1, retries=0)

        def flow() -> Flow[str]:
            return (yield said).request_id

        steps = retrying.persist(flow(), 60, 5, backoff(Clock()))
        assert next(steps) == Send(said, 1)
        with pytest.raises(errors.ConnectionFailedError):
            steps.throw(errors.ConnectionFailedError("gone"))

    def test_pages_share_the_time(self) -> None:
        clock = Clock()

        def pages() -> Flow[int]:
            for _ in range(3):
                yield Call(wire.LIST_MODELS, empty_pb2.Empty(), "id", None)
            return 3

        steps = retrying.persist(pages(), 10, 2, backoff(clock))
        step: Send | Wait | None = next(steps)
        given = []
        while isinstance(step, Send):
            given.append(step.seconds)
            clock.now += 6
            with suppress(StopIteration):
                step = None
                step = steps.send(Reply(b"", "id"))
        assert given == [10, pytest.approx(4), 0.001]

    def test_a_number_that_cannot_be_is_refused(self) -> None:
        for wrong in ({"timeout": 0}, {"timeout": float("nan")}, {"timeout": float("inf")}, {"retries": -1}):
            with pytest.raises(ValueError, match="is a number"):
                Client(**wrong)
        with Client() as client:
            for wrong in ({"timeout": -1}, {"retries": -1}):
                with pytest.raises(ValueError, match="is a number"):
                    client.detect("m", b"x", **wrong)  # type: ignore[arg-type]


class TestAdvice:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            (None, None),
            ("2", 2),
            ("0.5", 0.5),
            ("0", None),
            ("-1", None),
            ("inf", None),
            ("nan", None),
            ("soon", None),
            ("", None),
            ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ],
    )
    def test_headers(self, value: str | None, seconds: float | None) -> None:
        assert advice.of_header(value) == seconds

    def test_a_date_to_come(self) -> None:
        when = datetime.now(UTC) + timedelta(seconds=90)
        assert advice.of_header(format_datetime(when, usegmt=True)) == pytest.approx(90, abs=5)

    @pytest.mark.parametrize("value", [None, True, "3", -2, 0, float("inf"), float("nan"), [1]])
    def test_members_that_say_nothing(self, value: object) -> None:
        assert advice.of_seconds(value) is None


def caught(url: str, **settings: Any) -> errors.WhyboxError:
    with Client(url, timeout=10, retries=0) as client, pytest.raises(errors.WhyboxError) as info:
        client.detect("signs", b"image", **settings)
    return info.value


class TestWhatTheServiceSays:
    """`retry_after`, on both transports."""

    FULL = ContractError("overloaded", "full", retry_after=2.5)

    def test_of_a_problem_and_its_header(self) -> None:
        for headers, told, seconds in (
            ({}, {"retry_after_seconds": 2.5}, 2.5),
            ({"Retry-After": "3"}, {"retry_after_seconds": 2.5}, 2.5),
            ({"Retry-After": "3"}, {}, 3),
            ({}, {}, None),
        ):
            body = json.dumps({**to_problem(ContractError("overloaded", "full")), **told}).encode()
            with web(answer(429, "application/problem+json", body, **headers)) as server:
                error = caught(server.url)
            assert (type(error), error.retry_after) == (errors.OverloadedError, seconds)

    def test_of_a_page(self) -> None:
        with web(answer(503, "text/html", b"<h1>later</h1>", **{"Retry-After": "4"})) as server:
            assert caught(server.url).retry_after == 4

    def test_of_the_service_over_grpc(self) -> None:
        status = status_of(self.FULL, "")
        with grpc_server(abort_with(status)) as url:
            assert caught(url).retry_after == 2.5

    @pytest.mark.parametrize("ours", [True, False])
    def test_of_grpcs_own_advice(self, ours: bool) -> None:
        status = status_of(ContractError("overloaded", "full"), "") if ours else status_pb2.Status(code=8)
        status.details.add().Pack(
            error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
        )
        with grpc_server(abort_with(status)) as url:
            error = caught(url)
        assert (type(error), error.retry_after) == (errors.OverloadedError, 1.5)


@pytest.mark.parametrize("kind", tree(errors.WhyboxError))
def test_errors_survive_copying_and_pickling(kind: type[errors.WhyboxError]) -> None:
    error = kind("bad", field="seed", expected="e", got="-1", request_id="7", retry_after=1.5)
    error.add_note("image 3 of the batch")
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(same) is kind
        assert vars(same) == vars(error)
        assert str(same) == str(error)


def in_turn(*answers: Callable[[Any], None]) -> tuple[Callable[[Any], None], list[dict[str, str]]]:
    """Answer one after the other, the last one for ever; and keep the headers of the requests."""
    seen: list[dict[str, str]] = []

    def send(handler: Any) -> None:
        seen.append(dict(handler.headers))
        answers[min(len(seen), len(answers)) - 1](handler)

    return send, seen


def hang_up(handler: Any) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def ask(url: str, **settings: Any) -> Any:
    with Client(url, timeout=20, retries=2) as client:
        client._backoff = NO_WAIT
        return client.detect("signs", b"image", **settings)


def ask_async(url: str, **settings: Any) -> Any:
    async def go() -> object:
        async with AsyncClient(url, timeout=20, retries=2) as client:
            client._backoff = NO_WAIT
            return await client.detect("signs", b"image", **settings)

    return asyncio.run(go())


@pytest.fixture(params=[ask, ask_async], ids=["sync", "async"])
def asked(request: pytest.FixtureRequest) -> Callable[..., Any]:
    kind: Callable[..., Any] = request.param
    return kind


class TestAgain:
    """Against real servers that first refuse."""

    @pytest.mark.parametrize(
        "refusal",
        [
            problem("urn:whybox:error:overloaded", 429, retry_after_seconds=0.05),
            problem("urn:whybox:error:backend_unavailable", 503),
            answer(502, "text/html", b"<h1>nginx</h1>"),
            hang_up,
        ],
    )
    def test_over_rest(self, asked: Callable[..., Any], refusal: Callable[[Any], None]) -> None:
        send, seen = in_turn(refusal, refusal, GOOD)
        with web(send) as server:
            assert asked(server.url, request_id="mine").model == "signs"
        assert len(seen) == 3
        assert {headers["X-Request-Id"] for headers in seen} == {"mine"}
        told = [float(headers["X-Request-Timeout"]) for headers in seen]
        assert told == sorted(told, reverse=True)
        assert told[0] == 20
        assert told[-1] < 20 or refusal is not hang_up

    def test_over_grpc(self, asked: Callable[..., Any]) -> None:
        seen: list[tuple[str, float]] = []

        def behaviour(body: bytes, context: grpc.ServicerContext) -> bytes:
            seen.append((dict(context.invocation_metadata())["x-request-id"], context.time_remaining()))
            if len(seen) < 3:
                refusal = ContractError("overloaded", "full", retry_after=1.2)  # gRPC rounds deadlines up
                return abort_with(status_of(refusal, ""))(body, context)
            return ACCEPTED.SerializeToString()

        with grpc_server(behaviour) as url:
            assert asked(url, request_id="mine").model == "signs"
        assert [request_id for request_id, _ in seen] == ["mine"] * 3
        assert seen[0][1] > seen[1][1] > seen[2][1]

    def test_the_last_error_is_told(self, asked: Callable[..., Any]) -> None:
        send, seen = in_turn(
            answer(502, "text/html", b""), problem("urn:whybox:error:overloaded", 429, detail="full")
        )
        with web(send) as server, pytest.raises(errors.OverloadedError, match="full"):
            asked(server.url)
        assert len(seen) == 3

    @pytest.mark.parametrize(
        "name", sorted(set(ERRORS) - {"overloaded", "backend_unavailable", "request_timeout"})
    )
    def test_what_cannot_help_is_not_tried(self, name: str) -> None:
        send, seen = in_turn(problem(f"urn:whybox:error:{name}", ERRORS[name].http_status))
        with web(send) as server, pytest.raises(errors.CLASSES[name]):
            ask(server.url)
        assert len(seen) == 1

    def test_a_deadline_that_passed_is_not_tried_again(self, asked: Callable[..., Any]) -> None:
        released = threading.Event()
        send, seen = in_turn(lambda _: released.wait(PATIENCE_S))
        with web(send) as server:
            with pytest.raises(errors.DeadlineExceededError):
                asked(server.url, timeout=0.2)
            released.set()
        assert len(seen) == 1

    def test_advice_beyond_the_time_is_not_followed(self, asked: Callable[..., Any]) -> None:
        send, seen = in_turn(problem("urn:whybox:error:overloaded", 429, retry_after_seconds=3600), GOOD)
        with web(send) as server, pytest.raises(errors.OverloadedError) as info:
            asked(server.url)
        assert info.value.retry_after == 3600
        assert len(seen) == 1

    def test_ready_is_asked_once(self) -> None:
        send, seen = in_turn(answer(503, "application/json", b"{}"))
        with web(send) as server, Client(server.url) as client:
            assert client.ready() is False
        assert len(seen) == 1

    def test_a_page_that_is_not_there_yet(self) -> None:
        """A server that begins to listen between two attempts is found."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            with Client(f"http://127.0.0.1:{port}", retries=1, timeout=PATIENCE_S) as client:
                began = threading.Event()
                listening = threading.Event()

                def uniform(_low: float, _high: float) -> float:
                    began.set()
                    assert listening.wait(PATIENCE_S)
                    return 0.0

                client._backoff = Backoff(uniform=uniform)
                answers: list[Any] = []
                thread = threading.Thread(target=lambda: answers.append(client.detect("signs", b"x")))
                thread.start()
                assert began.wait(PATIENCE_S)
                taken.listen()
                listening.set()
                connection, _ = taken.accept()
                with connection:
                    connection.recv(65536)
                    body = ACCEPTED.SerializeToString()
                    head = (
                        f"HTTP/1.1 200 OK\r\nContent-Type: {PROTOBUF}\r\nContent-Length: {len(body)}\r\n\r\n"
                    )
                    connection.sendall(head.encode() + body)
                    thread.join(PATIENCE_S)
                assert answers[0].model == "signs"


@contextmanager
def raw(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[tuple[str, list[socket.socket]]]:
    """A TCP server that does as it is told with each connection, until the block ends."""
    stop = threading.Event()
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client hung up
            serve(connection, stop)

    def accept(listener: socket.socket) -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threads.append(threading.Thread(target=one, args=(connection,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept, args=(listener,))
        acceptor.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join(PATIENCE_S)
            for thread in threads:
                thread.join(PATIENCE_S)


def trickle(text: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Send a byte every 50 ms, so that no single read is ever late."""

    def serve(connection: socket.socket, stop: threading.Event) -> None:
        connection.recv(65536)
        for byte in text:
            connection.sendall(bytes([byte]))
            if stop.wait(0.05):
                return

    return serve


HEAD = f"HTTP/1.1 200 OK\r\nContent-Type: {PROTOBUF}\r\nContent-Length: 100000\r\n\r\n".encode()


class TestTime:
    @pytest.mark.parametrize(
        "text", [HEAD + b"x" * 100_000, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 50_000], ids=["body", "head"]
    )
    def test_an_answer_that_trickles_in_ends_with_the_time(
        self, asked: Callable[..., Any], text: bytes
    ) -> None:
        with raw(trickle(text)) as (url, _):
            start = time.monotonic()
            with pytest.raises(errors.DeadlineExceededError, match=r"no whole answer within 0\.4 s"):
                asked(url, timeout=0.4)
            assert time.monotonic() - start < 10

    def test_a_time_too_short_to_connect_in_is_a_deadline_error(self, asked: Callable[..., Any]) -> None:
        released = threading.Event()
        with web(lambda _: released.wait(PATIENCE_S)) as server:
            with pytest.raises(errors.DeadlineExceededError):
                asked(server.url, timeout=0.0001)
            released.set()

    def test_a_body_that_nobody_reads_ends_with_the_time(self, asked: Callable[..., Any]) -> None:
        with raw(lambda connection, stop: stop.wait(PATIENCE_S) and connection.close()) as (url, _):
            start = time.monotonic()
            with (
                Client(url) as client,
                pytest.raises(errors.DeadlineExceededError),
            ):
                client.detect("signs", b"x" * (64 << 20), timeout=0.4)
            with pytest.raises(errors.DeadlineExceededError):
                asked(url, timeout=0.4)
            assert time.monotonic() - start < 15

    def test_attempts_and_waits_share_the_time(self, asked: Callable[..., Any]) -> None:
        """Each answer comes late but in time; together they would take far longer."""

        def late(handler: Any) -> None:
            time.sleep(0.3)
            problem("urn:whybox:error:overloaded", 429, retry_after_seconds=0.3)(handler)

        send, seen = in_turn(late)
        with web(send) as server, pytest.raises(errors.WhyboxError):
            asked(server.url, timeout=1, retries=1000)
        assert len(seen) <= 3


class TestConnections:
    def test_one_connection_carries_many_calls(self, asked: Callable[..., Any]) -> None:
        """Counted where they arrive; calls at one time have one each."""
        body = ACCEPTED.SerializeToString()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {PROTOBUF}\r\nContent-Length: {len(body)}\r\n\r\n"

        def serve(connection: socket.socket, _: threading.Event) -> None:
            with connection.makefile("rb") as lines:
                while lines.readline():
                    length = 0
                    while (line := lines.readline().strip()) != b"":
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.partition(b":")[2])
                    lines.read(length)
                    connection.sendall(head.encode() + body)

        async def ask_ten(url: str) -> None:
            async with AsyncClient(url) as client:
                for _ in range(10):
                    await client.detect("signs", b"image")

        with raw(serve) as (url, connections):
            if asked is ask:
                with Client(url) as client:
                    for _ in range(10):
                        client.detect("signs", b"image")
            else:
                asyncio.run(ask_ten(url))
            assert len(connections) == 1

    def test_a_connection_that_the_server_closed_meanwhile_is_made_anew(
        self, asked: Callable[..., Any]
    ) -> None:
        send, seen = in_turn(GOOD, hang_up, GOOD)
        with web(send) as server:
            assert [asked(server.url).model for _ in range(2)] == ["signs"] * 2
        assert len(seen) == 3

    def test_an_awaited_call_that_is_cancelled_leaves_nothing_open(self) -> None:
        gone = threading.Event()

        def serve(connection: socket.socket, _: threading.Event) -> None:
            while connection.recv(65536):
                pass
            gone.set()

        async def go(url: str) -> None:
            async with AsyncClient(url) as client:
                task = asyncio.create_task(client.detect("signs", b"image"))
                await asyncio.sleep(0.3)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await asyncio.to_thread(gone.wait, PATIENCE_S), "the connection is still open"
                assert asyncio.all_tasks() == {asyncio.current_task()}

        with raw(serve) as (url, _):
            asyncio.run(go(url))

    @pytest.mark.parametrize("transport", ["rest", "grpc"])
    def test_ctrl_c_leaves_nothing_open(self, transport: str) -> None:
        """As in a terminal: SIGINT to a process that waits; its client goes on to be of use."""
        gone = threading.Event()
        came = threading.Event()

        def serve(connection: socket.socket, _: threading.Event) -> None:
            while connection.recv(65536):
                came.set()
            gone.set()

        def behaviour(_: bytes, context: grpc.ServicerContext) -> bytes:
            context.add_callback(gone.set)
            came.set()
            gone.wait(PATIENCE_S)
            return b""

        code = (
            "import sys, whybox_client\n"
            "client = whybox_client.Client(sys.argv[1], timeout=60)\n"
            "try:\n"
            "    client.detect('signs', b'image')\n"
            "except KeyboardInterrupt:\n"
            "    print('interrupted', flush=True)\n"
            "    sys.stdin.read()\n"
            "client.close()\n"
        )
        server = raw(serve) if transport == "rest" else grpc_server(behaviour)
        with server as at:
            url = at[0] if isinstance(at, tuple) else at
            process = subprocess.Popen(
                [sys.executable, "-c", code, url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                assert came.wait(PATIENCE_S)
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
                assert gone.wait(PATIENCE_S), "the call goes on"
                out, err = process.communicate("", timeout=PATIENCE_S)
            finally:
                process.kill()
                process.communicate()
        assert (out, err, process.returncode) == ("interrupted\n", "", 0)

    @pytest.mark.parametrize("transport", ["rest", "grpc"])
    def test_closing_ends_the_calls_of_other_threads(self, transport: str) -> None:
        came, released = threading.Event(), threading.Event()

        def behaviour(*_: object) -> bytes:
            came.set()
            released.wait(PATIENCE_S)
            return b""

        server = web(behaviour) if transport == "rest" else grpc_server(behaviour)
        with server as at, ThreadPoolExecutor(1) as pool:
            client = Client(at if isinstance(at, str) else at.url, timeout=60)
            call = pool.submit(client.detect, "signs", b"image")
            try:
                assert came.wait(PATIENCE_S)
                client.close()
                with pytest.raises(RuntimeError, match="closed during the call"):
                    call.result(PATIENCE_S)
                with pytest.raises(RuntimeError, match="the client is closed"):
                    client.detect("signs", b"image")
                client.close()
            finally:
                released.set()

    @pytest.mark.parametrize("url", ["http://localhost:9", "http://127.0.0.1:9", "grpc://127.0.0.1:9"])
    def test_a_client_that_nobody_closed_is_no_trouble_at_the_end(self, url: str) -> None:
        code = (
            "import logging, sys, whybox_client\n"
            "logging.getLogger('asyncio').setLevel('ERROR')\n"  # slow steps are warnings
            "client = whybox_client.Client(sys.argv[1])\n"
            "assert client.ready() is False\n"
        )
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-c", code, url],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_client_that_nobody_holds_ends_its_thread(self) -> None:
        before = set(threading.enumerate())
        client = Client("http://127.0.0.1:9")
        client.ready()
        (own,) = set(threading.enumerate()) - before
        del client
        gc.collect()
        own.join(PATIENCE_S)
        assert not own.is_alive()

    def test_a_forked_child_has_connections_of_its_own(self) -> None:
        """In a process of its own: newer Pythons warn of every fork beside threads."""
        code = (
            "import os, sys, whybox_client\n"
            "client = whybox_client.Client(sys.argv[1], timeout=20)\n"
            "ask = lambda: client.detect('signs', b'image').model\n"
            "ask()\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    os._exit(0 if ask() == 'signs' else 2)\n"
            "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
            "print(ask())\n"
        )
        with web(GOOD) as server:
            done = subprocess.run(
                [sys.executable, "-c", code, server.url],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
        assert (done.stdout, done.returncode) == ("signs\n", 0), done.stderr
