"""The gateway's and the workers' metrics: what is counted, and that labels stay few."""

from __future__ import annotations

import asyncio
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import whybox_service.metrics as gateway_metrics
from whybox.torchserve import metrics as worker_metrics
from whybox.torchserve.metrics import WorkerMetrics
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service import torchserve
from whybox_service.metrics import Metrics

# How TorchServe's frontend reads a line of a worker (`Metric.parse` of 0.12.0).
TORCHSERVE_READS = re.compile(
    r"\s*([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)(\|#type:([^|,]+))?\|#hostname:([^,]+),([^,]+)(,(.*))?"
)
STAGES = {"decode": 1.5e-07, "forward": 0.25, "made-up": 1.0}


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The samples of a name, by the values of their labels in the labels' order by name."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


@pytest.fixture
def served() -> dict[str, list[tuple[str, int, str]]]:
    """The models that are served, and their workers; tests change it."""
    return {"street": [("9000", 100, "READY"), ("9001", 101, "UNLOADING")]}


@pytest.fixture
def metrics(served: dict[str, list[tuple[str, int, str]]]) -> Metrics:
    def workers() -> Mapping[str, Sequence[tuple[str, int, str]]]:
        return served

    return Metrics(served.__contains__, workers, lambda: bool(served))


class TestRequests:
    """Requests by transport, operation, model and code."""

    def ask(self, metrics: Metrics, model: str, error: BaseException | None = None) -> str:
        with pytest.raises(type(error)) if error else nullcontext():  # noqa: SIM117
            with metrics.request("rest", "detect") as observation:
                observation.model = model
                if error is not None:
                    raise error
        return observation.code

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (None, "ok"),
            (ContractError("invalid_image", "no picture"), "invalid_image"),
            (asyncio.CancelledError(), "cancelled"),
            (RuntimeError("a bug"), "internal"),
        ],
    )
    def test_what_ends_a_request_is_its_code(
        self, metrics: Metrics, error: BaseException | None, code: str
    ) -> None:
        assert self.ask(metrics, "street", error) == code
        assert samples(metrics, "whybox_request_seconds_count") == {(code, "street", "detect", "rest"): 1}
        assert samples(metrics, "whybox_requests_in_flight") == {("detect", "rest"): 0}

    def test_a_request_can_say_its_code(self, metrics: Metrics) -> None:
        def give_up() -> None:
            with metrics.request("grpc", "explain") as observation:
                observation.code = "cancelled"
                raise KeyError

        with pytest.raises(KeyError):
            give_up()
        assert samples(metrics, "whybox_requests_by_key_total") == {("cancelled", "anonymous"): 1}

    def test_keys_are_counted_and_probes_are_not(self, metrics: Metrics) -> None:
        for operation in ("detect", "healthz", "readyz", "metrics"):
            with metrics.request("rest", operation) as observation:
                observation.key = "app"
        assert samples(metrics, "whybox_requests_by_key_total") == {("ok", "app"): 1}

    def test_buckets_reach_from_a_millisecond_to_minutes(self) -> None:
        assert gateway_metrics.BUCKETS[0] == 0.001
        assert gateway_metrics.BUCKETS[-1] >= 120


