"""Load and clients that misbehave: room, queues, slow bodies and headers, departures; on a live service."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conftest import PATIENCE_SECONDS, Live, serving
from test_gateway_backend import NAME, pack
from test_gateway_backend import wish as ask
from whybox_proto.v1 import explainer_pb2
from whybox_service.rpc.door import OPEN_STREAMS

ENVIRONMENT = {
    "WHYBOX_POLL_SECONDS": "0.5",
    "WHYBOX_MAX_WAITING": "2",
    "WHYBOX_MAX_REQUESTS": "12",
    "WHYBOX_MAX_BUFFERED_BYTES": "3000000",
    "WHYBOX_HEADER_SECONDS": "2",
    "WHYBOX_BODY_SECONDS": "2",
    "WHYBOX_IDLE_SECONDS": "2",
}
# With its one worker, and batches of one: one request that it works on, one in hand, two that wait.
TAKEN = 4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    store = tmp_path_factory.mktemp("small_store")
    pack(NAME, Path(__file__).with_name("faulty_worker.py"), store)
    with serving(store, tmp_path_factory.mktemp("small"), env=ENVIRONMENT) as running:
        yield running


def eventually(holds: Callable[[], bool]) -> None:
    patience = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < patience
        time.sleep(0.05)


def load(live: Live) -> tuple[int, int]:
    """Requests that are with the worker, and those that wait."""
    values = {"whybox_model_in_flight": 0, "whybox_model_waiting": 0}
    for line in httpx.get(f"{live.rest}/metrics", verify=False, timeout=60).text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.partition("{")[0] in values and f'model="{NAME}"' in name:
            values[name.partition("{")[0]] = int(float(value))
    return values["whybox_model_in_flight"], values["whybox_model_waiting"]


def connection(live: Live) -> socket.socket:
    parts = urlsplit(live.rest)
    assert parts.hostname
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=60)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_more_than_a_model_takes_is_refused_at_once_with_advice(small: Live, transport: str) -> None:
    with ThreadPoolExecutor(TAKEN) as pool:
        taken = [pool.submit(ask, small, "work 3", transport) for _ in range(TAKEN)]
        eventually(lambda: load(small) == (2, 2))
        refused = [ask(small, "well", transport) for _ in range(3)]
        assert not any(future.done() for future in taken), "refused long before an answer is there"
    assert {outcome.error["type"] for outcome in refused} == {"overloaded"}
    assert all(future.result().answer for future in taken)
    eventually(lambda: load(small) == (0, 0))
    assert ask(small, "well", transport).answer


def test_a_refusal_says_when_to_come_back(small: Live) -> None:
    with ThreadPoolExecutor(TAKEN) as pool:
        taken = [pool.submit(ask, small, "work 3") for _ in range(TAKEN)]
        eventually(lambda: load(small) == (2, 2))
        rest = httpx.post(f"{small.rest}/v1/models/{NAME}:detect", content=b"well", verify=False, timeout=60)
        with grpc.insecure_channel(small.target) as channel:
            method = channel.unary_unary("/whybox.v1.Explainer/Detect")
            request = explainer_pb2.DetectRequest(model=NAME, image=b"well")
            with pytest.raises(grpc.RpcError) as refused:
                method(request.SerializeToString(), timeout=60)
        assert all(future.result().answer for future in taken)
    assert rest.status_code == 429
    assert int(rest.headers["Retry-After"]) >= rest.json()["retry_after_seconds"] >= 1
    details = dict(refused.value.trailing_metadata())["grpc-status-details-bin"]  # type: ignore[attr-defined]
    assert b"google.rpc.RetryInfo" in details


def test_requests_beyond_the_service_s_limit_are_refused(small: Live) -> None:
    """Bodies that do not end hold requests in hand; probes are answered all the same."""
    held = [connection(small) for _ in range(12)]
    try:
        head = f"POST /v1/models/{NAME}:detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        for client in held:
            client.sendall(head.encode())
        eventually(lambda: ask(small, "well").error.get("type") == "overloaded")
        assert ask(small, "well", "grpc").error["type"] == "overloaded"
        assert httpx.get(f"{small.rest}/healthz", verify=False, timeout=60).status_code == 200
        assert httpx.get(f"{small.rest}/readyz", verify=False, timeout=60).status_code == 200
    finally:
        for client in held:
            client.close()
    eventually(lambda: bool(ask(small, "well").answer))


def test_bodies_share_their_memory(small: Live) -> None:
    """One body of 2 MB is read; beside another that is still in hand it is refused."""
    big = "w" * 2_000_000
    assert ask(small, big).answer
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, small, "work 3" + " " * 1_600_000)
        eventually(lambda: load(small)[0] == 1)
        assert ask(small, big).error["type"] == "overloaded"
        assert first.result().answer
    assert ask(small, big).answer


def test_a_body_that_does_not_end_is_given_up(small: Live) -> None:
    with connection(small) as client:
        client.sendall(
            f"POST /v1/models/{NAME}:detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nwe".encode()
        )
        response = http.client.HTTPResponse(client)
        response.begin()
        body = json.loads(response.read())
        assert response.status == 408
        assert body["type"] == "urn:whybox:error:request_timeout"
        assert (body["expected"], body["got"]) == ("all of it within 2 s", "2 bytes")
        assert client.recv(1) == b"", "the connection is closed"


def test_a_body_that_trickles_is_given_up(small: Live) -> None:
    with connection(small) as client:
        client.sendall(
            f"POST /v1/models/{NAME}:detect HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n".encode()
        )
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.2):
                try:
                    client.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        response = http.client.HTTPResponse(client)
        response.begin()
        stop.set()
        thread.join()
        assert response.status == 408


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost:", b"GET /heal"])
def test_a_connection_whose_headers_do_not_come_is_closed(small: Live, sent: bytes) -> None:
    with connection(small) as client:
        client.sendall(sent)
        assert client.recv(1) == b""


def test_an_idle_connection_is_closed_after_its_answer_and_not_before(small: Live) -> None:
    with connection(small) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 200
        response.read()
        assert client.recv(1) == b""


def test_long_headers_are_not_kept(small: Live) -> None:
    with connection(small) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n")
        answer = client.recv(4096)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_work_for_a_client_that_left_is_dropped(small: Live, transport: str) -> None:
    """The worker would be busy for 100 s; the client goes, and the next one is answered."""
    if transport == "rest":
        with connection(small) as client:
            client.sendall(
                f"POST /v1/models/{NAME}:detect HTTP/1.1\r\nHost: x\r\nX-Request-Timeout: 100\r\n"
                "Content-Length: 8\r\n\r\nwork 100".encode()
            )
            eventually(lambda: load(small)[0] == 1)
    else:
        with grpc.insecure_channel(small.target) as channel:
            request = explainer_pb2.DetectRequest(model=NAME, image=b"work 100")
            call = channel.unary_unary("/whybox.v1.Explainer/Detect").future(
                request.SerializeToString(), timeout=100
            )
            eventually(lambda: load(small)[0] == 1)
            call.cancel()
    left = time.monotonic()
    assert ask(small, "well", transport).answer
    eventually(lambda: load(small) == (0, 0))
    assert time.monotonic() - left < 60


def test_a_waiting_request_whose_client_left_is_never_sent(small: Live) -> None:
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(ask, small, "work 3") for _ in range(2)]
        eventually(lambda: load(small)[0] == 2)
        with connection(small) as client:
            head = f"POST /v1/models/{NAME}:detect HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n"
            client.sendall(f"{head}work 100".encode())
            eventually(lambda: load(small) == (2, 1))
        eventually(lambda: load(small)[1] == 0)
        assert all(future.result().answer for future in busy)
    assert ask(small, "well").answer


def test_a_late_worker_is_told_and_its_slot_comes_back(small: Live) -> None:
    """The request's own deadline ends it for the client; the worker hears of it at its next part."""
    late = ask(small, "work 100", **{"X-Request-Timeout": "0.5"})
    assert late.error["type"] == "deadline_exceeded"
    assert ask(small, "well").answer
    eventually(lambda: load(small) == (0, 0))


