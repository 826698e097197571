"""What Prometheus sees of the gateway. Every label takes few values, whatever clients send."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Generic, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from whybox_proto.errors import ERRORS, ContractError
from whybox_proto.states import ACTIVE, ENDED
from whybox_proto.v1 import types_pb2

# From 1 ms to minutes, in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# Up to the most detections that a request may ask for.
DETECTION_BUCKETS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
OK = "ok"
CANCELLED = "cancelled"
UNKNOWN = "unknown"
ANONYMOUS = "anonymous"
OTHER = "other"
# Of an inversion: how long it waits, up to hours; how long a step takes.
QUEUE_BUCKETS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
STEP_BUCKETS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
# Operations that machines ask for every few seconds; no line of the log and no trace is made of each.
PROBES = frozenset({"healthz", "readyz", "metrics"})
REASONS = frozenset({"concurrency", "queue_full", "stalled", "unauthenticated", "slow_body"})
STAGES = frozenset(
    {
        *("queue", "decode", "preprocess", "forward", "postprocess", "explain", "encode"),
        *("backend", "sample", "measure", "enlarge", "overlay", "serialize"),
    }
)
# What TorchServe 0.12 calls a worker, in lower case.
STATUSES = ("ready", "unloading")
# How long the series of a model stay after TorchServe has it no more: a restart must not lose them.
FORGET_SECONDS = 3600.0

M = TypeVar("M", bound=MetricWrapperBase)

Workers = Callable[[], Mapping[str, Sequence[tuple[str, int, str]]]]
"""Gives the workers of each served model by its name: their id, process id and status."""


class Observation:
    """One request while it runs; what is set here becomes its labels when it ends.

    Attributes:
        transport: ``rest`` or ``grpc``.
        operation: such as ``detect``.
        model: the name that the request gives; empty where it gives none.
        key: name of the request's API key; empty where it has none.
        code: type of the error that ended it, ``ok`` or ``cancelled``.
        error: the error itself.
        trace_id: of its trace; empty where it has none.
    """

    def __init__(self, transport: str, operation: str) -> None:
        self.transport = transport
        self.operation = operation
        self.model = ""
        self.key = ""
        self.code = OK
        self.error: ContractError | None = None
        self.trace_id = ""


class Metrics:
    """The gateway's own registry and instruments.

    Args:
        knows: tells whether a model of that name is served; other names are counted as ``unknown``.
        workers: gives the workers of the served models; None leaves them out.
        ready: tells whether every model can answer; None leaves it out.
    """

    def __init__(
        self,
        knows: Callable[[str], bool],
        workers: Workers | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        # One more series for each histogram's birthday helps nobody.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._models = _Models(knows)
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = _Series(
            Histogram(
                "whybox_request_seconds",
                "Time from a request's first byte to its answer, by the error's type or ok.",
                ("transport", "operation", "model", "code"),
                buckets=BUCKETS,
                registry=self.registry,
            )
        )
        self._stages = _Series(
            Histogram(
                "whybox_stage_seconds",
                "Time in one part of the work; the worker's own parts and the queue lie inside `backend`.",
                ("operation", "model", "stage"),
                buckets=BUCKETS,
                registry=self.registry,
            )
        )
        self._in_flight = _Series(
            Gauge(
                "whybox_requests_in_flight",
                "Requests being answered.",
                ("transport", "operation"),
                registry=self.registry,
            )
        )
        self._by_key = _Series(
            Counter(
                "whybox_requests_by_key",
                "Requests by the name of their API key, by the error's type or ok.",
                ("key", "code"),
                registry=self.registry,
            )
        )
        self._rejected = _Series(
            Counter(
                "whybox_rejected",
                "Requests that were turned away before any work was done for them.",
                ("model", "reason"),
                registry=self.registry,
            )
        )
        self._backend_errors = _Series(
            Counter(
                "whybox_backend_errors",
                "Calls of TorchServe that failed, by the error's type; each try counts.",
                ("model", "type"),
                registry=self.registry,
            )
        )
        self._detections = _Series(
            Histogram(
                "whybox_detections_per_image",
                "Detections in one answer.",
                ("operation", "model"),
                buckets=DETECTION_BUCKETS,
                registry=self.registry,
            )
        )
        self._inversions = _Series(
            Gauge(
                "whybox_inversions",
                "Layout inversions that have not ended, of all replicas on one database.",
                ("state",),
                registry=self.registry,
            )
        )
        self._inversions_queue_limit = Gauge(
            "whybox_inversions_queue_limit",
            "Layout inversions that may be queued; further ones are refused.",
            registry=self.registry,
        )
        self._inversions_ended = _Series(
            Counter(
                "whybox_inversions_ended",
                "Layout inversions that this replica saw end, by how.",
                ("model", "state"),
                registry=self.registry,
            )
        )
        self._inversion_queue = _Series(
            Histogram(
                "whybox_inversion_queue_seconds",
                "Time from the making of a layout inversion to its first step.",
                ("model",),
                buckets=QUEUE_BUCKETS,
                registry=self.registry,
            )
        )
        self._inversion_step = _Series(
            Histogram(
                "whybox_inversion_step_seconds",
                "Time of one step of a layout inversion, the wait for a worker included.",
                ("model",),
                buckets=STEP_BUCKETS,
                registry=self.registry,
            )
        )
        self._inversion_iterations = _Series(
            Counter(
                "whybox_inversion_iterations",
                "Iterations of layout inversions; their rate is iterations per second.",
                ("model",),
                registry=self.registry,
            )
        )
        for state in ACTIVE:
            self._inversions.of(state).set(0)
        Gauge(
            "whybox_build_info", "1, with the version of whybox.", ("version",), registry=self.registry
        ).labels(version("whybox")).set(1)
        self._loads: dict[str, tuple[int, int]] = {}
        self.registry.register(_Loads(self._loads, self._models.knows, workers or dict))
        if workers is not None:
            self.registry.register(_WorkerStates(workers, self._models))
        if ready is not None:
            Gauge(
                "whybox_ready", "Whether every model can answer, as /readyz says it.", registry=self.registry
            ).set_function(ready)
        by_model = (
            *(self._requests, self._stages, self._rejected, self._backend_errors, self._detections),
            *(
                self._inversions_ended,
                self._inversion_queue,
                self._inversion_step,
                self._inversion_iterations,
            ),
        )
        self.registry.register(_Forgetting(self._models, by_model))

    @contextmanager
    def request(self, transport: str, operation: str) -> Iterator[Observation]:
        """Count and time one request; an error of the table that leaves the block is its code.

        Whatever else leaves it counts as ``internal``, unless the block has said what it is.
        """
        observation = Observation(transport, operation)
        in_flight = self._in_flight.of(transport, operation)
        in_flight.inc()
        started = time.perf_counter()
        try:
            yield observation
        except ContractError as error:
            observation.code, observation.error = error.type, error
            raise
        except asyncio.CancelledError:
            observation.code = CANCELLED
            raise
        except BaseException:
            if observation.code == OK:
                observation.code = "internal"
            raise
        finally:
            in_flight.dec()
            self._requests.of(
                transport, operation, self._models.label(observation.model), observation.code
            ).observe(time.perf_counter() - started)
            if operation not in PROBES:
                self._by_key.of(observation.key or ANONYMOUS, observation.code).inc()

    def stages(self, operation: str, model: str, stages: Iterable[types_pb2.Stage]) -> None:
        """Count the stages of one answer."""
        label = self._models.label(model)
        for stage in stages:
            name = stage.name if stage.name in STAGES else OTHER
            self._stages.of(operation, label, name).observe(stage.seconds)

    def detections(self, operation: str, model: str, count: int) -> None:
        """Count the detections of one answer."""
        self._detections.of(operation, self._models.label(model)).observe(count)

    def rejected(self, model: str, reason: str) -> None:
        """Count a request that was turned away; `reason` is one of `REASONS`."""
        self._rejected.of(self._models.label(model), reason if reason in REASONS else OTHER).inc()

    def backend_error(self, model: str, kind: str) -> None:
        """Count a call of TorchServe that failed; `kind` is a row of the table of errors."""
        self._backend_errors.of(self._models.label(model), kind if kind in ERRORS else OTHER).inc()

    def inversions(self, counts: Mapping[str, int]) -> None:
        """Say how many layout inversions have not ended, by state."""
        for state in ACTIVE:
            self._inversions.of(state).set(counts.get(state, 0))

    def inversions_queue_limit(self, limit: int) -> None:
        """Say how many layout inversions may be queued."""
        self._inversions_queue_limit.set(limit)

    def inversion_goes_on(self, model: str) -> None:
        """See that there are series of a model whose inversion runs, at 0 where nothing was counted yet.

        Prometheus sees no rise in a counter that comes with its first count.
        """
        label = self._models.label(model)
        self._inversion_iterations.of(label)
        for state in ENDED:
            self._inversions_ended.of(label, state)

    def inversion_begun(self, model: str, seconds: float) -> None:
        """Count a layout inversion that has begun, after so many seconds in the queue."""
        self._inversion_queue.of(self._models.label(model)).observe(seconds)

    def inversion_step(self, model: str, seconds: float, iterations: int) -> None:
        """Count a step of a layout inversion: how long it took, and how many iterations it did."""
        label = self._models.label(model)
        self._inversion_step.of(label).observe(seconds)
        self._inversion_iterations.of(label).inc(iterations)

    def inversion_ended(self, model: str, state: str) -> None:
        """Count a layout inversion that has ended; `state` is one of those in which it stays."""
        self._inversions_ended.of(self._models.label(model), state if state in ENDED else OTHER).inc()

    def load(self, model: str, in_flight: int, waiting: int) -> None:
        """Say how many requests a model's workers have now, and how many wait in the gateway for a place."""
        if model in self._loads or self._models.knows(model):
            self._loads[model] = (in_flight, waiting)


