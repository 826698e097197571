"""A batch that asks for more than the service can hold: all is answered in the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Live, serving
from test_gateway_backend import pack
from whybox_client import Client, Detections, errors

IMAGES = [b"sleep 0.3"] * 8
CONCURRENCY = 8


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A model of one worker that takes a second for each image, and a gateway that lets two wait."""
    store = tmp_path_factory.mktemp("small_store")
    pack("slow", Path(__file__).with_name("faulty_worker.py"), store)
    env = {"WHYBOX_MAX_WAITING": "2"}
    with serving(store, tmp_path_factory.mktemp("small"), env=env) as running:
        yield running


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_batch_waits_its_turn(small: Live, transport: str) -> None:
    url = getattr(small, transport)
    with Client(url, timeout=120) as client:
        hasty = list(
            client.detect_many("slow", IMAGES, on_error="return", concurrency=CONCURRENCY, retries=0)
        )
        refused = [answer for answer in hasty if isinstance(answer, errors.OverloadedError)]
        assert refused, "the service holds it all: ask for more"
        odd = [a for a in hasty if not isinstance(a, Detections | errors.OverloadedError)]
        assert odd == []
        assert all(answer.retry_after for answer in refused)
        patient = list(client.detect_many("slow", IMAGES, concurrency=CONCURRENCY, retries=100))
    assert len(patient) == len(IMAGES)