def trickled(client: socket.socket, what: bytes) -> bytes:
    """Send something again and again until the other side closes; return what came meanwhile."""
    came = b""
    client.settimeout(0.3)
    patience = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < patience:
        try:
            client.sendall(what)
            part = client.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            return came
        if not part:
            return came
        came += part
    raise AssertionError("the connection is still open")


def test_blank_lines_after_an_answer_keep_no_connection(small: Live) -> None:
    with connection(small) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert trickled(client, b"\r\n").startswith(b"HTTP/1.1 200")


def test_the_rest_of_a_body_that_was_answered_early_keeps_no_connection(small: Live) -> None:
    with connection(small) as client:
        client.sendall(
            f"POST /v1/models/{NAME}:detect HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
            "Content-Length: 1000000\r\n\r\n".encode()
        )
        assert trickled(client, b"x").startswith(b"HTTP/1.1 415")


def test_a_body_that_meets_the_deadline_first_ends_with_the_connection(small: Live) -> None:
    with connection(small) as client:
        client.sendall(
            f"POST /v1/models/{NAME}:detect HTTP/1.1\r\nHost: x\r\nX-Request-Timeout: 0.5\r\n"
            "Content-Length: 9\r\n\r\nwe".encode()
        )
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 504
        assert json.loads(response.read())["type"] == "urn:whybox:error:deadline_exceeded"
        assert client.recv(1) == b""


