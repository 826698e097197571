"""What Prometheus sees of the gateway. Every label takes few values, whatever clients send."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from whybox_proto.errors import ContractError
from whybox_proto.v1 import types_pb2

# From 1 ms to minutes, in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
OK = "ok"
UNKNOWN = "unknown"


class Observation:
    """One request while it runs; what is set here becomes its labels when it ends."""

    def __init__(self, transport: str, operation: str) -> None:
        self.transport = transport
        self.operation = operation
        self.model = ""
        self.code = OK


class Metrics:
    """The gateway's own registry and instruments.

    Args:
        knows: tells whether a model of that name is served; other names are counted as ``unknown``.
    """

    def __init__(self, knows: Callable[[str], bool]) -> None:
        # One more series for each histogram's birthday helps nobody.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._knows = knows
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Histogram(
            "whybox_request_seconds",
            "Time from a request's first byte to its answer, by the error's type or ok.",
            ("transport", "operation", "model", "code"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "whybox_stage_seconds",
            "Time in one part of the work; the worker's own parts lie inside `backend`.",
            ("operation", "model", "stage"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "whybox_requests_in_flight",
            "Requests being answered.",
            ("transport", "operation"),
            registry=self.registry,
        )

    @contextmanager
    def request(self, transport: str, operation: str) -> Iterator[Observation]:
        """Count and time one request; an error that leaves the block is its code."""
        observation = Observation(transport, operation)
        in_flight = self._in_flight.labels(transport, operation)
        in_flight.inc()
        started = time.perf_counter()
        try:
            yield observation
        except ContractError as error:
            observation.code = error.type
            raise
        except asyncio.CancelledError:
            observation.code = "cancelled"
            raise
        except BaseException:
            observation.code = "internal"
            raise
        finally:
            in_flight.dec()
            self._requests.labels(
                transport, operation, self._model(observation.model), observation.code
            ).observe(time.perf_counter() - started)

    def stages(self, operation: str, model: str, stages: Iterable[types_pb2.Stage]) -> None:
        """Count the stages of one answer."""
        label = self._model(model)
        for stage in stages:
            self._stages.labels(operation, label, stage.name).observe(stage.seconds)

    def _model(self, name: str) -> str:
        return name if not name or self._knows(name) else UNKNOWN
