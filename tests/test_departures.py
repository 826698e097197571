"""How workers learn that a client has gone."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from builders import encoded, random_image, write_recipe
from whybox.engine import Engine
from whybox.patience import NobodyWaitsError, Patience
from whybox.recipe import read_recipe
from whybox_proto.departures import VARIABLE, Departures
from whybox_proto.v1 import explainer_pb2, worker_pb2


def new_id() -> str:
    return uuid.uuid4().hex


def test_what_one_side_tells_the_other_learns(tmp_path: Path) -> None:
    gateway, worker = Departures(tmp_path), Departures(tmp_path)
    call, other = new_id(), new_id()
    gateway.tell(call)
    assert worker.told(call)
    assert not worker.told(other)
    gateway.forget(call)
    assert not worker.told(call)
    assert not list(tmp_path.iterdir())
    gateway.forget(call)  # twice is once


@pytest.mark.parametrize(
    "call", ["", "..", "../" + "a" * 29, "/etc/passwd", "A" * 32, "a" * 31, "a" * 33, "a" * 32 + "\n"]
)
def test_only_our_own_ids_become_files(tmp_path: Path, call: str) -> None:
    Departures(tmp_path).tell(call)
    assert not list(tmp_path.iterdir())
    assert not Departures(tmp_path).told(call)


def test_without_a_folder_or_with_a_lost_one_nothing_is_told(tmp_path: Path) -> None:
    for departures in (Departures(None), Departures(tmp_path / "gone")):
        call = new_id()
        departures.tell(call)
        assert not departures.told(call)
        departures.forget(call)


def test_patience_ends_with_the_deadline_or_the_client(tmp_path: Path) -> None:
    departures = Departures(tmp_path)
    call = new_id()
    patience = Patience(time.time() + 600, call, departures)
    patience.check()
    departures.tell(call)
    with pytest.raises(NobodyWaitsError, match="client has gone"):
        patience.check()
    with pytest.raises(NobodyWaitsError, match="deadline has passed"):
        Patience(time.time() - 1).check()
    Patience().check()


def test_work_for_a_client_that_left_is_dropped_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "departures"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    path = write_recipe(tmp_path, "retinanet")
    engine = Engine.load(read_recipe(path), path.with_suffix(".safetensors"))
    request = worker_pb2.WorkerRequest(
        explain=explainer_pb2.ExplainRequest(image=encoded(random_image())), call_id=new_id()
    )
    taps = engine.detector.taps

    def leave(*arguments: Any, **options: Any) -> object:
        Departures(folder).tell(request.call_id)
        return taps(*arguments, **options)

    monkeypatch.setattr(engine.detector, "taps", leave)
    (reply,) = engine.answer([request])
    assert reply.error.type == "deadline_exceeded"
    assert "client has gone" in reply.error.message