def test_an_answer_that_nobody_reads_is_cut_off(small: Live) -> None:
    """10 MB get 2 s and one more for each half MiB; the kernel takes a part, the rest never comes."""
    size = 10_000_000
    body = f"large {size}".encode()
    parts = urlsplit(small.rest)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((parts.hostname, parts.port))
        client.settimeout(PATIENCE_SECONDS)
        head = f"POST /v1/models/{NAME}:detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        assert client.recv(9) == b"HTTP/1.1 "
        ours = client.getsockname()[1]

        def connected() -> bool:
            """Whether the gateway, whose end is the one that listens, still has the connection."""
            return any(
                c.raddr and c.raddr.port == ours and c.pid is not None
                for c in psutil.net_connections("tcp")
                if c.laddr.port == parts.port
            )

        assert connected()
        eventually(lambda: not connected())
    assert ask(small, "well").answer


def test_open_services_have_few_places_and_short_messages(small: Live) -> None:
    """Watchers without end, and names without end, cost the others nothing."""
    request = health_pb2.HealthCheckRequest(service="")
    with grpc.insecure_channel(small.target, options=[("grpc.max_send_message_length", -1)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watchers = [stub.Watch(request, timeout=PATIENCE_SECONDS) for _ in range(OPEN_STREAMS + 8)]
        seen = []
        for watcher in watchers:
            try:
                seen.append(next(watcher).status)
            except grpc.RpcError as error:
                seen.append(error.code())  # type: ignore[attr-defined]
        assert seen.count(health_pb2.HealthCheckResponse.SERVING) == OPEN_STREAMS
        assert seen.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 8
        assert ask(small, "well", "grpc").answer
        assert stub.Check(request, timeout=60).status == health_pb2.HealthCheckResponse.SERVING
        for watcher in watchers:
            watcher.cancel()
        with pytest.raises(grpc.RpcError) as refused:
            stub.Check(health_pb2.HealthCheckRequest(service="x" * 1_000_000), timeout=60)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]

        def watched() -> bool:
            try:
                return bool(next(stub.Watch(request, timeout=60)).status)
            except grpc.RpcError:
                return False

        eventually(watched)
