"""The log: one line an event, in a form that machines read, and nobody from outside writes a line of it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from whybox.torchserve import logs as worker_logs
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, explainer_pb2_grpc
from whybox_service import logs
from whybox_service.metrics import Observation

EVIL = 'x\n2026-01-01 ERROR forged\r\x1b[31m\x85\u2028\udc80"quoted"\x00'
UNSEEN = ("\r", "\x1b", "\x85", "\u2028", "\udc80", "\x00")


class Log:
    """A logger that writes into memory with one of the formatters."""

    def __init__(self, formatter: logging.Formatter, name: str = "whybox_service.access") -> None:
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(formatter)
        self.logger = logging.getLogger(name)

    @property
    def lines(self) -> list[str]:
        """The lines so far."""
        return self.stream.getvalue().splitlines() if "\n" in self.stream.getvalue() else []

    @property
    def json(self) -> list[dict[str, Any]]:
        """The lines, as objects."""
        return [json.loads(line) for line in self.stream.getvalue().split("\n") if line]


@pytest.fixture(params=["text", "json"])
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    yield from _attached(Log(logs.JsonFormatter() if request.param == "json" else logs.TextFormatter()))


@pytest.fixture
def as_json() -> Iterator[Log]:
    yield from _attached(Log(logs.JsonFormatter()))


def _attached(log: Log) -> Iterator[Log]:
    level = log.logger.level
    log.logger.addHandler(log.handler)
    log.logger.setLevel(logging.DEBUG)
    yield log
    log.logger.removeHandler(log.handler)
    log.logger.setLevel(level)


def seen(operation: str = "detect", code: str = "ok", error: ContractError | None = None) -> Observation:
    """An observation that has ended."""
    observation = Observation("rest", operation)
    observation.model, observation.key = "street", "app"
    observation.code, observation.error = code, error
    return observation


class TestAccess:
    """The line of a request."""

    def test_it_says_what_became_of_it(self, as_json: Log) -> None:
        error = ContractError("invalid_argument", "too many", field="select.max_detections")
        observation = seen(code=error.type, error=error)
        observation.trace_id = "ab" * 16
        logs.access(observation, "id-1", 0.01234567)
        (line,) = as_json.json
        assert line.pop("time").endswith("+00:00")
        assert line == {
            "level": "info",
            "logger": "whybox_service.access",
            "message": "rest detect: invalid_argument",
            "request_id": "id-1",
            "transport": "rest",
            "operation": "detect",
            "model": "street",
            "key": "app",
            "code": "invalid_argument",
            "seconds": 0.012346,
            "trace_id": "ab" * 16,
            "field": "select.max_detections",
            "error": "too many",
        }

    def test_what_says_nothing_is_left_out(self, as_json: Log) -> None:
        logs.access(Observation("grpc", "list_models"), "id-1", 0.5)
        assert not {"model", "key", "trace_id", "field", "error"} & as_json.json[0].keys()

    @pytest.mark.parametrize(
        ("operation", "code", "level"),
        [
            ("detect", "ok", "info"),
            ("detect", "cancelled", "info"),
            ("detect", "overloaded", "info"),
            ("detect", "unauthenticated", "info"),
            ("detect", "not_implemented", "info"),
            ("detect", "internal", "warning"),
            ("detect", "backend_unavailable", "warning"),
            ("detect", "deadline_exceeded", "warning"),
            ("readyz", "ok", "debug"),
            ("readyz", "backend_unavailable", "debug"),
            ("metrics", "internal", "warning"),
        ],
    )
    def test_its_level(self, as_json: Log, operation: str, code: str, level: str) -> None:
        logs.access(seen(operation, code), "id-1", 0.5)
        assert [line["level"] for line in as_json.json] == [level]

    def test_it_is_not_made_where_nobody_reads_it(self, log: Log) -> None:
        log.logger.setLevel(logging.WARNING)
        logs.access(seen(), "id-1", 0.5)
        assert log.stream.getvalue() == ""


class TestLines:
    """Nothing from outside leaves its line."""

    def test_an_access_line_is_one_line(self, log: Log) -> None:
        observation = seen(error=ContractError("invalid_argument", EVIL, field=EVIL))
        observation.model = EVIL
        logs.access(observation, EVIL, 0.5)
        text = log.stream.getvalue()
        assert text.count("\n") == 1
        assert text.endswith("\n")
        assert not any(character in text for character in UNSEEN)

    def test_a_message_is_one_line(self, log: Log) -> None:
        log.logger.warning("got %s", EVIL)
        assert log.stream.getvalue().count("\n") == 1
        assert not any(character in log.stream.getvalue() for character in UNSEEN)

    def test_a_traceback_begins_no_line(self, log: Log) -> None:
        try:
            raise ValueError(EVIL)
        except ValueError:
            log.logger.exception("it broke")
        text = log.stream.getvalue()
        assert "ValueError" in text
        assert not any(character in text for character in UNSEEN)
        first, *others = text.removesuffix("\n").split("\n")
        assert "it broke" in first
        assert all(line.startswith("  | ") for line in others)
        assert not any(line.startswith("2026-01-01") for line in others)

    def test_text_can_be_read(self) -> None:
        log = Log(logs.TextFormatter())
        (attached,) = [log]
        for _ in _attached(attached):
            logs.access(seen(), "an id", 0.5)
        time, level, logger, *rest = log.stream.getvalue().split(" ", 3)
        assert (level, logger) == ("INFO", "whybox_service.access:")
        assert len(time) == len("2026-01-01T00:00:00.000+00:00")
        assert rest == [
            'rest detect: ok request_id="an id" transport=rest operation=detect model=street key=app '
            "code=ok seconds=0.5\n"
        ]

    def test_a_line_of_ours_cannot_fail(self, log: Log) -> None:
        log.logger.warning("an object", extra={"fields": {"thing": object(), "number": 3}})
        assert "object object" in log.stream.getvalue()


class TestContext:
    """Lines carry the request that they belong to."""

    def test_across_tasks_and_threads(self, as_json: Log) -> None:
        async def request(name: str) -> None:
            with logs.context(request_id=name, model=""):
                await asyncio.sleep(0)
                as_json.logger.info("in the task")
                await asyncio.to_thread(as_json.logger.info, "in a thread")
                await asyncio.create_task(log_later())
                with logs.context(model="street"):
                    as_json.logger.info("inner")
                as_json.logger.info("outer")

        async def log_later() -> None:
            as_json.logger.info("in another task")

        async def both() -> None:
            await asyncio.gather(request("one"), request("two"))

        asyncio.run(both())
        as_json.logger.info("outside")
        for name in ("one", "two"):
            mine = [line for line in as_json.json if line.get("request_id") == name]
            assert [line["message"] for line in mine] == [
                "in the task",
                "in a thread",
                "in another task",
                "inner",
                "outer",
            ]
            assert [line.get("model") for line in mine] == [None, None, None, "street", None]
        assert "request_id" not in as_json.json[-1]


class TestInAWorker:
    """Lines of a handler: TorchServe reads some of them as metrics, or as the worker's process id."""

    @pytest.mark.parametrize("one_line", [False, True])
    def test_nothing_from_outside_begins_a_line(self, one_line: bool) -> None:
        log = Log(worker_logs.Formatter(one_line=one_line), "whybox.test")
        for attached in _attached(log):
            with worker_logs.at_hand(["id-1", "", "id\n[METRICS]forged.ms:1|#|#hostname:h,1"]):
                try:
                    raise ValueError("x\n[PID]1")
                except ValueError:
                    attached.logger.exception("request %s failed", "x\n[METRICS]y.ms:1|#|#hostname:h,1")
            attached.logger.info("afterwards")
        lines = log.stream.getvalue().removesuffix("\n").split("\n")
        assert lines[0].startswith("ERROR whybox.test [id-1 id\\n[METRICS]forged")
        assert not any(line.startswith("[") for line in lines)
        assert any("ValueError" in line for line in lines)
        assert lines[-1] == "INFO whybox.test: afterwards"
        assert len(lines) == 2 if one_line else len(lines) > 2


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """A gateway alone, its log in JSON; REST's URL, gRPC's target, the file of the log."""
    scratch = tmp_path_factory.mktemp("logs")
    told, written = scratch / "addresses.json", scratch / "stderr"
    environment = {"PORT": "0", "GRPC_PORT": "0", "ADDRESS_FILE": str(told), "LOG_FORMAT": "json"}
    with written.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "whybox_service.app"],
            env={**os.environ, **{f"WHYBOX_{name}": value for name, value in environment.items()}},
            stderr=stderr,
        )
    try:
        while not told.exists():
            assert process.poll() is None, written.read_text()
            time.sleep(0.05)
        addresses = json.loads(told.read_text())
        yield addresses["rest"], addresses["grpc"], written
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_the_log_has_the_id_that_the_client_sees(gateway: tuple[str, str, Path]) -> None:
    url, target, written = gateway
    mine = "mine \"'\\ own"
    given = httpx.get(f"{url}/v1/models/none", headers={"X-Request-Id": mine}, timeout=60)
    made = httpx.get(f"{url}/nowhere", timeout=60)
    with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError):
        explainer_pb2_grpc.ExplainerStub(channel).Detect(
            explainer_pb2.DetectRequest(), metadata=(("x-request-id", "over-grpc"),), timeout=60
        )
    httpx.get(f"{url}/healthz", timeout=60)
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    access = {line["request_id"]: line for line in lines if line["logger"] == "whybox_service.access"}
    assert given.headers["X-Request-Id"] == mine
    assert access[mine]["code"] == "backend_unavailable"
    assert access[mine]["level"] == "warning"
    assert access[made.headers["X-Request-Id"]]["code"] == "not_found"
    assert access["over-grpc"].items() >= {"transport": "grpc", "field": "model"}.items()
    assert "healthz" not in {line["operation"] for line in access.values()}
