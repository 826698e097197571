"""OpenTelemetry: one trace from the client through gateway and worker, received by a real OTLP endpoint."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from shutil import copy

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1 import trace_pb2

from builders import write_recipe
from conftest import PATIENCE_SECONDS, Live, serving
from gateway_calls import b64, over_grpc, over_rest
from whybox.engine import Engine
from whybox.recipe import read_recipe
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

STAGES = ["decode", "preprocess", "forward", "postprocess", "explain", "encode"]
# Clocks of two processes, and of two kinds.
TOLERANCE_NANOSECONDS = 5_000_000


@dataclass(frozen=True)
class Span:
    """A span, and the service that made it."""

    service: str
    span: trace_pb2.Span

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def attributes(self) -> dict[str, str]:
        return {item.key: item.value.string_value for item in self.span.attributes}


@dataclass
class Collector:
    """What an OTLP endpoint got."""

    url: str
    spans: list[Span] = field(default_factory=list)

    def of(self, trace_id: str) -> list[Span]:
        """The spans of a trace, by when they began."""
        mine = [span for span in list(self.spans) if span.span.trace_id.hex() == trace_id]
        return sorted(mine, key=lambda span: span.span.start_time_unix_nano)

    def wait_for(self, trace_id: str, enough: Callable[[list[Span]], bool]) -> list[Span]:
        """Wait until enough spans of a trace are there."""
        patience = time.monotonic() + PATIENCE_SECONDS
        while not enough(self.of(trace_id)):
            assert time.monotonic() < patience, [span.name for span in self.of(trace_id)]
            time.sleep(0.05)
        return self.of(trace_id)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """An OTLP endpoint over HTTP on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {item.key: item.value.string_value for item in resource.resource.attributes}
                for scope in resource.scope_spans:
                    collected.spans.extend(Span(names["service.name"], span) for span in scope.spans)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Be silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collected = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield collected
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traced")