class _Series(Generic[M]):
    """The series of a metric, each looked up once: looking one up costs more than counting."""

    def __init__(self, metric: M) -> None:
        self._metric = metric
        self._children: dict[tuple[str, ...], M] = {}

    def of(self, *labels: str) -> M:
        """Return the series of these values of the labels."""
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._metric.labels(*labels)
        return child

    def forget(self, **labels: str) -> None:
        """Drop the series that have these values of these labels."""
        self._metric.remove_by_labels(labels)
        self._children.clear()


class _Models:
    """Names that may be labels: those of models that are served or were a while ago."""

    def __init__(self, knows: Callable[[str], bool]) -> None:
        self.knows = knows
        self._seen: dict[str, float] = {}

    def label(self, name: str) -> str:
        """Return the name as a label."""
        if self.knows(name):
            self._seen[name] = time.monotonic()
            return name
        return name if not name or name in self._seen else UNKNOWN

    def forget(self) -> list[str]:
        """Forget the names that have not been served for long, and return them."""
        now = time.monotonic()
        for name in self._seen:
            if self.knows(name):
                self._seen[name] = now
        gone = [name for name, at in self._seen.items() if now - at > FORGET_SECONDS]
        for name in gone:
            del self._seen[name]
        return gone


class _Forgetting(Collector):
    """Adds nothing to a scrape; drops the series of models that are gone for good."""

    def __init__(self, models: _Models, series: Iterable[_Series[Counter] | _Series[Histogram]]) -> None:
        self._models = models
        self._series = series

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        for name in self._models.forget():
            for series in self._series:
                series.forget(model=name)
        return ()


