"""What is REST's own: the forms of a body, the forms of an answer, headers, addresses."""

from __future__ import annotations

import io
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from google.protobuf import json_format
from PIL import Image

from conftest import Live
from gateway_calls import Outcome, b64, over_grpc, rest_outcome
from whybox_proto import maps
from whybox_proto.v1 import explainer_pb2

FIRST: dict[str, Any] = {"score_threshold": 0.0, "max_detections": 2}
FIRST_QUERY = {"select.score_threshold": "0", "select.max_detections": "2"}
LIMIT = 64 << 20


@pytest.fixture(scope="module")
def http(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.rest, timeout=100) as client:
        yield client


def post(http: httpx.Client, live: Live, verb: str = "explain", **asked: Any) -> httpx.Response:
    return http.post(f"/v1/models/{live.model}:{verb}", **asked)


def fault(response: httpx.Response) -> tuple[int, str, str]:
    outcome = rest_outcome(response)
    assert outcome.error, response.text
    return response.status_code, outcome.error["type"], outcome.error["field"]


def typed(body: bytes, content_type: str) -> dict[str, Any]:
    return {"content": body, "headers": {"Content-Type": content_type}}


def form(image: bytes, request: str) -> dict[str, Any]:
    return {"files": {"image": image, "request": (None, request)}}


