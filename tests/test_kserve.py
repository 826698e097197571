"""KServe V1: the client of the kserve package is answered, with what the plain requests are answered."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from conftest import Live
from gateway_calls import PATIENCE_SECONDS, b64, rest_outcome
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2
from whybox_service.rest import kserve, openapi

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "kserve-requirements.txt"


@pytest.fixture(scope="module")
def python(pytestconfig: pytest.Config) -> Path:
    """The interpreter of an environment that has kserve; it stays in pytest's cache."""
    cache = pytestconfig.cache
    assert cache is not None
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = cache.mkdir("kserve") / wanted
    if not folder.exists():
        partial = folder.with_name(f"{wanted}.{os.getpid()}")
        venv.create(partial, with_pip=True)
        install = [partial / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*map(str, install), "--requirement", REQUIREMENTS],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = f"kserve cannot be installed: {done.stderr[-400:]}"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
        if not folder.exists():
            partial.rename(folder)
    return folder / "bin" / "python"


class TestTheClientOfKServe:
    """The package's own client, in an environment of its own."""

    def ask(
        self, python: Path, live: Live, call: str, data: dict[str, Any] | None = None, model: str = ""
    ) -> dict[str, Any]:
        asked = {"url": live.rest, "model": model or live.model, "call": call, "data": data}
        done = subprocess.run(
            [python, HERE / "kserve_client.py"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def test_it_learns_that_a_model_is_ready(self, python: Path, live: Live) -> None:
        assert self.ask(python, live, "ready") == {"answer": True}

    def test_its_predictions_are_our_detections(self, python: Path, live: Live, picture: bytes) -> None:
        instances = some(picture)
        told = self.ask(python, live, "infer", {"instances": instances})
        assert list(told["answer"]) == ["predictions"]
        plain = [ask(live, "detect", instance) for instance in instances]
        for one, other in zip(told["answer"]["predictions"], plain, strict=True):
            assert without_stages(one) == nearly(other)
        assert [len(one["detections"]) for one in plain] == [1, 2, 3]

    def test_its_explanations_are_our_heat_maps(self, python: Path, live: Live, picture: bytes) -> None:
        instances = [{**instance, "targets": ["class", "x1"]} for instance in some(picture)]
        told = self.ask(python, live, "explain", {"instances": instances})
        assert list(told["answer"]) == ["explanations"]
        plain = [ask(live, "explain", instance) for instance in instances]
        for one, other in zip(told["answer"]["explanations"], plain, strict=True):
            assert without_stages(one) == nearly(other)
        assert [len(one["heat_maps"]) for one in plain] == [2, 4, 6]

    def test_it_is_told_what_is_wrong(self, python: Path, live: Live, picture: bytes) -> None:
        instances = some(picture)
        instances[2]["select"]["box"] = [1, 2, 3]
        told = self.ask(python, live, "infer", {"instances": instances})
        assert told["status"] == 400
        assert told["body"]["field"] == "instances[2].select.box"
        told = self.ask(python, live, "infer", {"instances": some(picture)}, model="no-such-model")
        assert told["status"] == 404
        assert told["body"]["field"] == "model"


def some(picture: bytes) -> list[dict[str, Any]]:
    """Three instances: the picture wrapped, plain, and wrapped, each with one detection more."""
    select = [{"score_threshold": 0, "max_detections": count} for count in (1, 2, 3)]
    wrapped = {"b64": b64(picture)}
    return [
        {"image": wrapped, "select": select[0]},
        {"image": b64(picture), "select": select[1]},
        {"image": wrapped, "select": select[2]},
    ]


def ask(live: Live, verb: str, instance: dict[str, Any]) -> dict[str, Any]:
    """What the plain request of an instance is answered, stages left out."""
    image = instance["image"]
    plain = {**instance, "image": image["b64"] if isinstance(image, dict) else image}
    response = post(live, verb, plain)
    assert response.status_code == 200, response.text
    return without_stages(response.json())


def post(live: Live, verb: str, body: Any, **headers: str) -> httpx.Response:
    url = f"{live.rest}/v1/models/{live.model}:{verb}"
    return httpx.post(url, json=body, headers=headers, timeout=PATIENCE_SECONDS)


def without_stages(answer: dict[str, Any]) -> dict[str, Any]:
    stages = {stage["name"] for stage in answer["stages"]}
    assert {"forward", "backend", "serialize"} <= stages
    return {name: value for name, value in answer.items() if name != "stages"}


class nearly:
    """Equals what differs in the last bits of its numbers, as pictures do that shared a batch."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return _near(other, self._value)

    def __repr__(self) -> str:
        return f"nearly {self._value}"


def _near(one: Any, other: Any) -> bool:
    if isinstance(other, dict):
        if set(one) != set(other):
            return False
        if other.get("encoding") == "u8":
            pixels = [np.frombuffer(base64.b64decode(map_["data"]), np.uint8) for map_ in (one, other)]
            if np.abs(pixels[0].astype(int) - pixels[1]).max() > 2:
                return False
        return all(_near(one[name], other[name]) for name in other if name != "data")
    if isinstance(other, list):
        return len(one) == len(other) and all(map(_near, one, other))
    if isinstance(other, float):
        return bool(one == pytest.approx(other, rel=1e-3, abs=1e-2))
    return bool(one == other)


class TestBodies:
    """What a body with `instances` may hold, over plain HTTP."""

    def test_a_plain_request_is_answered_at_the_same_address(self, live: Live, picture: bytes) -> None:
        plain = {"image": b64(picture), "select": {"score_threshold": 0, "max_detections": 2}}
        answer = post(live, "predict", plain)
        assert without_stages(answer.json()) == ask(live, "detect", plain)

    def test_many_instances_pass_through_a_short_queue(self, live: Live, picture: bytes) -> None:
        instances = some(picture)[:1] * kserve.MAX_INSTANCES
        answer = post(live, "predict", {"instances": instances})
        assert answer.status_code == 200, answer.text
        predictions = [without_stages(one) for one in answer.json()["predictions"]]
        assert len(predictions) == kserve.MAX_INSTANCES
        for one in predictions:
            assert one == nearly(predictions[0])

    def test_the_description_holds(self, live: Live, picture: bytes) -> None:
        document = openapi.document()
        for verb, member in (("predict", "predictions"), ("explain", "explanations")):
            operation = document["paths"][f"/v1/models/{{model}}:{verb}"]["post"]
            asked = operation["requestBody"]["content"]["application/json"]["schema"]
            told = operation["responses"]["200"]["content"]["application/json"]["schema"]
            body = {"instances": some(picture)}
            answer = post(live, verb, body).json()
            assert list(answer) == [member]
            for value, schema in ((body, asked), (answer, told)):
                jsonschema.validate(value, {**schema, "components": document["components"]})
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({"instances": []}, {**asked, "components": document["components"]})

    @pytest.mark.parametrize(
        ("body", "error", "field"),
        [
            ({"instances": []}, "invalid_argument", "instances"),
            ({"instances": {}}, "invalid_argument", "instances"),
            ({"instances": None}, "invalid_argument", "instances"),
            ({"instances": [{}] * (kserve.MAX_INSTANCES + 1)}, "invalid_argument", "instances"),
            ({"instances": [{}], "select": {}}, "unknown_field", "select"),
            ({"instances": [1]}, "invalid_argument", "instances[0]"),
            ({"instances": [{}]}, "missing_image", "instances[0].image"),
            ({"instances": [{"image": {}}]}, "invalid_argument", "instances[0].image.b64"),
            ({"instances": [{"image": {"b64": 1}}]}, "invalid_argument", "instances[0].image.b64"),
            ({"instances": [{"image": {"b65": ""}}]}, "unknown_field", "instances[0].image.b65"),
            ({"instances": [{"image": {"b64": "?"}}]}, "invalid_argument", "instances[0].image"),
            ({"instances": [{"image": {"b64": "AAAA"}}]}, "invalid_image", "instances[0].image"),
            ({"instances": [{"selects": {}}]}, "unknown_field", "instances[0].selects"),
            ({"instances": [{"image": "AAAA", "model": "x"}]}, "invalid_argument", "instances[0].model"),
            (
                {"instances": [{"image": "AAAA", "model_version": "9"}]},
                "unknown_model",
                "instances[0].model_version",
            ),
            ({"inputs": []}, "unknown_field", "inputs"),
        ],
    )
    @pytest.mark.parametrize("verb", ["predict", "explain"])
    def test_what_is_wrong_is_named(self, live: Live, verb: str, body: Any, error: str, field: str) -> None:
        outcome = rest_outcome(post(live, verb, body))
        assert (outcome.error["type"], outcome.error["field"]) == (error, field)

    def test_a_good_instance_does_not_hide_a_bad_one(self, live: Live, picture: bytes) -> None:
        instances = [*some(picture), {"image": b64(picture), "targets": ["class", "x3"]}]
        outcome = rest_outcome(post(live, "explain", {"instances": instances}))
        assert (outcome.error["type"], outcome.error["field"]) == (
            "unknown_target",
            "instances[3].targets[1]",
        )
        assert outcome.error["got"] == "x3"

    def test_it_is_answered_in_json_alone(self, live: Live, picture: bytes) -> None:
        for accept in ("application/x-protobuf", "image/png"):
            response = post(live, "explain", {"instances": some(picture)}, Accept=accept)
            assert rest_outcome(response).error["type"] == "not_acceptable"

    def test_detect_knows_no_instances(self, live: Live, picture: bytes) -> None:
        outcome = rest_outcome(post(live, "detect", {"instances": some(picture)}))
        assert (outcome.error["type"], outcome.error["field"]) == ("unknown_field", "instances")


class TestPerformAll:
    """How instances are performed, without a service."""

    def messages(self, count: int) -> list[explainer_pb2.DetectRequest]:
        return [explainer_pb2.DetectRequest(model=str(i)) for i in range(count)]

    def test_answers_keep_their_order_and_few_run_at_one_time(self) -> None:
        running = most = 0

        async def perform(message: explainer_pb2.DetectRequest) -> explainer_pb2.DetectResponse:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001 * (7 - int(message.model) % 7))
            running -= 1
            return explainer_pb2.DetectResponse(model=message.model)

        answers = asyncio.run(kserve.perform_all(self.messages(20), perform, 1 << 20))
        assert [answer.model for answer in answers] == [str(i) for i in range(20)]  # type: ignore[attr-defined]
        assert most == kserve.CONCURRENT_INSTANCES

    def test_one_failure_gives_up_the_others(self) -> None:
        given_up: list[str] = []
        began: list[str] = []

        async def perform(message: explainer_pb2.DetectRequest) -> explainer_pb2.DetectResponse:
            began.append(message.model)
            if message.model == "2":
                raise ContractError("overloaded", "too much", retry_after=3.0)
            try:
                await asyncio.sleep(PATIENCE_SECONDS)
            except asyncio.CancelledError:
                given_up.append(message.model)
                raise
            raise AssertionError("nobody gave up")

        started = time.monotonic()
        with pytest.raises(ContractError) as caught:
            asyncio.run(kserve.perform_all(self.messages(9), perform, 1 << 20))
        assert time.monotonic() - started < PATIENCE_SECONDS
        assert (caught.value.type, caught.value.field) == ("overloaded", "")
        assert caught.value.retry_after == 3.0
        # The turn that the failure left may have been taken already.
        assert {"0", "1", "3"} <= set(given_up) <= {"0", "1", "3", "4"}
        assert set(began) == {"2", *given_up}

    def test_a_bug_stays_one(self) -> None:
        async def perform(_message: explainer_pb2.DetectRequest) -> explainer_pb2.DetectResponse:
            raise RuntimeError("a bug")

        with pytest.raises(ExceptionGroup):
            asyncio.run(kserve.perform_all(self.messages(2), perform, 1 << 20))

    def test_the_answers_together_have_a_limit(self) -> None:
        async def perform(_message: explainer_pb2.DetectRequest) -> explainer_pb2.DetectResponse:
            return explainer_pb2.DetectResponse(warnings=["x" * 100])

        asyncio.run(kserve.perform_all(self.messages(9), perform, 1000))
        with pytest.raises(ContractError) as caught:
            asyncio.run(kserve.perform_all(self.messages(10), perform, 1000))
        assert (caught.value.type, caught.value.field) == ("response_too_large", "instances")