class TestLabels:
    """Labels take few values, whatever comes."""

    CALLS: tuple[tuple[str, Callable[[Metrics, str], None]], ...] = (
        ("whybox_rejected_total", lambda metrics, name: metrics.rejected(name, name)),
        ("whybox_backend_errors_total", lambda metrics, name: metrics.backend_error(name, name)),
        (
            "whybox_stage_seconds_count",
            lambda metrics, name: metrics.stages("detect", name, [types_pb2.Stage(name=name, seconds=1)]),
        ),
        ("whybox_detections_per_image_count", lambda metrics, name: metrics.detections("detect", name, 3)),
        ("whybox_model_in_flight", lambda metrics, name: metrics.load(name, 5, 6)),
    )

    @pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
    def test_a_hundred_names_are_one_series(
        self, metrics: Metrics, name: str, call: Callable[[Metrics, str], None]
    ) -> None:
        for i in range(100):
            call(metrics, f"made-up-{i}")
        assert len(samples(metrics, name)) == 1
        assert not any("made-up" in value for labels in samples(metrics, name) for value in labels)

    def test_a_model_keeps_its_series_through_a_restart(
        self, metrics: Metrics, served: dict[str, Any]
    ) -> None:
        metrics.rejected("street", "queue_full")
        workers = served.pop("street")
        metrics.rejected("street", "queue_full")
        assert samples(metrics, "whybox_rejected_total") == {("street", "queue_full"): 2}
        assert samples(metrics, "whybox_model_ready") == {}
        served["street"] = workers
        assert samples(metrics, "whybox_model_ready") == {("street",): 1}

    def test_a_model_that_is_gone_for_good_leaves_no_series(
        self, metrics: Metrics, served: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _, call in self.CALLS:
            call(metrics, "street")
        samples(metrics, "whybox_model_worker_restarts_total")
        del served["street"]
        monkeypatch.setattr(gateway_metrics, "FORGET_SECONDS", -1.0)
        # The scrape that forgets, and one after it.
        metrics.registry.collect()
        list(metrics.registry.collect())
        left = {
            sample.labels["model"]
            for family in metrics.registry.collect()
            for sample in family.samples
            if "model" in sample.labels
        }
        assert left == set()
        metrics.rejected("street", "queue_full")
        assert samples(metrics, "whybox_rejected_total") == {("unknown", "queue_full"): 1}


class TestWorkers:
    """The state of the workers, as the gateway last saw it."""

    def test_by_status(self, metrics: Metrics, served: dict[str, Any]) -> None:
        served["field"] = [("9002", 102, "SOMETHING_NEW")]
        assert samples(metrics, "whybox_model_workers") == {
            ("street", "ready"): 1,
            ("street", "unloading"): 1,
            ("street", "other"): 0,
            ("field", "ready"): 0,
            ("field", "unloading"): 0,
            ("field", "other"): 1,
        }
        assert samples(metrics, "whybox_model_ready") == {("street",): 1, ("field",): 0}

    def test_readiness(self, metrics: Metrics, served: dict[str, Any]) -> None:
        assert samples(metrics, "whybox_ready") == {(): 1}
        served.clear()
        assert samples(metrics, "whybox_ready") == {(): 0}

    def test_a_new_process_is_a_restart(self, metrics: Metrics, served: dict[str, Any]) -> None:
        def restarts(*processes: int) -> float:
            served["street"] = [(str(9000 + i), process, "READY") for i, process in enumerate(processes)]
            return samples(metrics, "whybox_model_worker_restarts_total")["street",]

        assert restarts(100, 101) == 0
        assert restarts(100, 101) == 0
        # -1 while there is no process.
        assert restarts(100, -1) == 0
        assert restarts(100, 201) == 1
        assert restarts(200, 301) == 3

    def test_the_load_of_a_served_model_begins_at_0(self, metrics: Metrics, served: dict[str, Any]) -> None:
        assert samples(metrics, "whybox_model_in_flight") == {("street",): 0}
        metrics.load("street", 2, 7)
        assert samples(metrics, "whybox_model_in_flight") == {("street",): 2}
        assert samples(metrics, "whybox_model_waiting") == {("street",): 7}
        served.clear()
        assert samples(metrics, "whybox_model_waiting") == {}


class TestInAWorker:
    """What a handler tells TorchServe."""

    def context(self, path: Path, text: str) -> Any:
        path.write_text(text)
        with warnings.catch_warnings():
            # It leaves files open, some on import.
            warnings.simplefilter("ignore", ResourceWarning)
            from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

            cache = MetricsCacheYamlImpl(str(path))
        cache.initialize_cache()
        return SimpleNamespace(metrics=cache)

    def reply(self) -> worker_pb2.WorkerReply:
        answer = explainer_pb2.DetectResponse(detections=[types_pb2.Detection()] * 3)
        return worker_pb2.WorkerReply(detect=answer, seconds=0.5)

    def told(self, caplog: pytest.LogCaptureFixture) -> list[tuple[str, float, str]]:
        lines = [record.getMessage() for record in caplog.records if "whybox_worker" in record.getMessage()]
        found = [TORCHSERVE_READS.fullmatch(line.removeprefix("[METRICS]")) for line in lines]
        return [(match[1], float(match[3]), match[4]) for match in found if match]

    def test_torchserve_can_read_it(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        context = self.context(tmp_path / "metrics.yaml", torchserve.metrics_config())
        WorkerMetrics(context, "street").tell("detect", self.reply(), STAGES)
        assert self.told(caplog) == [
            ("whybox_worker_request_seconds", 0.5, "model:street,operation:detect,code:ok"),
            ("whybox_worker_stage_seconds", 1.5e-07, "model:street,operation:detect,stage:decode"),
            ("whybox_worker_stage_seconds", 0.25, "model:street,operation:detect,stage:forward"),
            ("whybox_worker_detections_total", 3.0, "model:street,operation:detect"),
        ]

    def test_a_step_of_an_inversion_has_stages_too(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        context = self.context(tmp_path / "metrics.yaml", torchserve.metrics_config())
        reply = worker_pb2.WorkerReply(advance=worker_pb2.Advance(state=b"s"), seconds=1.0)
        WorkerMetrics(context, "street").tell("advance", reply, {"load": 0.01, "iterate": 0.9})
        assert self.told(caplog) == [
            ("whybox_worker_request_seconds", 1.0, "model:street,operation:advance,code:ok"),
            ("whybox_worker_stage_seconds", 0.01, "model:street,operation:advance,stage:load"),
            ("whybox_worker_stage_seconds", 0.9, "model:street,operation:advance,stage:iterate"),
        ]

    def test_an_error_is_its_code(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        context = self.context(tmp_path / "metrics.yaml", torchserve.metrics_config())
        for type_, code in (("invalid_image", "invalid_image"), ("from|the,future", "internal")):
            caplog.clear()
            error = explainer_pb2.Error(type=type_)
            reply = worker_pb2.WorkerReply(error=error, seconds=0.5)
            WorkerMetrics(context, "street").tell("explain", reply, STAGES)
            assert self.told(caplog) == [
                ("whybox_worker_request_seconds", 0.5, f"model:street,operation:explain,code:{code}")
            ]

    def test_another_torchserve_is_told_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        own = (torchserve._home() / "ts" / "configs" / "metrics.yaml").read_text()
        for context in (
            self.context(tmp_path / "metrics.yaml", own),
            SimpleNamespace(metrics=None),
            SimpleNamespace(metrics=SimpleNamespace(cache={"a": object()})),
        ):
            WorkerMetrics(context, "street").tell("detect", self.reply(), STAGES)
        assert self.told(caplog) == []

    def test_the_names_are_those_of_the_configuration(self) -> None:
        assert {metric["name"] for metrics in torchserve.WORKER_METRICS.values() for metric in metrics} == {
            worker_metrics.REQUEST_SECONDS,
            worker_metrics.STAGE_SECONDS,
            worker_metrics.DETECTIONS,
        }
        assert worker_metrics.STAGES < gateway_metrics.STAGES
