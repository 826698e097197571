"""Inversion jobs over both transports, before a TorchServe that is played: what they tell and survive."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from dbos import DBOSClient
from google.protobuf import empty_pb2
from google.protobuf.json_format import MessageToDict

import inversion_worker
from conftest import PATIENCE_SECONDS
from gateway_calls import grpc_outcome, over_grpc
from jobs_parts import (
    ENDED,
    HANG_SECONDS,
    LAYOUT,
    MODEL,
    Gateway,
    PlayedTorchServe,
    check_whole,
    eventually,
    gateway,
    problem,
    refused,
)
from picture_files import RGB, saved
from whybox_proto.v1 import explainer_pb2
from whybox_proto.v1.types_pb2 import Layout, Model
from whybox_service.jobs import adopting, runner
from whybox_service.jobs.losses import LOST_LIMIT
from whybox_service.jobs.starting import bounded
from whybox_service.settings import Settings

LONG = {"iterations": 5000, "pause": 0.005}
SHORT = {"iterations": 12, "pause": 0.0}
START = saved(RGB)
"""A picture of the layout's size."""
UNKNOWN = "inversions/" + "0" * 32
REQUEST: dict[str, Any] = {"model": MODEL, "layout": LAYOUT}


@pytest.fixture(scope="module")
def played() -> Iterator[PlayedTorchServe]:
    with PlayedTorchServe() as torchserve:
        yield torchserve