class _Loads(Collector):
    """What `Metrics.load` was told of the models that are served; nothing yet is 0."""

    def __init__(
        self,
        loads: dict[str, tuple[int, int]],
        knows: Callable[[str], bool],
        served: Callable[[], Iterable[str]],
    ) -> None:
        self._loads = loads
        self._knows = knows
        self._served = served

    def describe(self) -> Iterable[Metric]:
        return self._families()

    def collect(self) -> Iterable[Metric]:
        families = self._families()
        for model in [model for model in self._loads if not self._knows(model)]:
            del self._loads[model]
        for model in {*self._loads, *self._served()}:
            for family, number in zip(families, self._loads.get(model, (0, 0)), strict=True):
                family.add_metric((model,), number)
        return families

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily(
                "whybox_model_in_flight", "Requests that the model's workers have now.", labels=("model",)
            ),
            GaugeMetricFamily(
                "whybox_model_waiting", "Requests that wait in the gateway for the model.", labels=("model",)
            ),
        )


class _WorkerStates(Collector):
    """The state of each served model's workers as the gateway last saw it."""

    def __init__(self, workers: Workers, models: _Models) -> None:
        self._workers = workers
        self._models = models
        # Process id of each worker when last seen alive, and the restarts counted from it, by model.
        self._processes: dict[str, dict[str, int]] = {}
        self._restarts: dict[str, int] = {}

    def describe(self) -> Iterable[Metric]:
        return self._families()

    def collect(self) -> Iterable[Metric]:
        ready, number, restarts = families = self._families()
        served = self._workers()
        for model, workers in served.items():
            counts = dict.fromkeys((*STATUSES, OTHER), 0)
            for _, _, status in workers:
                counts[status.lower() if status.lower() in STATUSES else OTHER] += 1
            ready.add_metric((model,), counts["ready"] > 0)
            for status, count in counts.items():
                number.add_metric((model, status), count)
            self._count_restarts(model, workers)
        for model, count in list(self._restarts.items()):
            if self._models.label(model) == model:
                restarts.add_metric((model,), count)
            else:
                del self._restarts[model], self._processes[model]
        return families

    def _count_restarts(self, model: str, workers: Sequence[tuple[str, int, str]]) -> None:
        """Compare process ids with those before; TorchServe keeps a worker's id when it starts it again."""
        known = self._processes.setdefault(model, {})
        self._restarts.setdefault(model, 0)
        for worker, process, _ in workers:
            if process > 0:
                self._restarts[model] += known.get(worker, process) != process
                known[worker] = process

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily, CounterMetricFamily]:
        return (
            GaugeMetricFamily(
                "whybox_model_ready", "Whether one of the model's workers is ready.", labels=("model",)
            ),
            GaugeMetricFamily(
                "whybox_model_workers", "The model's workers by status.", labels=("model", "status")
            ),
            CounterMetricFamily(
                "whybox_model_worker_restarts",
                "Workers that were another process than at the scrape before.",
                labels=("model",),
            ),
        )
