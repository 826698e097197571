"""The corpus of bad inputs, on both transports: the same error, and the service goes on."""

from __future__ import annotations

from typing import Any

import pytest

from bad_inputs import BAD_INPUTS
from conftest import Live
from gateway_calls import b64, everywhere, over_grpc, over_rest
from gateway_samples import put
from test_pictures_live import worker_pids


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_a_bad_input_is_refused_alike_on_both_transports(live: Live, picture: bytes, name: str) -> None:
    bad = BAD_INPUTS[name]
    request: dict[str, Any] = {}
    if bad.rpc == "Explain":
        request = {"model": live.models[-1], "image": b64(picture), "select": {"score_threshold": 0.0}}
    if bad.rpc == "Evaluate":
        asked = {"model": live.models[-1], "image": b64(picture), "select": {"max_detections": 1}}
        request = {"explain": asked}
    for path, value in bad.change.items():
        put(request, path, value)
    if bad.headers:
        rest = over_rest(live.rest, bad.rpc, request, **bad.headers)
        metadata = tuple((header.lower(), value) for header, value in bad.headers.items())
        rpc = over_grpc(live.target, bad.rpc, request, metadata=metadata)
        # Each transport names the header as it writes it.
        assert rest.error["type"] == rpc.error["type"] == bad.type
        assert (rest.error["field"].lower(), rpc.error["field"]) == (bad.field.lower(), bad.field.lower())
        return
    outcome = everywhere(live, bad.rpc, request)
    assert (outcome.error["type"], outcome.error["field"]) == (bad.type, bad.field)
    assert bad.says in outcome.error["message"]
    assert len("".join(outcome.error.values())) < 2000


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_deadline_that_is_none_is_refused(live: Live, picture: bytes, seconds: str) -> None:
    request = {"model": live.model, "image": b64(picture)}
    outcome = over_rest(live.rest, "Detect", request, **{"X-Request-Timeout": seconds})
    assert (outcome.error["type"], outcome.error["field"]) == ("invalid_argument", "X-Request-Timeout")


def test_a_deadline_that_has_passed_ends_alike(live: Live, picture: bytes) -> None:
    request = {"model": live.model, "image": b64(picture)}
    rest = over_rest(live.rest, "Detect", request, **{"X-Request-Timeout": "0.000001"})
    rpc = over_grpc(live.target, "Detect", request, timeout=0.000001)
    assert rest.error["type"] == "deadline_exceeded"
    assert rpc.error["type"] in (
        "deadline_exceeded",
        "DEADLINE_EXCEEDED",
    )  # the client's own clock may be first


def test_no_worker_was_lost(live: Live, picture: bytes) -> None:
    before = worker_pids(live)
    for name in BAD_INPUTS:
        test_a_bad_input_is_refused_alike_on_both_transports(live, picture, name)
    assert worker_pids(live) == before