class TestBodies:
    """One request in each form it can arrive in."""

    def test_all_forms_are_the_same_request(self, http: httpx.Client, live: Live, picture: bytes) -> None:
        fields = {
            "select": {**FIRST, "labels": ["alpha", "beta"]},
            "targets": ["x1", "class"],
            "params": {"smoothing": 0},
        }
        message = json_format.ParseDict({**fields, "image": b64(picture)}, explainer_pb2.ExplainRequest())
        query = [
            *FIRST_QUERY.items(),
            ("select.labels", "alpha"),
            ("select.labels", "beta"),
            ("targets", "x1"),
            ("targets", "class"),
            ("params.smoothing", "0"),
        ]
        forms: list[dict[str, Any]] = [
            {"json": {**fields, "image": b64(picture)}},
            {"json": {**fields, "image": b64(picture), "model": live.model}},
            {
                "files": {
                    "image": ("a.jpg", picture, "image/jpeg"),
                    "request": (None, json.dumps(fields), "application/json"),
                }
            },
            {"files": {"request": (None, json.dumps({**fields, "image": b64(picture)}))}},
            {"content": picture, "params": query, "headers": {"Content-Type": "image/jpeg"}},
            {"content": picture, "params": query, "headers": {"Content-Type": "application/octet-stream"}},
            {"content": picture, "params": query},  # as `curl -T` sends it, with no type at all
            {"content": message.SerializeToString(), "headers": {"Content-Type": "application/x-protobuf"}},
        ]
        first, *others = [rest_outcome(post(http, live, **form), "Explain") for form in forms]
        assert first.answer, first.error
        assert len(first.answer["heat_maps"]) == 4
        for form, other in zip(forms[1:], others, strict=True):
            assert other == first, form.keys()

    def test_the_answer_in_binary_is_the_same_message(
        self, http: httpx.Client, live: Live, picture: bytes
    ) -> None:
        for verb, kind in (
            ("detect", explainer_pb2.DetectResponse),
            ("explain", explainer_pb2.ExplainResponse),
        ):
            asked = {"json": {"image": b64(picture), "select": FIRST}}
            binary = post(http, live, verb, **asked, headers={"Accept": "application/x-protobuf"})
            assert binary.headers["Content-Type"] == "application/x-protobuf"
            answers = [
                kind.FromString(binary.content),
                json_format.Parse(post(http, live, verb, **asked).text, kind()),
            ]
            assert [stage.name for stage in answers[0].stages] == [stage.name for stage in answers[1].stages]
            for answer in answers:
                del answer.stages[:]
            assert answers[0] == answers[1]

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            (typed(b"{", "application/json"), (400, "invalid_request", "")),
            (typed(b"", "application/json"), (400, "invalid_request", "")),
            ({"json": [1]}, (400, "invalid_argument", "")),
            ({"json": {"imagee": ""}}, (400, "unknown_field", "imagee")),
            ({"json": {"select": {"labels": "a"}}}, (400, "invalid_argument", "select.labels")),
            ({"json": {}}, (400, "missing_image", "image")),
            ({"json": {"model": "other"}}, (400, "invalid_argument", "model")),
            ({"json": {}, "params": {"seed": "1"}}, (400, "invalid_request", "seed")),
            (typed(b"\xff\xff", "application/x-protobuf"), (400, "invalid_request", "")),
            ({"data": {"image": "x"}}, (415, "unsupported_media_type", "Content-Type")),
            (typed(b"x", "text/plain"), (415, "unsupported_media_type", "Content-Type")),
            (
                {"content": b"x", "headers": {"Content-Encoding": "gzip"}},
                (415, "unsupported_media_type", "Content-Encoding"),
            ),
            ({"content": b""}, (400, "missing_image", "image")),
            ({"content": b"x", "params": {"targts": "x1"}}, (400, "unknown_field", "targts")),
            ({"content": b"x", "params": {"image": "eA=="}}, (400, "invalid_argument", "image")),
            ({"content": b"x", "params": {"model": "other"}}, (400, "invalid_argument", "model")),
            ({"files": {"imag": b"x"}}, (400, "unknown_field", "imag")),
            ({"files": [("image", b"x"), ("image", b"y")]}, (400, "invalid_argument", "image")),
            (form(b"x", "{"), (400, "invalid_request", "request")),
            (form(b"x", '{"seed": "1"}'), (400, "invalid_argument", "seed")),
            (form(b"x", '{"image": "eA=="}'), (400, "invalid_argument", "image")),
            ({"files": {"request": (None, "{}")}}, (400, "missing_image", "image")),
            (
                {"files": {"request": ("a.xml", "<a/>", "text/xml")}},
                (415, "unsupported_media_type", "request"),
            ),
            (typed(b"--b\r\n", "multipart/form-data; boundary=b"), (400, "invalid_request", "")),
        ],
    )
    def test_a_bad_body_names_the_field(
        self, http: httpx.Client, live: Live, asked: dict[str, Any], expected: tuple[int, str, str]
    ) -> None:
        assert fault(post(http, live, **asked)) == expected

    def test_a_form_that_breaks_off_is_refused(self, http: httpx.Client, live: Live, picture: bytes) -> None:
        request = http.build_request("POST", "/", files={"image": picture, "request": (None, "{}")})
        whole = request.read()
        for size in (len(whole) // 2, len(whole) - 8):
            headers = {"Content-Type": request.headers["Content-Type"]}
            assert fault(post(http, live, content=whole[:size], headers=headers)) == (
                400,
                "invalid_request",
                "",
            )

    def test_a_body_over_the_limit_is_refused(self, http: httpx.Client, live: Live) -> None:
        def stream() -> Iterator[bytes]:
            for _ in range(LIMIT // (1 << 20) + 1):
                yield bytes(1 << 20)

        assert fault(post(http, live, content=stream())) == (413, "request_too_large", "")
        assert fault(post(http, live, content=bytes(LIMIT + 1))) == (413, "request_too_large", "")
        assert over_grpc(live.target, "Detect", bytes(LIMIT + 1)).error["type"] == "request_too_large"
        # What is far too large gRPC itself does not read.
        far_too_large = bytes(LIMIT + (8 << 20))
        assert over_grpc(live.target, "Detect", far_too_large).error["type"] == "RESOURCE_EXHAUSTED"

    def test_a_content_type_that_takes_long_to_read_is_refused(self, http: httpx.Client, live: Live) -> None:
        bomb = 'multipart/form-data; a="' + ";" * 60_000
        response = post(http, live, content=b"x", headers={"Content-Type": bomb})
        assert fault(response) == (400, "invalid_request", "Content-Type")

    def test_a_name_with_thousands_of_dots_is_refused(self, http: httpx.Client) -> None:
        for name in ("a" + ".a" * 3000, "params" + ".a" * 3000):
            response = http.get("/v1/models", params={name: "1"})
            assert fault(response)[:2] == (400, "unknown_field")

    def test_a_picture_over_the_models_limit_is_refused(self, http: httpx.Client, live: Live) -> None:
        limit = 32 << 20
        assert fault(post(http, live, content=bytes(limit + 1))) == (413, "request_too_large", "image")
        request = explainer_pb2.DetectRequest(model=live.model, image=bytes(limit + 1))
        assert over_grpc(live.target, "Detect", request).error["type"] == "request_too_large"

    def test_a_body_that_never_ends_meets_the_deadline(self, live: Live) -> None:
        host, port = live.rest.removeprefix("http://").split(":")
        head = (
            f"POST /v1/models/{live.model}:detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            "X-Request-Timeout: 0.2\r\n\r\nonly this"
        )
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(head.encode())
            answer = ""
            while not answer.endswith("}") and (part := connection.recv(65536)):  # head and body come apart
                answer += part.decode()
        assert answer.startswith("HTTP/1.1 504 ")
        assert "urn:whybox:error:deadline_exceeded" in answer

    def test_a_client_that_leaves_does_no_harm(self, http: httpx.Client, live: Live) -> None:
        host, port = live.rest.removeprefix("http://").split(":")
        head = (
            f"POST /v1/models/{live.model}:detect HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nonly this"
        )
        for _ in range(5):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(head.encode())
        assert http.get("/healthz").json() == {"status": "ok"}


class TestAnswers:
    """Maps in image size, and pictures."""

    @pytest.mark.parametrize("encoding", ["u8", "f32", "png"])
    def test_maps_in_image_size_are_the_feature_maps_enlarged(
        self, http: httpx.Client, live: Live, picture: bytes, encoding: str
    ) -> None:
        def ask(**output: str) -> explainer_pb2.ExplainResponse:
            body = {"image": b64(picture), "select": FIRST, "targets": ["class", "x1"], "output": output}
            return json_format.Parse(post(http, live, json=body).text, explainer_pb2.ExplainResponse())

        small, large = ask(encoding="f32"), ask(encoding=encoding, size="image")
        width, height = small.image.width, small.image.height
        assert "enlarge" in [stage.name for stage in large.stages]
        assert len(large.heat_maps) == 4
        for cells, pixels in zip(small.heat_maps, large.heat_maps, strict=True):
            assert (pixels.width, pixels.height, pixels.encoding) == (width, height, encoding)
            assert list(pixels.region) == [0, 0, width, height]
            x1, y1, x2, y2 = cells.region
            reference = maps.enlarge(maps.decode(cells), (x1, y1, x2, y2), width, height)
            step = 0 if encoding == "f32" else (reference.max() - reference.min()) / 255
            np.testing.assert_allclose(maps.decode(pixels), reference, atol=step / 2 + 1e-6)

    def test_maps_that_would_be_too_large_are_refused(self, http: httpx.Client, live: Live) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (2400, 2400)).save(buffer, "PNG")
        body = {
            "image": b64(buffer.getvalue()),
            "select": {"score_threshold": 0, "max_detections": 3},
            "output": {"size": "image", "encoding": "f32"},
        }
        response = post(http, live, json=body)
        assert fault(response) == (422, "response_too_large", "output.size")
        assert "output.size=feature" in response.json()["detail"]

    def test_one_map_can_be_had_as_a_picture(self, http: httpx.Client, live: Live, picture: bytes) -> None:
        query = {**FIRST_QUERY, "select.max_detections": "1", "targets": "x1"}
        response = post(http, live, content=picture, params=query, headers={"Accept": "image/png"})
        assert response.headers["Content-Type"] == "image/png"
        assert response.headers["X-Request-Id"]
        drawn = Image.open(io.BytesIO(response.content))
        original = Image.open(io.BytesIO(picture))
        assert (drawn.size, drawn.mode) == (original.size, "RGB")
        assert np.abs(np.asarray(drawn, int) - np.asarray(original, int)).max() > 20

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ({"targets": ["class", "x1"]}, "targets"),
            ({"select.max_detections": "2", "select.score_threshold": "0"}, "select"),
            ({"select.score_threshold": "1"}, "select"),
        ],
    )
    def test_a_picture_shows_one_map(
        self, http: httpx.Client, live: Live, picture: bytes, query: dict[str, Any], field: str
    ) -> None:
        response = post(http, live, content=picture, params=query, headers={"Accept": "image/png"})
        assert fault(response) == (400, "invalid_argument", field)

    @pytest.mark.parametrize(
        ("verb", "accept", "expected"),
        [
            ("detect", "image/png", (406, "not_acceptable", "Accept")),
            ("explain", "text/html", (406, "not_acceptable", "Accept")),
            ("detect", "text/event-stream", (406, "not_acceptable", "Accept")),
        ],
    )
    def test_an_answer_that_cannot_be_had(
        self,
        http: httpx.Client,
        live: Live,
        picture: bytes,
        verb: str,
        accept: str,
        expected: tuple[int, str, str],
    ) -> None:
        assert fault(post(http, live, verb, content=picture, headers={"Accept": accept})) == expected


