"""The client's layout inversions against a real gateway, in front of a TorchServe that is played."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobs_parts import LAYOUT, MODEL, Gateway, PlayedTorchServe, eventually, gateway
from whybox_client import AsyncClient, Client, InversionJob, Layout, errors
from whybox_client.images import Picture

SHORT: dict[str, Any] = {"iterations": 12, "pause": 0.0}
LONG: dict[str, Any] = {"iterations": 5000, "pause": 0.005}
PATIENCE_S = 100.0


@pytest.fixture(scope="module")
def played() -> Iterator[PlayedTorchServe]:
    with PlayedTorchServe() as torchserve:
        yield torchserve


@pytest.fixture(scope="module")
def running(played: PlayedTorchServe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("gateway"), played.url, WHYBOX_JOBS_RUNNING="4") as started:
        yield started


def urls(running: Gateway) -> tuple[str, str]:
    return running.rest, f"grpc://{running.grpc}"


@pytest.fixture(params=[0, 1], ids=["rest", "grpc"])
def client(running: Gateway, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(urls(running)[request.param], timeout=PATIENCE_S) as made:
        yield made


def start(client: Client, params: dict[str, Any], **more: Any) -> InversionJob:
    return client.invert(LAYOUT, model=MODEL, params=params, **more)


def test_a_job_from_its_start_to_its_result(
    client: Client, running: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    job = start(client, SHORT, seed=3, priority=5)
    result = job.wait(progress=True)
    assert (job.state, job.progress.iteration, job.progress.iterations) == ("succeeded", 12, 12)
    assert "12/12" in capsys.readouterr().err
    assert result.layout == Layout.from_dict(LAYOUT)
    assert (result.seed, result.params["iterations"]) == (3, 12)
    assert result.source is not None
    assert result.source.data == running.picture(job.name).content
    assert job.image().tobytes() == result.image.tobytes()
    again = client.inversion(job.id)
    assert again.result == result
    assert again.result is not None
    assert again.result.image.tobytes() == result.image.tobytes()
    assert again.inversion == job.inversion
    assert again.inversion.create_time is not None
    listed = next(one for one in client.inversions("succeeded") if one.name == job.name)
    assert listed.inversion.match == result.match
    job.delete()
    with pytest.raises(errors.UnknownInversionError):
        job.refresh()


def test_both_transports_and_both_clients_tell_the_same(running: Gateway) -> None:
    def waiting(url: str) -> Any:
        with Client(url) as client:
            job = start(client, SHORT, seed=4)
            return list(job.watch())[-1], job.wait()

    async def awaiting(url: str) -> Any:
        async with AsyncClient(url) as client:
            job = await client.invert(LAYOUT, model=MODEL, params=SHORT, seed=4)
            return [event async for event in job.watch()][-1], await job.wait()

    told = []
    for url in urls(running):
        for event, result in (waiting(url), asyncio.run(awaiting(url))):
            assert event.source.data == result.source.data
            told.append(({**result.to_dict(), "name": ""}, result.image.tobytes()))
    assert all(one == told[0] for one in told)


def test_the_same_key_is_the_same_job(client: Client) -> None:
    key = f"key of {client.url}"
    job = start(client, SHORT, idempotency_key=key)
    assert start(client, SHORT, idempotency_key=key).name == job.name
    with pytest.raises(errors.ConflictError) as caught:
        start(client, SHORT, idempotency_key=key, seed=9)
    assert caught.value.field == "idempotency_key"


def test_one_is_cancelled(client: Client, running: Gateway) -> None:
    job = start(client, LONG)
    with closing(job.watch()) as events:
        assert any(event.image is not None for event in events)
    assert job.cancel().state == "cancelled"
    job.cancel()
    with pytest.raises(errors.InversionCancelledError):
        job.wait()
    assert job.image().tobytes() == Picture(running.picture(job.name).content).pixels.tobytes()
    done = start(client, SHORT)
    done.wait()
    with pytest.raises(errors.InversionEndedError):
        done.cancel()
    job.delete()


def test_one_fails(client: Client) -> None:
    job = start(client, {**SHORT, "fail_at": 2})
    with pytest.raises(errors.InversionFailedError, match=f"{job.name} failed: "):
        job.wait()
    assert job.error is not None
    assert client.inversion(job.name).error is not None


@pytest.mark.parametrize(
    ("change", "kind", "field"),
    [
        ({"model": "playd"}, errors.UnknownModelError, "model"),
        ({"params": {"iteration": 3}}, errors.UnknownParameterError, "params.iteration"),
        ({"params": {"iterations": 0}}, errors.InvalidArgumentError, "params.iterations"),
        ({"preset": "papr"}, errors.RequestError, "params.preset"),
        ({"priority": 10}, errors.InvalidArgumentError, "priority"),
        ({"layout": {**LAYOUT, "objects": []}}, errors.InvalidArgumentError, "layout.objects"),
        (
            {"layout": {**LAYOUT, "objects": [{"label": "thin", "box": [4, 4, 30, 40]}]}},
            errors.UnknownLabelError,
            "layout.objects[0].label",
        ),
        (
            {"layout": {**LAYOUT, "objects": [{"label": "thing", "box": [4, 4, 3, 40]}]}},
            errors.InvalidArgumentError,
            "layout.objects[0].box",
        ),
    ],
)
def test_what_is_refused(client: Client, change: dict[str, Any], kind: type[Exception], field: str) -> None:
    with pytest.raises(kind) as caught:
        client.invert(**{"layout": LAYOUT, "model": MODEL, **change})
    assert caught.value.field == field  # type: ignore[attr-defined]


@pytest.mark.parametrize("transport", [0, 1], ids=["rest", "grpc"])
def test_a_watch_outlives_a_gateway_that_is_killed(transport: int, tmp_path: Path) -> None:
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    with (
        PlayedTorchServe() as torchserve,
        gateway(
            tmp_path,
            torchserve.url,
            WHYBOX_PORT=str(ports[0]),
            WHYBOX_GRPC_PORT=str(ports[1]),
        ) as started,
        Client(urls(started)[transport], timeout=PATIENCE_S) as client,
    ):
        job = start(client, {"iterations": 200, "pause": 0.005})
        ids, killed = [], False
        for event in job.watch(timeout=PATIENCE_S):
            ids.append(int(event.id))
            if event.progress.iteration and not killed:
                killed = True
                started.kill()
                started.start()
                eventually(lambda: client.ready(timeout=1))
        assert killed
        assert ids == sorted(set(ids))
        result = job.wait()
        assert result.losses
        assert job.progress.iteration == 200
