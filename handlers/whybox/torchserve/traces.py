"""OpenTelemetry spans of a worker: off, and nothing of it imported, unless ``WHYBOX_OTLP_ENDPOINT`` is set.

A request whose gateway traces it gets a span, and below it one for each stage.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from whybox_proto.v1 import worker_pb2

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

ENDPOINT = "WHYBOX_OTLP_ENDPOINT"
SERVICE = "whybox-worker"
EXPORT_SECONDS = 5.0
NANOSECONDS = 1_000_000_000


class RequestTrace:
    """Notes what happens to one request, and makes spans of it in the end.

    Args:
        provider: where the spans go.
        request: what was asked.
    """

    def __init__(self, provider: TracerProvider, request: worker_pb2.WorkerRequest) -> None:
        self._provider = provider
        self._request = request
        self._began = time.time_ns()
        self._stages: list[tuple[str, int, int]] = []

    def stage(self, name: str, seconds: float) -> None:
        """Note a stage that has ended this moment."""
        now = time.time_ns()
        self._stages.append((name, now - round(seconds * NANOSECONDS), now))

    def finish(self, model: str, reply: worker_pb2.WorkerReply) -> None:
        """Make the spans: the request's, and one for each stage below it."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        tracer = self._provider.get_tracer("whybox")
        code = reply.error.type if reply.WhichOneof("result") == "error" else "ok"
        span = tracer.start_span(
            f"worker {self._request.WhichOneof('operation')}",
            context=TraceContextTextMapPropagator().extract({"traceparent": self._request.traceparent}),
            kind=trace.SpanKind.SERVER,
            start_time=self._began,
            attributes={"whybox.model": model, "whybox.code": code},
        )
        inside = trace.set_span_in_context(span)
        for name, began, ended in self._stages:
            tracer.start_span(name, context=inside, start_time=began).end(ended)
        if code == "internal":
            span.set_status(trace.StatusCode.ERROR, code)
        span.end()


class WorkerTracing:
    """Makes spans, or does nothing.

    Args:
        provider: where they go; None for nowhere.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider

    @classmethod
    def from_environment(cls) -> WorkerTracing:
        """Trace to the collector of the environment; without one, or without opentelemetry, do nothing."""
        endpoint = os.environ.get(ENDPOINT, "")
        if not endpoint:
            return cls()
        try:
            return cls(_provider(endpoint))
        except ModuleNotFoundError as error:
            logger.warning("there will be no traces: %s", error)
            return cls()

    def of(self, request: worker_pb2.WorkerRequest) -> RequestTrace | None:
        """Begin the trace of a request that the gateway traces."""
        if self._provider is None or not request.traceparent:
            return None
        return RequestTrace(self._provider, request)


def _provider(endpoint: str) -> TracerProvider:
    """Make spans go to an OTLP collector in the background."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces", timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
