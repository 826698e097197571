"""OpenTelemetry traces of requests: off, and nothing of it imported, unless `Settings.otlp_endpoint` is set.

A request's span continues the client's `traceparent`; the span of a call of TorchServe hands its own on to
the worker. What OpenTelemetry's own environment variables say, such as sampling, holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from whybox_proto.errors import ERRORS, ContractError, shorten
from whybox_service.metrics import CANCELLED, OK, PROBES, Observation
from whybox_service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

SERVICE = "whybox-gateway"
TRACEPARENT = "traceparent"
# An exit waits no longer for a collector that does not answer.
EXPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Span:
    """What the rest of the gateway sees of a request's span.

    Attributes:
        trace_id: 32 hexadecimal digits; empty where the request is not traced.
    """

    trace_id: str = ""


_OFF = Span()


class Tracing:
    """Makes spans, or does nothing.

    Args:
        provider: where the spans go; None for nowhere.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider

    @classmethod
    def from_settings(cls, settings: Settings) -> Tracing:
        """Trace to the settings' collector; without one, or without opentelemetry, do nothing."""
        if not settings.otlp_endpoint:
            return cls()
        try:
            return cls(_provider(settings.otlp_endpoint))
        except ModuleNotFoundError as error:
            log.warning("there will be no traces: %s; pip install 'whybox[otel]'", error)
            return cls()

    def request(
        self,
        transport: str,
        operation: str,
        carrier: Mapping[str, str],
        observation: Observation | None = None,
    ) -> AbstractContextManager[Span]:
        """Make the span of one request; probes have none.

        Args:
            transport: ``rest`` or ``grpc``.
            operation: such as ``detect``.
            carrier: the request's headers or metadata, by name in lower case.
            observation: gets the id of the trace, and gives the span the model and the key.
        """
        if self._provider is None or operation in PROBES:
            return nullcontext(_OFF)
        return self._request(
            self._provider, operation, carrier, observation or Observation(transport, operation)
        )

    def call(self, name: str, model: str) -> AbstractContextManager[str]:
        """Make the span of one call of TorchServe; gives the `traceparent` to send, empty for none."""
        if self._provider is None:
            return nullcontext("")
        return self._call(self._provider, name, model)

    @contextmanager
    def _request(
        self,
        provider: TracerProvider,
        operation: str,
        carrier: Mapping[str, str],
        observation: Observation,
    ) -> Iterator[Span]:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(carrier)
        with provider.get_tracer("whybox").start_as_current_span(
            operation,
            context=parent,
            kind=trace.SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            made = Span(trace.format_trace_id(span.get_span_context().trace_id))
            observation.trace_id = made.trace_id
            code = "internal"
            try:
                yield made
                code = observation.code
            except ContractError as error:
                code = error.type
                raise
            except asyncio.CancelledError:
                code = CANCELLED
                raise
            except BaseException:
                code = observation.code if observation.code != OK else code
                raise
            finally:
                attributes = {
                    "transport": observation.transport,
                    "operation": operation,
                    "model": shorten(observation.model),
                    "key": observation.key,
                    "code": code,
                }
                span.set_attributes({f"whybox.{name}": value for name, value in attributes.items() if value})
                if code in ERRORS and ERRORS[code].http_status >= 500:
                    span.set_status(trace.StatusCode.ERROR, code)

    @contextmanager
    def _call(self, provider: TracerProvider, name: str, model: str) -> Iterator[str]:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        with provider.get_tracer("whybox").start_as_current_span(
            f"torchserve {name}",
            kind=trace.SpanKind.CLIENT,
            attributes={"whybox.model": model},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            carrier: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(carrier)
            try:
                yield carrier.get(TRACEPARENT, "")
            except ContractError as error:
                span.set_attribute("whybox.code", error.type)
                if error.row.http_status >= 500:
                    span.set_status(trace.StatusCode.ERROR, error.type)
                raise


def _provider(endpoint: str) -> TracerProvider:
    """Make spans go to an OTLP collector in the background; what is left is sent when the process ends."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": SERVICE, "service.version": version("whybox")})
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces", timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