class TestHeaders:
    """Request ids and time limits."""

    @pytest.mark.parametrize("given", ["a", "trace/42 ~ok!", "x" * 128])
    def test_a_request_id_comes_back(self, http: httpx.Client, live: Live, given: str) -> None:
        for path, status in (
            ("/healthz", 200),
            ("/v1/models", 200),
            ("/v1/models/none", 404),
            ("/none", 404),
        ):
            response = http.get(path, headers={"X-Request-Id": given})
            assert (response.status_code, response.headers["X-Request-Id"]) == (status, given)
        assert (
            over_grpc(live.target, "ListModels", {}, metadata=(("x-request-id", given),)).request_id == given
        )
        assert over_grpc(live.target, "GetModel", {}, metadata=(("x-request-id", given),)).request_id == given

    def test_a_request_without_an_id_gets_one(self, http: httpx.Client, live: Live) -> None:
        ids = {http.get("/v1/models").headers["X-Request-Id"] for _ in range(2)}
        ids |= {over_grpc(live.target, rpc, {}).request_id for rpc in ("ListModels", "GetModel")}
        assert len(ids) == 4
        assert all(re.fullmatch("[0-9a-f]{32}", made) for made in ids)

    @pytest.mark.parametrize("given", [b"", b"x" * 129, b"tab\there", "naïve".encode()])
    def test_an_unusable_request_id_is_refused(self, http: httpx.Client, given: bytes) -> None:
        response = http.get("/v1/models", headers={b"X-Request-Id": given})
        assert fault(response) == (400, "invalid_argument", "X-Request-Id")
        assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])

    def test_an_unusable_request_id_is_refused_over_grpc(self, live: Live) -> None:
        outcome = over_grpc(live.target, "ListModels", {}, metadata=(("x-request-id", "x" * 129),))
        assert (outcome.error["type"], outcome.error["field"]) == ("invalid_argument", "x-request-id")

    @pytest.mark.parametrize("given", ["", "soon", "0", "-1", "nan", "inf", "1e400"])
    def test_an_unusable_time_limit_is_refused(self, http: httpx.Client, given: str) -> None:
        response = http.get("/v1/models", headers={"X-Request-Timeout": given})
        assert fault(response) == (400, "invalid_argument", "X-Request-Timeout")

    def test_a_time_limit_holds(self, http: httpx.Client, live: Live, picture: bytes) -> None:
        response = post(http, live, content=picture, headers={"X-Request-Timeout": "0.00001"})
        assert fault(response) == (504, "deadline_exceeded", "")
        error = over_grpc(
            live.target, "Explain", {"model": live.model, "image": b64(picture)}, timeout=0.00001
        ).error
        assert error["type"] in ("deadline_exceeded", "DEADLINE_EXCEEDED")  # ours or, sooner, gRPC's own

    def test_a_generous_time_limit_is_cut(self, http: httpx.Client, live: Live, picture: bytes) -> None:
        response = post(http, live, "detect", content=picture, headers={"X-Request-Timeout": "1e9"})
        assert rest_outcome(response).answer