@pytest.fixture(scope="module")
def shared(played: PlayedTorchServe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway for what changes nothing but its own jobs."""
    scratch = tmp_path_factory.mktemp("shared")
    with gateway(scratch, played.url, WHYBOX_JOBS_RUNNING="4", WHYBOX_LOG_FORMAT="json") as running:
        yield running


@pytest.fixture
def torchserve() -> Iterator[PlayedTorchServe]:
    """One to break."""
    with PlayedTorchServe() as torchserve:
        yield torchserve


def files_of(running: Gateway, name: str) -> list[str]:
    folder = running.log.parent / "data" / "artifacts" / name.partition("/")[2]
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def kept_files(running: Gateway) -> set[str]:
    """The jobs that have files."""
    folder = running.log.parent / "data" / "artifacts"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def listed_jobs(running: Gateway, **asked: Any) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = running.ask("GET", "inversions", params=asked).json()["inversions"]
    return jobs


def listed_names(running: Gateway) -> list[str]:
    return [job["name"] for job in listed_jobs(running)]


def iteration(running: Gateway, name: str) -> int:
    """How far a job is."""
    progress: dict[str, int] = running.get(name).get("progress", {})
    return progress.get("iteration", 0)


def events(running: Gateway, name: str, last: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The events of a job: id, kind, data."""
    headers = {"Last-Event-ID": last} if last else {}
    url = f"{running.rest}/v1/{name}/events"
    with httpx.stream("GET", url, headers=headers, timeout=PATIENCE_SECONDS) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if line.startswith(":"):
                continue
            if line:
                key, _, value = line.partition(": ")
                fields[key] = value
            else:
                yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
                fields = {}


class TestLife:
    def test_a_job_from_its_making_to_its_end(self, shared: Gateway) -> None:
        made = shared.create(SHORT, seed=7, idempotency_key="", priority=3)
        assert made["state"] in ("queued", "running")
        assert made["request"]["layout"]["objects"][0]["label"] == "thing"
        assert (made["request"]["seed"], made["request"]["priority"]) == (7, 3)
        job = shared.wait(made["name"])
        check_whole(job)
        assert job["create_time"] == made["create_time"] < job["update_time"]
        assert job["result"]["match"]["ap50"] == 1.0
        assert job["result"]["params"]["iterations"] == 12
        assert job["progress"]["found"] == 1
        picture = shared.picture(job["name"])
        assert picture.headers["Content-Type"] == "image/png"
        assert picture.content == inversion_worker.picture_of(12)
        eventually(lambda: files_of(shared, job["name"]) == ["picture.png"])
        assert shared.ask("DELETE", job["name"]).status_code == 204
        assert problem(shared.ask("GET", job["name"])) == (404, "unknown_inversion", "name")
        assert files_of(shared, job["name"]) == []

    def test_both_transports_tell_the_same(self, shared: Gateway) -> None:
        asked = explainer_pb2.CreateInversionRequest(model=MODEL)
        asked.layout.width = asked.layout.height = 64
        asked.layout.objects.add(label="thing", box=[1, 1, 20, 20])
        asked.params.update(SHORT)
        made = over_grpc(shared.grpc, "CreateInversion", asked).answer
        assert made is not None
        name = made["name"]
        shared.wait(name)
        outcome = over_grpc(shared.grpc, "GetInversion", {"name": name}).answer
        assert outcome is not None
        rest = shared.ask("GET", name, headers={"Accept": "application/x-protobuf"})
        message = explainer_pb2.Inversion.FromString(rest.content)
        assert message.request.layout == asked.layout
        assert outcome == MessageToDict(message, preserving_proto_field_name=True)
        listed = over_grpc(shared.grpc, "ListInversions", {"page_size": 1}).answer
        assert listed is not None
        assert (
            listed["inversions"][0]["name"] == shared.ask("GET", "inversions").json()["inversions"][0]["name"]
        )
        with grpc.insecure_channel(shared.grpc) as channel:
            stub = channel.unary_stream(
                "/whybox.v1.Explainer/WatchInversion",
                request_serializer=explainer_pb2.WatchInversionRequest.SerializeToString,
                response_deserializer=explainer_pb2.InversionEvent.FromString,
            )
            told = list(stub(explainer_pb2.WatchInversionRequest(name=name), timeout=PATIENCE_SECONDS))
            assert [event.inversion for event in told] == [message]
            assert told[0].preview == shared.picture(name).content
            last = explainer_pb2.WatchInversionRequest(name=name, last_event_id=told[0].id)
            assert list(stub(last, timeout=PATIENCE_SECONDS)) == []
            with pytest.raises(grpc.RpcError) as raised:
                list(stub(explainer_pb2.WatchInversionRequest(name=UNKNOWN), timeout=PATIENCE_SECONDS))
            assert grpc_outcome(raised.value).error["type"] == "unknown_inversion"
            delete = channel.unary_unary(
                "/whybox.v1.Explainer/DeleteInversion",
                request_serializer=explainer_pb2.DeleteInversionRequest.SerializeToString,
                response_deserializer=empty_pb2.Empty.FromString,
            )
            assert delete(explainer_pb2.DeleteInversionRequest(name=name)) == empty_pb2.Empty()
        error = over_grpc(shared.grpc, "CancelInversion", {"name": name}).error
        assert (error["type"], error["field"]) == ("unknown_inversion", "name")

    def test_it_starts_from_a_picture_that_is_not_told_back(self, shared: Gateway) -> None:
        made = shared.create(SHORT, image=base64.b64encode(START).decode())
        assert made["request"]["image"] == ""
        job = shared.wait(made["name"])
        check_whole(job)
        assert job["request"]["image"] == ""
        assert job["result"]["params"]["start"] == len(bounded(START, Layout(width=64, height=48), Model()))

    def test_a_picture_to_start_from_that_was_lost_is_missed(
        self, torchserve: PlayedTorchServe, tmp_path: Path
    ) -> None:
        with gateway(tmp_path, torchserve.url, WHYBOX_JOBS_RUNNING="1") as running:
            first = running.create(LONG)
            running.wait(first["name"], "running")
            second = running.create(SHORT, image=base64.b64encode(START).decode())
            (folder,) = tmp_path.rglob(second["name"].partition("/")[2])
            (folder / "start").unlink()
            running.ask("POST", first["name"] + ":cancel")
            job = running.wait(second["name"], "failed")
            assert job["error"]["type"] == "storage_failed"

    def test_a_form_with_a_picture(self, shared: Gateway) -> None:
        request = json.dumps({"model": MODEL, "layout": LAYOUT, "params": SHORT})
        parts = {"image": ("a.png", START), "request": (None, request, "application/json")}
        response = shared.ask("POST", "inversions", files=parts)
        assert response.status_code == 202
        assert shared.wait(response.json()["name"])["result"]["params"]["start"] > 0

    def test_a_job_goes_on_with_its_version(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            old = running.create(LONG)
            eventually(lambda: iteration(running, old["name"]) > 0)
            torchserve.versions = ["2.0", "1.0"]
            at = iteration(running, old["name"])
            eventually(lambda: iteration(running, old["name"]) > at + 20)
            assert set(torchserve.asked) == {"1.0"}
            running.ask("POST", old["name"] + ":cancel")
            # Till the gateway has looked, new jobs are made with the version that it knows.
            eventually(lambda: running.ask("GET", f"models/{MODEL}").json()["version"] == "2.0")
            check_whole(running.wait(running.create(SHORT)["name"]))
            assert torchserve.asked[-1] == "2.0"

    def test_a_version_that_goes_fails_its_jobs(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        prelude = "import whybox_service.jobs.steps as s; s.UNKNOWN_MODEL_SECONDS = 0.5"
        with gateway(tmp_path, torchserve.url, prelude=prelude) as running:
            job = running.create(LONG)
            eventually(lambda: iteration(running, job["name"]) > 0)
            torchserve.versions = ["2.0"]
            error = running.wait(job["name"], "failed")["error"]
            assert (error["type"], error["field"], error["got"]) == ("unknown_model", "model_version", "1.0")
            assert "is gone" in error["message"]

    def test_states_do_not_pile_up(self, shared: Gateway) -> None:
        job = shared.create(LONG)
        shared.wait(job["name"], "running")
        most = 0
        while (at := iteration(shared, job["name"])) < 40:
            most = max(most, len(files_of(shared, job["name"])))
        assert at
        assert most <= 4  # the last two, the one that is being written, and its name
        shared.ask("DELETE", job["name"])

    def test_a_long_state_goes_to_and_fro(self, shared: Gateway) -> None:
        job = shared.create({"iterations": 12, "pause": 0, "ballast": 10_000_000})
        check_whole(shared.wait(job["name"]))


class TestKeys:
    def test_the_same_request_is_the_same_job(self, shared: Gateway) -> None:
        first = shared.create(SHORT, idempotency_key="key-1")
        again = shared.create(SHORT, idempotency_key="key-1")
        assert first["name"] == again["name"]
        check_whole(shared.wait(first["name"]))
        assert shared.create(SHORT, idempotency_key="key-1")["state"] == "succeeded"
        assert shared.create(SHORT, idempotency_key="key-2")["name"] != first["name"]

    def test_callers_do_not_meet_each_other_s(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        secrets = {name: "whybox_" + name * 20 for name in ("ann", "ben")}
        keys = ",".join(f"{n}:sha256:{sha256(key.encode()).hexdigest()}" for n, key in secrets.items())
        with gateway(tmp_path, torchserve.url, WHYBOX_API_KEYS=keys) as running:

            def create(caller: str, **change: Any) -> httpx.Response:
                request = {**REQUEST, "params": SHORT, "idempotency_key": "nightly", **change}
                headers = {"Authorization": f"Bearer {secrets[caller]}"}
                return running.ask("POST", "inversions", json=request, headers=headers)

            anns, bens = create("ann").json()["name"], create("ben").json()["name"]
            assert anns != bens
            assert (create("ann").json()["name"], create("ben").json()["name"]) == (anns, bens)
            conflict = (409, "idempotency_conflict", "idempotency_key")
            assert problem(create("ann", seed=1)) == conflict
            metadata = (("authorization", f"Bearer {secrets['ann']}"),)
            request = explainer_pb2.CreateInversionRequest(model=MODEL, seed=2, idempotency_key="nightly")
            request.layout.width = request.layout.height = 64
            request.layout.objects.add(label="thing", box=[1, 1, 20, 20])
            outcome = over_grpc(running.grpc, "CreateInversion", request, metadata=metadata)
            assert outcome.error["type"] == "idempotency_conflict"
            assert anns not in outcome.error["message"] or bens not in outcome.error["message"]

    def test_another_request_is_a_conflict(self, shared: Gateway) -> None:
        shared.create(SHORT, idempotency_key="key-3")
        for change in ({"seed": 1}, {"image": base64.b64encode(START).decode()}):
            request = {
                "model": MODEL,
                "layout": LAYOUT,
                "params": SHORT,
                "idempotency_key": "key-3",
                **change,
            }
            response = shared.ask("POST", "inversions", json=request)
            assert problem(response) == (409, "idempotency_conflict", "idempotency_key")

    def test_a_deleted_job_gives_its_key_back(self, shared: Gateway) -> None:
        first = shared.create(SHORT, idempotency_key="key-4")
        shared.ask("DELETE", first["name"])
        assert shared.create(SHORT, idempotency_key="key-4")["name"] != first["name"]


class TestCancelling:
    def test_the_last_picture_stays(self, shared: Gateway) -> None:
        job = shared.create(LONG)
        eventually(lambda: iteration(shared, job["name"]) > 0)
        response = shared.ask("POST", job["name"] + ":cancel")
        assert response.status_code == 200
        cancelled = response.json()
        assert cancelled["state"] == "cancelled"
        picture = shared.picture(job["name"])
        assert picture.content == inversion_worker.picture_of(cancelled["progress"]["iteration"])
        time.sleep(1.0)  # the step that ran meanwhile changes nothing
        assert shared.get(job["name"]) == cancelled
        assert shared.picture(job["name"]).content == picture.content
        assert files_of(shared, job["name"]) == ["picture.png"]

    def test_what_has_ended_cannot_be_cancelled(self, shared: Gateway) -> None:
        job = shared.wait(shared.create(SHORT)["name"])
        response = shared.ask("POST", job["name"] + ":cancel", json={})
        assert problem(response) == (409, "inversion_ended", "name")
        assert response.json()["got"] == "succeeded"
        assert shared.get(job["name"]) == job

    def test_deleting_a_running_one_cancels_it(self, shared: Gateway, played: PlayedTorchServe) -> None:
        job = shared.create(LONG)
        eventually(lambda: iteration(shared, job["name"]) > 0)
        assert shared.ask("DELETE", job["name"]).status_code == 204
        assert problem(shared.ask("GET", job["name"])) == (404, "unknown_inversion", "name")
        time.sleep(0.5)
        steps = len(played.steps_of(job["name"]))
        time.sleep(0.5)
        assert len(played.steps_of(job["name"])) == steps
        eventually(lambda: files_of(shared, job["name"]) == [])  # a step that was under way has to end
        # What came of it is the same for a second one.
        assert problem(shared.ask("DELETE", job["name"])) == (404, "unknown_inversion", "name")

    def test_a_queued_one(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            first, second = running.create(LONG), running.create(SHORT)
            running.wait(first["name"], "running")
            assert running.get(second["name"])["state"] == "queued"
            assert running.ask("POST", second["name"] + ":cancel").json()["state"] == "cancelled"
            assert problem(running.picture(second["name"])) == (404, "not_found", "")
            running.ask("POST", first["name"] + ":cancel")
            third = running.create(SHORT)
            check_whole(running.wait(third["name"]))
            assert torchserve.steps_of(second["name"]) == []


class TestLists:
    def test_the_newest_first_in_pages(self, shared: Gateway) -> None:
        made = [shared.create(SHORT)["name"] for _ in range(5)]
        for name in made:
            shared.wait(name)
        got: list[str] = []
        token = ""
        while len(got) < 5:
            page = shared.ask("GET", "inversions", params={"page_size": 2, "page_token": token}).json()
            assert len(page["inversions"]) == 2 or not page["next_page_token"]
            got += [job["name"] for job in page["inversions"]]
            token = page["next_page_token"]
        assert got[:5] == made[::-1]

    def test_by_state_and_without_what_is_long(self, shared: Gateway) -> None:
        shared.wait(shared.create(SHORT)["name"])
        running = shared.create(LONG)
        shared.wait(running["name"], "running")
        by_state = {
            state: shared.ask("GET", "inversions", params={"state": state, "page_size": 1000}).json()[
                "inversions"
            ]
            for state in ("", "queued", "running", *ENDED)
        }
        assert [job["name"] for job in by_state["running"]] == [running["name"]]
        assert {job["state"] for job in by_state["succeeded"]} == {"succeeded"}
        assert len(by_state[""]) == sum(len(jobs) for state, jobs in by_state.items() if state)
        told = by_state["succeeded"][0]
        assert told["result"]["match"]["recall"] == 1.0
        assert told["request"]["layout"]["width"] == LAYOUT["width"]
        assert told["request"]["layout"]["objects"] == told["result"]["losses"] == []
        shared.ask("DELETE", running["name"])

    def test_a_new_job_does_not_shift_the_pages(self, shared: Gateway) -> None:
        first = shared.ask("GET", "inversions", params={"page_size": 2}).json()
        shared.create(SHORT)
        second = shared.ask(
            "GET", "inversions", params={"page_size": 2, "page_token": first["next_page_token"]}
        )
        names = [job["name"] for job in first["inversions"] + second.json()["inversions"]]
        assert len(set(names)) == len(names)


class TestWatching:
    def test_several_see_it_grow(self, shared: Gateway) -> None:
        job = shared.create({"iterations": 120, "pause": 0.02})
        for told in (list(events(shared, job["name"])), list(events(shared, job["name"]))):
            assert [kind for _, kind, _ in told] == ["partial"] * (len(told) - 1) + ["result"]
            assert [id for id, _, data in told] == [data["id"] for _, _, data in told]
            ids = [int(id) for id, _, _ in told]
            assert ids == sorted(set(ids))
            last = told[-1][2]
            check_whole(last["inversion"])
            assert last["inversion"] == shared.get(job["name"])
            assert base64.b64decode(last["preview"]) == inversion_worker.picture_of(120)
            grown = [data["inversion"].get("progress", {}).get("iteration", 0) for _, _, data in told]
            assert grown == sorted(grown)
        assert len(told) == 1  # the second one came when it had ended

    def test_previews_come_while_it_runs(self, shared: Gateway) -> None:
        job = shared.create(LONG)
        watching = events(shared, job["name"])
        seen = [next(watching) for _ in range(4)]
        assert all(kind == "partial" for _, kind, _ in seen)
        assert sum(bool(data["preview"]) for _, _, data in seen) >= 2
        shared.ask("POST", job["name"] + ":cancel")
        *_, last = watching
        assert (last[1], last[2]["inversion"]["state"]) == ("result", "cancelled")

    def test_going_on_after_an_event(self, shared: Gateway) -> None:
        job = shared.create({"iterations": 100, "pause": 0.02})
        watching = events(shared, job["name"])
        seen, _, _ = [next(watching) for _ in range(2)][-1]
        watching.close()  # type: ignore[attr-defined]
        rest = list(events(shared, job["name"], seen))
        assert int(rest[0][0]) >= int(seen)
        assert [int(id) for id, _, _ in rest[1:]] == sorted(
            {int(id) for id, _, _ in rest} - {int(rest[0][0])}
        )
        assert rest[-1][1] == "result"
        over = shared.ask("GET", job["name"] + "/events", headers={"Last-Event-ID": rest[-1][0]})
        assert (over.status_code, over.content) == (204, b"")
        by_query = shared.ask("GET", job["name"] + "/events", params={"last_event_id": rest[-1][0]})
        assert by_query.status_code == 204

    def test_going_on_where_nothing_happens_is_answered_at_once(
        self, torchserve: PlayedTorchServe, tmp_path: Path
    ) -> None:
        """Whoever is on the way would take a connection without headers for dead."""
        with gateway(tmp_path, torchserve.url, WHYBOX_JOBS_RUNNING="1") as running:
            running.create(LONG)
            waiting = running.create(LONG)
            first = next(events(running, waiting["name"]))
            again = next(events(running, waiting["name"], first[0]))
            assert again == first
            assert again[2]["inversion"]["state"] == "queued"

    @pytest.mark.parametrize("last", ["-1", "x", "1.5", "999999"])
    def test_an_event_that_has_not_been(self, shared: Gateway, last: str) -> None:
        job = shared.create(SHORT)
        response = shared.ask("GET", job["name"] + "/events", headers={"Last-Event-ID": last})
        assert problem(response) == (400, "invalid_argument", "last_event_id")

    def test_it_is_not_cut_off_by_the_usual_deadline(
        self, torchserve: PlayedTorchServe, tmp_path: Path
    ) -> None:
        with gateway(tmp_path, torchserve.url, WHYBOX_DEADLINE_SECONDS="1") as running:
            assert running.ask("GET", "inversions", headers={"X-Request-Timeout": "60"}).status_code == 200
            job = running.create({"iterations": 100, "pause": 0.03})
            assert list(events(running, job["name"]))[-1][1] == "result"
            job = running.create(LONG)
            told = running.ask("GET", job["name"] + "/events", headers={"X-Request-Timeout": "1"}).text
            assert "event: error\n" in told
            assert "deadline_exceeded" in told
            assert "\nid: " not in told[told.index("event: error") :]

    def test_to_ask_for_the_headers_alone_watches_nothing(self, shared: Gateway) -> None:
        job = shared.create(LONG)
        shared.wait(job["name"], "running")
        with httpx.Client(base_url=f"{shared.rest}/v1/", timeout=PATIENCE_SECONDS) as client:
            response = client.head(job["name"] + "/events")
            # The client is still there, and nobody works for it.
            watching = {"transport": "rest", "operation": "watch_inversion"}
            eventually(lambda: shared.metric("whybox_requests_in_flight", **watching) == 0)
            assert shared.get(job["name"])["state"] == "running"
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert shared.ask("HEAD", UNKNOWN + "/events").status_code == 404
        shared.ask("DELETE", job["name"])

    def test_a_deleted_job_ends_the_watching(self, shared: Gateway) -> None:
        job = shared.create(LONG)
        watching = events(shared, job["name"])
        next(watching)
        shared.ask("DELETE", job["name"])
        *_, (_, kind, data) = watching
        assert kind == "error"
        assert data["type"].endswith("unknown_inversion")


BOX = LAYOUT["objects"][0]["box"]


def of(*objects: dict[str, Any]) -> dict[str, Any]:
    """A layout of these objects."""
    return {"layout": {**LAYOUT, "objects": list(objects)}}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"model": ""}, "invalid_argument", "model"),
    ({"model": "plaed"}, "unknown_model", "model"),
    ({"layout": {**LAYOUT, "objects": []}}, "invalid_argument", "layout.objects"),
    (
        {"layout": {**LAYOUT, "objects": [{"label": "thing", "box": BOX}] * 11}},
        "invalid_argument",
        "layout.objects",
    ),
    (
        {"layout": {**LAYOUT, "objects": [{"label": "thnig", "box": BOX}]}},
        "unknown_label",
        "layout.objects[0].label",
    ),
    (of({"label": "thing", "box": [4, 4, 4, 40]}), "invalid_argument", "layout.objects[0].box"),
    (of({"label": "thing", "box": [4, 4, 300, 40]}), "invalid_argument", "layout.objects[0].box"),
    (of({"label": "thing", "box": BOX, "mask": "1"}), "invalid_argument", "layout.objects[0].mask"),
    ({"layout": {**LAYOUT, "width": 0}}, "invalid_argument", "layout.width"),
    ({"params": {"iterations": 0}}, "invalid_argument", "params.iterations"),
    ({"params": {"iterations": 1_000_000}}, "invalid_argument", "params.iterations"),
    ({"params": {"itertions": 5}}, "unknown_parameter", "params.itertions"),
    ({"priority": 10}, "invalid_argument", "priority"),
    ({"idempotency_key": "k" * 1000}, "invalid_argument", "idempotency_key"),
    ({"idempotency_key": "a\0b"}, "invalid_argument", "idempotency_key"),
    ({"colour": "red"}, "unknown_field", "colour"),
    ({"image": base64.b64encode(b"no picture").decode()}, "invalid_image", "image"),
    ({"image": base64.b64encode(START[: len(START) // 2]).decode()}, "invalid_image", "image"),
    (
        {"image": base64.b64encode(inversion_worker.picture_of(1)).decode()},
        "invalid_argument",
        "image",
    ),
]


class TestBadInput:
    @pytest.mark.parametrize("transport", ["rest", "grpc"])
    @pytest.mark.parametrize(
        ("size", "type"),
        [
            ((340, 17), None),
            ((341, 17), "invalid_argument"),
            ((17, 341), "invalid_argument"),
            ((1020, 1020), "request_too_large"),
        ],
    )
    def test_a_picture_that_the_model_does_not_take(
        self, shared: Gateway, transport: str, size: tuple[int, int], type: str | None
    ) -> None:
        asked = explainer_pb2.CreateInversionRequest(model=MODEL)
        asked.image = saved(np.zeros((size[1], size[0], 3), np.uint8))
        asked.layout.width, asked.layout.height = size
        asked.layout.objects.add(label="thing", box=[1, 1, 9, 9])
        asked.params.update(SHORT)
        if transport == "grpc":
            error = over_grpc(shared.grpc, "CreateInversion", asked).error
            told = (error["type"], error["field"]) if error else None
        else:
            request = MessageToDict(asked, preserving_proto_field_name=True)
            response = shared.ask("POST", "inversions", json=request)
            told = problem(response)[1:] if response.status_code != 202 else None
        assert told == ((type, "image") if type else None)
        asked.ClearField("image")  # a layout as such may be so
        assert over_grpc(shared.grpc, "CreateInversion", asked).answer is not None

    @pytest.mark.parametrize(
        ("change", "type", "field"), BAD, ids=[f"{i}-{t}-{f}" for i, (_, t, f) in enumerate(BAD)]
    )
    def test_a_bad_request_makes_no_job(
        self, shared: Gateway, change: dict[str, Any], type: str, field: str
    ) -> None:
        before, files = listed_names(shared), kept_files(shared)
        request = {**REQUEST, "params": SHORT, **change}
        status, *told = problem(shared.ask("POST", "inversions", json=request))
        assert told == [type, field]
        assert 400 <= status < 500
        assert listed_names(shared) == before
        assert kept_files(shared) <= files | {name.partition("/")[2] for name in before}

    @pytest.mark.parametrize("verb", ["GET", "DELETE", "GET /image", "GET /events", "POST :cancel"])
    @pytest.mark.parametrize("name", [UNKNOWN, "inversions/x", "inversions/" + "0" * 31, "inversions/%00"])
    def test_unknown_ids(self, shared: Gateway, verb: str, name: str) -> None:
        verb, _, rest = verb.partition(" ")
        assert problem(shared.ask(verb, name + rest)) == (404, "unknown_inversion", "name")

    def test_no_id(self, shared: Gateway) -> None:
        for rpc in ("GetInversion", "CancelInversion"):
            error = over_grpc(shared.grpc, rpc, {}).error
            assert (error["type"], error["field"]) == ("invalid_argument", "name")

    @pytest.mark.parametrize(
        ("params", "field"),
        [
            ({"state": "done"}, "state"),
            ({"page_size": 1001}, "page_size"),
            ({"page_token": "x!"}, "page_token"),
            ({"page_token": base64.b64encode(b"1:2").decode()}, "page_token"),
            ({"page_token": base64.b64encode(b"9" * 30 + b":" + b"0" * 32).decode()}, "page_token"),
        ],
    )
    def test_a_wrong_page_or_state(self, shared: Gateway, params: dict[str, Any], field: str) -> None:
        assert problem(shared.ask("GET", "inversions", params=params)) == (400, "invalid_argument", field)

    def test_another_representation(self, shared: Gateway) -> None:
        name = shared.create(SHORT)["name"]
        for path in ("/image", "/events"):
            response = shared.ask("GET", name + path, headers={"Accept": "application/json"})
            assert problem(response) == (406, "not_acceptable", "Accept")

    def test_a_worker_that_refuses_a_step(self, shared: Gateway) -> None:
        job = shared.wait(shared.create({**SHORT, "fail_at": 8})["name"])
        assert job["state"] == "failed"
        assert job["error"]["type"] == "invalid_argument"
        assert (job["error"]["field"], job["error"]["message"]) == ("params.fail_at", "told to fail")
        assert shared.picture(job["name"]).content == inversion_worker.picture_of(5)
        check_whole(shared.wait(shared.create(SHORT)["name"]))

    def test_without_a_folder_there_are_none(self, played: PlayedTorchServe, tmp_path: Path) -> None:
        running = Gateway(tmp_path, played.url)
        try:
            for verb, path in (("GET", "inversions"), ("GET", UNKNOWN), ("DELETE", UNKNOWN)):
                response = running.ask(verb, path)
                assert problem(response) == (501, "not_implemented", "")
                assert "WHYBOX_DATA" in response.json()["expected"]
        finally:
            assert running.stop() == 0

    @pytest.mark.parametrize(
        ("environment", "said"),
        [
            ({"WHYBOX_DATA": "/proc/whybox"}, "/proc/whybox cannot be used for jobs"),
            ({"WHYBOX_JOBS_DATABASE": "mysql://secret@host/db"}, "no URL of Postgres"),
            ({"WHYBOX_JOBS_RUNNING": "0"}, "WHYBOX_JOBS_RUNNING: Input should be greater than 0"),
            ({"WHYBOX_JOBS_EXECUTOR": "a b"}, "WHYBOX_JOBS_EXECUTOR"),
        ],
    )
    def test_settings_that_cannot_be(self, environment: dict[str, str], said: str) -> None:
        told = refused(**environment)
        assert said in told
        assert "secret" not in told

    def test_a_folder_that_another_has(self, shared: Gateway) -> None:
        told = refused(WHYBOX_DATA=str(shared.log.parent / "data"))
        assert "in use by another whybox" in told


class TestQueue:
    def test_limits_and_priorities(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        with gateway(tmp_path, torchserve.url, WHYBOX_JOBS_QUEUED="3") as running:
            torchserve.mode = "hold"
            first = running.create(SHORT)
            running.wait(first["name"], "running")
            low, high, middle = (running.create(SHORT, priority=p)["name"] for p in (0, 9, 5))
            response = running.ask("POST", "inversions", json=REQUEST)
            assert problem(response) == (429, "overloaded", "")
            assert int(response.headers["Retry-After"]) > 0
            torchserve.mode = "well"
            for name in (first["name"], low, high, middle):
                check_whole(running.wait(name))
            begun = list(dict.fromkeys(step.split("-")[0] for step in torchserve.steps))
            assert [f"inversions/{job}" for job in begun] == [first["name"], high, middle, low]
            assert torchserve.most_at_once == 1

    @pytest.mark.parametrize(("workers", "most"), [(1, 1), (3, 1), (8, 2)])
    def test_one_step_in_hand_for_each_running_job_and_half_of_the_workers_at_most(
        self, torchserve: PlayedTorchServe, tmp_path: Path, workers: int, most: int
    ) -> None:
        torchserve.workers = workers
        with gateway(tmp_path, torchserve.url, WHYBOX_JOBS_RUNNING="2") as running:
            names = [running.create({"iterations": 40, "pause": 0.01})["name"] for _ in range(4)]
            for name in names:
                check_whole(running.wait(name))
            assert torchserve.most_at_once == most

    def test_a_hundred_are_there_after_a_restart(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        with gateway(tmp_path, torchserve.url, WHYBOX_JOBS_RUNNING="8") as running:
            torchserve.mode = "hold"
            names = [running.create({"iterations": 5, "pause": 0})["name"] for _ in range(100)]
            running.kill()
            torchserve.mode = "well"
            running.start()
            for name in names:
                check_whole(running.wait(name))
            assert torchserve.most_at_once <= 8


class TestFaults:
    @pytest.mark.parametrize("mode", ["gone", "overloaded", "lost", "unloaded"])
    def test_torchserve_breaks_for_a_while(
        self, torchserve: PlayedTorchServe, tmp_path: Path, mode: str
    ) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            job = running.create({"iterations": 60, "pause": 0.005})
            eventually(lambda: iteration(running, job["name"]) > 0)
            torchserve.mode = mode
            time.sleep(1.0)
            assert running.get(job["name"])["state"] == "running"
            torchserve.mode = "well"
            check_whole(running.wait(job["name"]))

    def test_a_step_that_kills_its_workers_is_given_up(
        self, torchserve: PlayedTorchServe, tmp_path: Path
    ) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            torchserve.mode = "lost"
            job = running.wait(running.create(SHORT)["name"])
            assert (job["state"], job["error"]["type"]) == ("failed", "backend_unavailable")
            assert torchserve.died == LOST_LIMIT
            torchserve.mode = "well"
            check_whole(running.wait(running.create(SHORT)["name"]))

    def test_a_step_that_ends_torchserve_is_given_up(
        self, torchserve: PlayedTorchServe, tmp_path: Path
    ) -> None:
        prelude = (
            "import whybox_service.jobs.steps as s; s.FIRST_PAUSE_SECONDS = s.LONGEST_PAUSE_SECONDS = 0.1"
        )
        with gateway(tmp_path, torchserve.url, prelude=prelude) as running:
            torchserve.mode = "broken"
            job = running.wait(running.create(SHORT)["name"])
            assert (job["state"], job["error"]["type"]) == ("failed", "backend_unavailable")
            assert f"TorchServe ended {LOST_LIMIT} times" in job["error"]["message"]
            assert torchserve.died == LOST_LIMIT
            torchserve.mode = "well"
            check_whole(running.wait(running.create(SHORT)["name"]))

    def test_a_step_that_hangs_is_given_up(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        """Its workers are ended long after it was waited for."""
        prelude = (
            "import whybox_service.jobs.steps as s\n"
            f"s.ALLOWANCE_SECONDS = {HANG_SECONDS / 2}\n"
            "s.FIRST_PAUSE_SECONDS = s.LONGEST_PAUSE_SECONDS = 0.5\n"
        )
        with gateway(tmp_path, torchserve.url, prelude=prelude) as running:
            torchserve.mode = "hung"
            job = running.wait(running.create(SHORT)["name"])
            assert (job["state"], job["error"]["type"]) == ("failed", "backend_unavailable")
            assert "workers ended while they had step 1" in job["error"]["message"]
            torchserve.mode = "well"
            check_whole(running.wait(running.create(SHORT)["name"]))

    def test_patience_ends(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        with gateway(tmp_path, torchserve.url, WHYBOX_JOBS_PATIENCE_SECONDS="2") as running:
            job = running.create(LONG)
            running.wait(job["name"], "running")
            torchserve.mode = "overloaded"
            ended = running.wait(job["name"])
            assert ended["state"] == "failed"
            assert "no worker could go on for" in ended["error"]["message"]

    def test_cancelling_while_it_waits_for_a_worker(
        self, torchserve: PlayedTorchServe, tmp_path: Path
    ) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            job = running.create(LONG)
            running.wait(job["name"], "running")
            torchserve.mode = "overloaded"
            time.sleep(0.3)
            assert running.ask("POST", job["name"] + ":cancel").json()["state"] == "cancelled"
            torchserve.mode = "well"
            check_whole(running.wait(running.create(SHORT)["name"]))

    def test_the_gateway_killed_in_mid_job(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            job = running.create({"iterations": 300, "pause": 0.01})
            for at in (20, 60):
                eventually(
                    lambda at=at: running.get(job["name"]).get("progress", {}).get("iteration", 0) > at
                )
                running.kill()
                running.start()
            check_whole(running.wait(job["name"]))
            steps = torchserve.steps_of(job["name"])
            assert sorted(set(steps)) == list(range(1, 61))
            assert len(steps) <= 60 + 2  # each time one at most was lost

    def test_a_gateway_that_is_stopped_goes_on_where_it_was(
        self, torchserve: PlayedTorchServe, tmp_path: Path
    ) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            job = running.create({"iterations": 200, "pause": 0.01})
            watching = events(running, job["name"])
            while "progress" not in next(watching)[2]["inversion"]:
                pass
            assert running.stop() == 0
            *_, (_, kind, data) = watching
            assert (kind, data["type"].rpartition(":")[2]) == ("error", "backend_unavailable")
            running.start()
            check_whole(running.wait(job["name"]))
            assert torchserve.steps_of(job["name"]) == list(range(1, 41))  # none was lost
            assert "Traceback" not in running.log.read_text()

    def test_a_step_that_does_not_end_is_abandoned(
        self, torchserve: PlayedTorchServe, tmp_path: Path
    ) -> None:
        with gateway(tmp_path, torchserve.url, WHYBOX_SHUTDOWN_SECONDS="1") as running:
            torchserve.mode = "hold"
            job = running.create(SHORT)
            eventually(lambda: torchserve.at_once == 1)
            assert running.stop() == 0
            torchserve.mode = "well"
            running.start()
            check_whole(running.wait(job["name"]))

    def test_a_full_disk(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        small = tmp_path / "small"
        small.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("no file system can be mounted here")
        try:
            with gateway(tmp_path, torchserve.url, WHYBOX_JOBS_ARTIFACTS=str(small)) as running:
                job = running.create({"iterations": 5, "pause": 0, "ballast": 2_000_000})
                ended = running.wait(job["name"])
                assert (ended["state"], ended["error"]["type"]) == ("failed", "storage_failed")
                assert "No space left on device" in ended["error"]["message"]
                noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
                request = {
                    "model": MODEL,
                    "layout": {**LAYOUT, "width": 1000, "height": 1000},
                    "image": base64.b64encode(saved(noise)).decode(),
                }
                assert problem(running.ask("POST", "inversions", json=request)) == (507, "storage_failed", "")
                check_whole(running.wait(running.create(SHORT)["name"]))
                assert len(list(small.rglob("*.png"))) == 1  # what was refused left nothing
                assert not [*small.rglob("*.tmp"), *small.rglob("start")]
        finally:
            subprocess.run(["umount", "--lazy", str(small)], check=True)

    def test_a_state_that_is_gone(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            job = running.create(LONG)
            eventually(lambda: iteration(running, job["name"]) > 0)
            running.kill()
            shutil.rmtree(tmp_path / "data" / "artifacts")
            running.start()
            ended = running.wait(job["name"])
            assert (ended["state"], ended["error"]["type"]) == ("failed", "storage_failed")
            assert problem(running.picture(job["name"])) == (404, "not_found", "")


class TestTending:
    def test_ended_jobs_are_forgotten(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        with gateway(
            tmp_path, torchserve.url, WHYBOX_JOBS_KEEP_COUNT="2", WHYBOX_JOBS_KEEP_DAYS="1"
        ) as running:
            names = [running.create(SHORT)["name"] for _ in range(5)]
            for name in names:
                check_whole(running.wait(name))
            running.stop()
            with sqlite3.connect(tmp_path / "data" / "jobs.sqlite") as database:
                database.execute(
                    "UPDATE whybox_inversions SET ended = ended - 2 * 86400000000 WHERE id = ?",
                    (names[4].partition("/")[2],),
                )
            database.close()
            orphan = tmp_path / "data" / "artifacts" / ("0" * 32)
            orphan.mkdir()
            (orphan / "000001.step").touch()
            left = tmp_path / "data" / "artifacts" / names[3].partition("/")[2] / "000009.step"
            left.touch()
            running.start()
            eventually(lambda: listed_names(running) == [names[3]])
            eventually(lambda: not orphan.exists() and not left.exists())
            assert files_of(running, names[0]) == files_of(running, names[4]) == []
            assert running.picture(names[3]).content == inversion_worker.picture_of(12)

    def test_what_runs_nowhere_is_taken_up_again(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        """As after a full database: DBOS has the job running here, and no thread does."""
        prelude = "import whybox_service.jobs.inversions as i; i._MEND_SECONDS = 0.5"
        with gateway(tmp_path, torchserve.url, prelude=prelude) as running:
            long = running.create(LONG)
            running.wait(long["name"], "running")
            stray = running.create(SHORT)["name"]
            with sqlite3.connect(tmp_path / "data" / "jobs.sqlite") as database:
                changed = database.execute(
                    "UPDATE workflow_status SET status = 'PENDING', executor_id = 'gateway' "
                    "WHERE workflow_uuid = ? AND status = 'ENQUEUED'",
                    (stray.partition("/")[2],),
                )
                assert changed.rowcount == 1
            database.close()
            eventually(lambda: f"taking up again: {stray}" in running.log.read_text())
            running.ask("POST", long["name"] + ":cancel")
            check_whole(running.wait(stray))
            assert torchserve.steps_of(stray) == [1, 2, 3]

    def test_jobs_of_another_name_in_the_folder_go_on(
        self, torchserve: PlayedTorchServe, tmp_path: Path
    ) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            job = running.create({"iterations": 100, "pause": 0.01})
            eventually(lambda: iteration(running, job["name"]) > 0)
            running.kill()
            running.environment["WHYBOX_JOBS_EXECUTOR"] = "renamed"
            running.start()
            check_whole(running.wait(job["name"]))
            assert len(torchserve.steps_of(job["name"])) <= 20 + 1

    def test_what_is_deleted_while_it_is_handed_over_is_left_out(
        self, torchserve: PlayedTorchServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            torchserve.mode = "hold"
            name = running.create(SHORT)["name"]
            eventually(lambda: torchserve.at_once == 1)
            running.kill()

            def and_another(client: DBOSClient, executor: str | None = None) -> list[tuple[str, str]]:
                return [("0" * 32, "gateway"), *runner.pending(client, executor)]

            monkeypatch.setattr(adopting, "pending", and_another)
            assert adopting.adopt(Settings(data=tmp_path / "data"), "gateway") == [name.partition("/")[2]]
            torchserve.mode = "well"
            running.start()
            check_whole(running.wait(name))

    def test_a_job_whose_workflow_is_gone_fails(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            job = running.create({"iterations": 100, "pause": 0.01})
            eventually(lambda: iteration(running, job["name"]) > 0)
            running.stop()
            with sqlite3.connect(tmp_path / "data" / "jobs.sqlite") as database:
                database.execute("UPDATE workflow_status SET status = 'ERROR'")
            database.close()
            running.start()
            ended = running.wait(job["name"])
            assert (ended["state"], ended["error"]["type"]) == ("failed", "internal")
            assert "ERROR" in ended["error"]["message"]
            check_whole(running.wait(running.create(SHORT)["name"]))


class TestTelling:
    def test_metrics(self, torchserve: PlayedTorchServe, tmp_path: Path) -> None:
        with gateway(tmp_path, torchserve.url) as running:
            assert running.metric("whybox_inversions", state="queued") == 0
            metrics = httpx.get(f"{running.rest}/metrics", timeout=PATIENCE_SECONDS).text
            assert "whybox_inversions_queue_limit 1000.0" in metrics.splitlines()
            check_whole(running.wait(running.create(SHORT)["name"]))
            running.wait(running.create({**SHORT, "fail_at": 1})["name"])
            long, queued = running.create(LONG), running.create(SHORT)
            running.wait(long["name"], "running")
            eventually(lambda: running.metric("whybox_inversions", state="running") == 1)
            assert running.metric("whybox_inversions", state="queued") == 1
            running.ask("POST", long["name"] + ":cancel")
            running.wait(queued["name"])
            for state, count in (("succeeded", 2), ("failed", 1), ("cancelled", 1)):
                assert running.metric("whybox_inversions_ended_total", model=MODEL, state=state) == count
            assert running.metric("whybox_inversion_queue_seconds_count", model=MODEL) == 4
            assert running.metric("whybox_inversion_step_seconds_count", model=MODEL) >= 7
            assert running.metric("whybox_inversion_iterations_total", model=MODEL) >= 24

    def test_the_log_names_the_job(self, shared: Gateway) -> None:
        job = shared.wait(shared.create(SHORT)["name"])
        lines = [json.loads(line) for line in shared.log.read_text().splitlines() if line.startswith("{")]
        told = [line["message"] for line in lines if line.get("inversion") == job["name"]]
        assert any("begins" in line for line in told)
        assert any("has succeeded" in line for line in told)
        asked = [
            line for line in lines if line.get("operation") == "create_inversion" and line["code"] == "ok"
        ]
        assert asked[-1]["model"] == MODEL

    def test_a_service_that_has_no_jobs_loads_nothing_for_them(
        self, played: PlayedTorchServe, tmp_path: Path
    ) -> None:
        with gateway(tmp_path, played.url) as running:
            modules = Path(f"/proc/{running.process.pid}/maps").read_text()
            assert "psycopg" not in modules
            assert not (tmp_path / "data" / "jobs.sqlite").exists()
