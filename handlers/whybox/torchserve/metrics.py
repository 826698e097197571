"""What a worker tells TorchServe's metrics endpoint, in seconds. Labels come from closed sets.

TorchServe exports those metrics of a handler that its `metrics.yaml` names; `whybox serve` writes one that
names these. In a TorchServe whose file does not, nothing is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from whybox_proto.errors import ERRORS
from whybox_proto.v1 import worker_pb2

REQUEST_SECONDS = "whybox_worker_request_seconds"
"""Histogram: time from a batch's arrival in the worker to a request's reply, by model, operation, code."""
STAGE_SECONDS = "whybox_worker_stage_seconds"
"""Histogram: time in one stage of a request, by model, operation, stage."""
DETECTIONS = "whybox_worker_detections_total"
"""Counter: detections in answers, by model, operation."""

STAGES = frozenset({"decode", "preprocess", "forward", "postprocess", "explain", "measure", "encode"})
STEP_STAGES = frozenset({"decode", "load", "iterate", "detect", "encode"})
"""Of a step of an inversion."""


class _Metric(Protocol):
    def add_or_update(self, value: float, dimension_values: list[str]) -> None: ...


class WorkerMetrics:
    """The metrics of one model's worker.

    Args:
        context: TorchServe's, with its cache of metrics.
        model: name of the model.
    """

    def __init__(self, context: Any, model: str) -> None:
        self._model = model
        self._requests = _named(context, REQUEST_SECONDS, "histogram")
        self._stages = _named(context, STAGE_SECONDS, "histogram")
        self._detections = _named(context, DETECTIONS, "counter")

    def tell(self, operation: str, reply: worker_pb2.WorkerReply, stages: Mapping[str, float]) -> None:
        """Count a reply, its `seconds` filled in, and the seconds of its stages."""
        result = reply.WhichOneof("result")
        code = "ok" if result != "error" else reply.error.type if reply.error.type in ERRORS else "internal"
        if self._requests is not None:
            self._requests.add_or_update(reply.seconds, [self._model, operation, code])
        if result not in ("detect", "explain", "advance"):
            return
        if self._stages is not None:
            for name, seconds in stages.items():
                if name in (STEP_STAGES if result == "advance" else STAGES):
                    self._stages.add_or_update(seconds, [self._model, operation, name])
        if (
            self._detections is not None
            and result != "advance"
            and (found := getattr(reply, result).detections)
        ):
            self._detections.add_or_update(len(found), [self._model, operation])


def _named(context: Any, name: str, kind: str) -> _Metric | None:
    """Return a metric that TorchServe's `metrics.yaml` names, or None."""
    cache = getattr(getattr(context, "metrics", None), "cache", {})
    for of_kind, metrics in cache.items():
        if getattr(of_kind, "value", "") == kind and name in metrics:
            metric: _Metric = metrics[name]
            return metric
    return None
