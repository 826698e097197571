"""What operators see: metrics, readiness, health, reflection; and many clients at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.parser import text_string_to_metric_families

from conftest import PATIENCE_SECONDS, Live
from gateway_calls import b64, over_grpc, over_rest, rest_outcome
from whybox_service.addresses import reserved_ports

NOTHING_FOUND: dict[str, Any] = {"select": {"score_threshold": 1}}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def scrape(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples of a metrics endpoint, by name and labels."""
    text = httpx.get(url, verify=False, timeout=60).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def count(samples: dict[Any, float], name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0)


def health(target: str, service: str = "") -> int:
    with grpc.insecure_channel(target) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        return int(check(health_pb2.HealthCheckRequest(service=service), timeout=60).status)


def test_requests_are_counted_by_transport_operation_model_and_code(live: Live, picture: bytes) -> None:
    good = {"model": live.model, "image": b64(picture), **NOTHING_FOUND}
    bad = {"model": live.model, "image": b64(b"no picture")}
    lost = {"model": "no-such-model", "image": b64(picture)}
    before = scrape(f"{live.rest}/metrics")
    for request in (good, good, bad, lost):
        over_rest(live.rest, "Detect", request)
        over_grpc(live.target, "Detect", request)
    after = scrape(f"{live.rest}/metrics")
    for transport in ("rest", "grpc"):
        for model, code, more in (
            (live.model, "ok", 2),
            (live.model, "invalid_image", 1),
            ("unknown", "unknown_model", 1),
        ):
            labels = {"transport": transport, "operation": "detect", "model": model, "code": code}
            grown = [
                count(after, name, **labels, **extra) - count(before, name, **labels, **extra)
                for name, extra in (
                    ("whybox_request_seconds_count", {}),
                    ("whybox_request_seconds_bucket", {"le": "+Inf"}),
                )
            ]
            assert grown == [more, more], labels
    for stage in ("decode", "forward", "backend", "serialize"):
        labels = {"operation": "detect", "model": live.model, "stage": stage}
        name = "whybox_stage_seconds_count"
        assert count(after, name, **labels) - count(before, name, **labels) == 4


def test_labels_stay_few_whatever_clients_send(live: Live) -> None:
    for i in range(20):
        over_rest(live.rest, "GetModel", {"model": f"name-{i}"})
        httpx.get(f"{live.rest}/nowhere/{i}", verify=False)
        httpx.request(f"VERB{i}", f"{live.rest}/v1/models", verify=False)
    for (name, labels), _ in scrape(f"{live.rest}/metrics").items():
        if name.startswith("whybox_"):
            assert dict(labels).get("model", "") in {"", "unknown", *live.models}
            assert not any("-" in value and value not in live.models for value in dict(labels).values()), (
                labels
            )


def test_nothing_is_in_flight_but_the_scrape(live: Live) -> None:
    running = {
        dict(labels)["operation"]: value
        for (name, labels), value in scrape(f"{live.rest}/metrics").items()
        if name == "whybox_requests_in_flight" and value
    }
    assert running == {"metrics": 1}


def test_torchserve_has_metrics_for_prometheus(live: Live) -> None:
    assert any(name == "ts_inference_requests_total" for name, _ in scrape(live.torchserve["metrics"]))


def test_it_is_ready(live: Live) -> None:
    response = httpx.get(f"{live.rest}/readyz", verify=False)
    assert (response.status_code, response.json()) == (200, {"ready": True, "models": live.models})
    assert [health(live.target, service) for service in ("", "whybox.v1.Explainer")] == [SERVING, SERVING]


def test_health_can_be_watched(live: Live) -> None:
    with grpc.insecure_channel(live.target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == SERVING
        watch.cancel()


def test_the_service_describes_itself(live: Live) -> None:
    with grpc.insecure_channel(live.target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "whybox.v1.Explainer",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        assert (
            database.FindFileContainingSymbol("whybox.v1.Explainer").name == "whybox_proto/v1/explainer.proto"
        )


def test_many_clients_at_once_each_get_their_own_answer(live: Live, picture: bytes) -> None:
    def ask(i: int) -> tuple[str, Any]:
        request_id = f"request-{i}"
        request = {
            "model": live.models[i % len(live.models)],
            "image": b64(picture),
            "select": {"score_threshold": 0, "max_detections": i % 5 + 1},
        }
        if i % 2:
            outcome = over_rest(live.rest, "Detect", request, **{"X-Request-Id": request_id})
        else:
            outcome = over_grpc(live.target, "Detect", request, metadata=(("x-request-id", request_id),))
        assert outcome.answer, outcome.error
        assert outcome.request_id == request_id
        assert outcome.answer["model"] == request["model"]
        assert len(outcome.answer["detections"]) == i % 5 + 1
        return request_id, outcome

    with ThreadPoolExecutor(8) as pool:
        assert len(dict(pool.map(ask, range(40)))) == 40


@contextmanager
def gateway_alone(scratch: Path, **settings: object) -> Iterator[tuple[str, str]]:
    """A gateway with no TorchServe behind it; REST's URL and gRPC's target."""
    address_file = scratch / "addresses.json"
    with reserved_ports(1) as (nobody,):
        settings = {
            "PORT": 0,
            "GRPC_PORT": 0,
            "ADDRESS_FILE": address_file,
            "INFERENCE_URL": f"http://127.0.0.1:{nobody}",
            "MANAGEMENT_URL": f"http://127.0.0.1:{nobody}",
            "LOG_LEVEL": "error",
            **settings,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "whybox_service.app"],
            env={**os.environ, **{f"WHYBOX_{name}": str(value) for name, value in settings.items()}},
        )
        try:
            patience = time.monotonic() + PATIENCE_SECONDS
            while not address_file.exists():
                assert process.poll() is None
                assert time.monotonic() < patience
                time.sleep(0.05)
            addresses = json.loads(address_file.read_text())
            yield addresses["rest"], addresses["grpc"]
        finally:
            process.terminate()
            assert process.wait(60) == 0


def test_without_torchserve_the_gateway_lives_and_says_what_is_wrong(tmp_path: Path) -> None:
    with gateway_alone(tmp_path) as (url, target):
        assert httpx.get(f"{url}/healthz", verify=False).status_code == 200
        response = httpx.get(f"{url}/readyz", verify=False)
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        assert rest_outcome(response).error["type"] == "backend_unavailable"
        assert "TorchServe cannot be reached" in response.json()["reasons"]["torchserve"]
        assert health(target) == NOT_SERVING
        for rpc, request in (
            ("Detect", {"model": "any"}),
            ("GetModel", {"model": "any"}),
            ("ListModels", {}),
        ):
            error = over_rest(url, rpc, request).error
            assert error == over_grpc(target, rpc, request).error
            assert error["type"] == "backend_unavailable"


@pytest.mark.parametrize("port", ["PORT", "GRPC_PORT"])
def test_a_port_that_is_taken_is_said(live: Live, port: str) -> None:
    taken = (live.rest if port == "PORT" else live.target).rsplit(":", 1)[1]
    done = subprocess.run(
        [sys.executable, "-m", "whybox_service.app"],
        env={**os.environ, "WHYBOX_PORT": "0", "WHYBOX_GRPC_PORT": "0", f"WHYBOX_{port}": taken},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{taken}" in done.stderr
    assert "Traceback" not in done.stderr