@pytest.fixture(scope="module")
def traced(archives: Path, collector: Collector, scratch: Path) -> Iterator[Live]:
    """The service on one model, with traces and a log in JSON."""
    store = scratch / "store"
    store.mkdir()
    copy(min(archives.glob("retinanet*.mar")), store)
    environment = {
        "WHYBOX_OTLP_ENDPOINT": collector.url,
        "WHYBOX_LOG_FORMAT": "json",
        "WHYBOX_LOG_LEVEL": "info",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with serving(store, scratch, env=environment) as running:
        yield running


def parent(sampled: bool = True) -> tuple[str, str, str]:
    """A traceparent as a client sends it, its trace id and its span id."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}", trace_id, span_id


def ask(live: Live, transport: str, traceparent: str, rpc: str = "Explain", **more: object) -> str:
    """Ask over a transport with a traceparent; return the id of the request."""
    request = {"model": live.model, **more}
    if transport == "rest":
        return over_rest(live.rest, rpc, request, traceparent=traceparent).request_id
    return over_grpc(live.target, rpc, request, metadata=(("traceparent", traceparent),)).request_id


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_one_trace_through_gateway_and_worker(
    traced: Live, collector: Collector, scratch: Path, picture: bytes, transport: str
) -> None:
    traceparent, trace_id, span_id = parent()
    request_id = ask(
        traced,
        transport,
        traceparent,
        image=b64(picture),
        select={"score_threshold": 0, "max_detections": 2},
    )
    spans = collector.wait_for(trace_id, lambda spans: len(spans) >= 3 + len(STAGES))
    by_name = {(span.service, span.name): span for span in spans}
    server = by_name["whybox-gateway", "explain"]
    call = by_name["whybox-gateway", "torchserve explain"]
    worker = by_name["whybox-worker", "worker explain"]
    kinds = trace_pb2.Span.SpanKind
    assert [span.span.kind for span in (server, call, worker)] == [
        kinds.SPAN_KIND_SERVER,
        kinds.SPAN_KIND_CLIENT,
        kinds.SPAN_KIND_SERVER,
    ]
    assert server.span.parent_span_id.hex() == span_id
    assert call.span.parent_span_id == server.span.span_id
    assert worker.span.parent_span_id == call.span.span_id
    stages = [span for span in spans if span.span.parent_span_id == worker.span.span_id]
    assert [span.name for span in stages] == STAGES
    assert len(spans) == 3 + len(STAGES)
    for inner, outer in [(call, server), (worker, call), *((stage, worker) for stage in stages)]:
        assert inner.span.start_time_unix_nano >= outer.span.start_time_unix_nano - TOLERANCE_NANOSECONDS
        assert inner.span.end_time_unix_nano <= outer.span.end_time_unix_nano + TOLERANCE_NANOSECONDS
    for before, after in pairwise(stages):
        assert before.span.end_time_unix_nano <= after.span.start_time_unix_nano + TOLERANCE_NANOSECONDS
    expected = {"whybox.transport": transport, "whybox.model": traced.model, "whybox.code": "ok"}
    assert server.attributes.items() >= expected.items()

    lines = [json.loads(line) for line in (scratch / "serve.log").read_text().splitlines() if line[0] == "{"]
    (line,) = [line for line in lines if line.get("request_id") == request_id]
    assert line["trace_id"] == trace_id
    assert line["logger"] == "whybox_service.access"


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_errors_are_told(traced: Live, collector: Collector, transport: str) -> None:
    traceparent, trace_id, _ = parent()
    ask(traced, transport, traceparent, "Detect", image=b64(b"no picture"))
    spans = collector.wait_for(trace_id, lambda spans: len(spans) == 3)
    assert {span.name: span.attributes.get("whybox.code") for span in spans} == {
        "detect": "invalid_image",
        "torchserve detect": "invalid_image",
        "worker detect": "invalid_image",
    }
    # The client's own fault is no failure of ours.
    assert {span.span.status.code for span in spans} == {trace_pb2.Status.STATUS_CODE_UNSET}


def test_who_is_not_sampled_leaves_nothing(traced: Live, collector: Collector, picture: bytes) -> None:
    silent, silent_id, _ = parent(sampled=False)
    loud, loud_id, _ = parent()
    for traceparent in (silent, loud):
        ask(traced, "rest", traceparent, "Detect", image=b64(picture))
    collector.wait_for(loud_id, lambda spans: any(span.service == "whybox-worker" for span in spans))
    assert collector.of(silent_id) == []


def test_a_traceparent_that_is_none_begins_a_trace(traced: Live, collector: Collector, scratch: Path) -> None:
    request_id = ask(traced, "rest", "00-what-ever-01", "GetModel")
    lines = [json.loads(line) for line in (scratch / "serve.log").read_text().splitlines() if line[0] == "{"]
    (line,) = [line for line in lines if line.get("request_id") == request_id]
    (span,) = collector.wait_for(line["trace_id"], bool)
    assert (span.name, span.span.parent_span_id) == ("get_model", b"")


def test_probes_leave_nothing(traced: Live, collector: Collector) -> None:
    traceparent, trace_id, _ = parent()
    for path in ("/healthz", "/readyz", "/metrics"):
        httpx.get(traced.rest + path, headers={"traceparent": traceparent}, timeout=60)
    loud, loud_id, _ = parent()
    ask(traced, "rest", loud, "GetModel")
    collector.wait_for(loud_id, bool)
    assert collector.of(trace_id) == []


def test_the_workers_log_is_json(traced: Live) -> None:
    for name in ("torchserve.log", "workers.log"):
        lines = [json.loads(line) for line in (traced.logs / name).read_text().splitlines()]
        assert lines
        assert all({"time", "level", "logger", "thread", "message"} <= line.keys() for line in lines)
    assert any("is loaded on cpu" in line["message"] for line in lines)


def test_each_request_of_a_batch_has_its_stages(tmp_path: Path, picture: bytes) -> None:
    recipe = read_recipe(write_recipe(tmp_path, "retinanet"))
    engine = Engine.load(recipe, tmp_path / str(recipe.weights))
    select = types_pb2.Select(score_threshold=0, max_detections=1)
    detect = explainer_pb2.DetectRequest(image=picture, select=select)
    explain = explainer_pb2.ExplainRequest(image=picture, select=select)
    seen: dict[int, list[tuple[str, float]]] = {0: [], 1: [], 2: [], 3: []}
    replies = engine.answer(
        [
            worker_pb2.WorkerRequest(detect=detect),
            worker_pb2.WorkerRequest(describe=worker_pb2.DescribeRequest()),
            worker_pb2.WorkerRequest(detect=explainer_pb2.DetectRequest(image=b"no picture")),
            worker_pb2.WorkerRequest(explain=explain),
        ],
        lambda position, stage, seconds: seen[position].append((stage, seconds)),
    )
    for position, stages in ((0, replies[0].detect.stages), (3, replies[3].explain.stages)):
        assert seen[position] == [(stage.name, stage.seconds) for stage in stages]
    assert [name for name, _ in seen[0]] == STAGES[:4]
    assert [name for name, _ in seen[3]] == STAGES
    assert (seen[1], seen[2]) == ([], [])


OFF = """
import os, sys
os.environ.pop("WHYBOX_OTLP_ENDPOINT", None)
import whybox_service.app
from whybox.torchserve.traces import WorkerTracing
from whybox_proto.v1 import worker_pb2
from whybox_service.settings import Settings
from whybox_service.traces import Tracing
tracing = Tracing.from_settings(Settings())
with tracing.request("rest", "detect", {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}) as span:
    assert span.trace_id == ""
    with tracing.call("detect", "m") as traceparent:
        assert traceparent == ""
assert WorkerTracing.from_environment().of(worker_pb2.WorkerRequest(traceparent="00-")) is None
# FastAPI imports the bare API.
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""

WITHOUT = """
import os, sys
sys.modules["opentelemetry"] = None
os.environ["WHYBOX_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
from whybox.torchserve.traces import WorkerTracing
from whybox_proto.v1 import worker_pb2
from whybox_service.settings import Settings
from whybox_service.traces import Tracing
with Tracing.from_settings(Settings()).call("detect", "m") as traceparent:
    assert traceparent == ""
assert WorkerTracing.from_environment().of(worker_pb2.WorkerRequest(traceparent="00-")) is None
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_nothing_of_it_is_imported_unless_it_is_on() -> None:
    assert run(OFF).stdout.strip() == "[]"


def test_without_the_package_it_says_so_and_goes_on() -> None:
    told = run(WITHOUT).stderr
    assert told.count("there will be no traces") == 2
    assert "whybox[otel]" in told