class TestAddresses:
    """What is there, what is not, and what is not yet."""

    @pytest.mark.parametrize(
        ("verb", "path"),
        [
            ("GET", "/v1"),
            ("GET", "/v1/models/"),
            ("POST", "/v1/models/a:dance"),
            ("GET", "/v1/models/a/b"),
            ("POST", "/v1/models/:detect"),
            ("GET", "/v1/%00"),
            ("GET", "/v1/models/a%2Fb"),
        ],
    )
    def test_nothing_there(self, http: httpx.Client, verb: str, path: str) -> None:
        assert fault(http.request(verb, path)) == (404, "not_found", "")

    @pytest.mark.parametrize(
        ("verb", "path", "allowed"),
        [
            ("DELETE", "/v1/models", "GET"),
            ("POST", "/v1/models", "GET"),
            ("GET", "/v1/models/a:detect", "POST"),
            ("PUT", "/v1/models/a:explain", "POST"),
            ("POST", "/metrics", "GET"),
            ("OPTIONS", "/v1/models", "GET"),
        ],
    )
    def test_another_verb(self, http: httpx.Client, verb: str, path: str, allowed: str) -> None:
        response = http.request(verb, path)
        assert fault(response) == (405, "method_not_allowed", "")
        assert allowed in response.headers["Allow"]

    @pytest.mark.parametrize(
        "name", ["%ff", "%F0%9F%90%88", "x" * 3000, "..", "%2e%2e", "a%20b", "a?b", "a;b"]
    )
    def test_odd_names_are_unknown_models(self, http: httpx.Client, live: Live, name: str) -> None:
        response = http.get(f"{live.rest}/v1/models/{name}")
        assert response.status_code in (400, 404)
        assert rest_outcome(response).error

    def test_the_description_and_its_page_are_served(self, http: httpx.Client) -> None:
        described = http.get("/openapi.json").json()
        assert described["openapi"] == "3.1.0"
        assert "/v1/models/{model}:explain" in described["paths"]
        assert "swagger" in http.get("/docs").text.lower()

    def test_a_head_has_no_body(self, http: httpx.Client) -> None:
        response = http.head("/v1/models")
        assert (response.status_code, response.content) == (200, b"")

    def test_answers_compare(self) -> None:
        assert Outcome({"a": 1}, request_id="1") == Outcome({"a": 1}, request_id="2") != Outcome({"a": 2})
