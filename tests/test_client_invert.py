"""Layout inversions in the client: started once, followed over breaks, the same on both transports."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import re
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inversion_stand_in import LOSSES, Desk, H, LostError, W, layout, picture, rest, result, rpc
from test_client_requests import Canned, client_of, set_fields
from whybox_client import (
    AsyncClient,
    AsyncInversionJob,
    Client,
    Inversion,
    InversionEvent,
    InversionJob,
    InversionProgress,
    InversionResult,
    Invertible,
    Layout,
    LayoutMatch,
    LayoutObject,
    LossCurve,
    Preset,
    errors,
    flows,
)
from whybox_client.images import Picture
from whybox_client.retrying import Backoff
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2

PATIENCE_S = 30.0
NO_WAIT = Backoff(uniform=lambda _low, _high: 0.0)
FULL = ContractError("overloaded", "the queue is full", retry_after=0.01)
LAYOUT = Layout.from_message(layout())


def sync(url: str, work: Callable[[Any], Any], *, timeout: float = PATIENCE_S) -> Any:
    """Do some work with a client, written for asyncio: what it awaits is there at once."""
    with Client(url, timeout=timeout) as client:
        client._backoff = NO_WAIT

        async def go() -> Any:
            return await work(_Awaited(client))

        return asyncio.run(go())


def awaited(url: str, work: Callable[[Any], Any], *, timeout: float = PATIENCE_S) -> Any:
    async def go() -> Any:
        async with AsyncClient(url, timeout=timeout) as client:
            client._backoff = NO_WAIT
            return await work(client)

    return asyncio.run(go())


class _Awaited:
    """A client or a job that waits, with the interface of the one that is awaited."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            if name in ("watch", "inversions"):
                return _iterated(found(*args, **kwargs))

            async def there() -> Any:
                answer = found(*args, **kwargs)
                if answer is self.inner:
                    return self
                return _Awaited(answer) if isinstance(answer, InversionJob) else answer

            return there()

        return call


async def _iterated(items: Any) -> Any:
    try:
        for item in items:
            yield _Awaited(item) if isinstance(item, InversionJob) else item
    finally:
        items.close()


@pytest.fixture(params=[sync, awaited], ids=["sync", "async"])
def using(request: pytest.FixtureRequest) -> Callable[..., Any]:
    kind: Callable[..., Any] = request.param
    return kind


@pytest.fixture(params=[rest, rpc], ids=["rest", "grpc"])
def serve(request: pytest.FixtureRequest) -> Callable[[Desk], Any]:
    kind: Callable[[Desk], Any] = request.param
    return kind


def shade(image: Image.Image | None) -> int:
    assert image is not None
    assert image.size == (W, H)
    return int(np.asarray(image)[0, 0, 0])


EVERYTHING: dict[str, Any] = {
    "model": "signs",
    "preset": "paper",
    "params": {"iterations": 30, "learning_rate": 0.5, "single": True, "losses": "cls"},
    "seed": 7,
    "image": b"picture",
    "priority": 9,
    "idempotency_key": "mine",
}


class TestStart:
    def test_every_field_of_the_contract_can_be_set(self) -> None:
        transport = Canned(lambda _: explainer_pb2.Inversion(name="inversions/1", state="queued"))
        client_of(transport).invert(LAYOUT, **EVERYTHING, timeout=3, request_id="id")
        ((call, seconds),) = transport.calls
        descriptor = explainer_pb2.CreateInversionRequest.DESCRIPTOR
        assert set_fields(call.request) == {f.name for f in descriptor.fields}
        assert (call.request_id, seconds) == ("id", 3)
        expected = explainer_pb2.CreateInversionRequest(
            model="signs", layout=layout(), seed=7, image=b"picture", priority=9, idempotency_key="mine"
        )
        expected.params.update({"preset": "paper", **EVERYTHING["params"]})
        assert call.request == expected

    def test_it_arrives_and_a_job_comes_back(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            return await client.invert(LAYOUT.to_dict(), **EVERYTHING)

        desk = Desk()
        with serve(desk) as url:
            job = using(url, work)
        (request,) = desk.asked_of("CreateInversion")
        assert request.layout == layout()
        assert (job.name, job.id) == (f"inversions/{1:032x}", f"{1:032x}")
        assert (job.state, job.ended, job.result, job.error) == ("queued", False, None, None)
        told = job.inversion
        assert (told.model, told.seed, told.priority, told.idempotency_key) == ("signs", 7, 9, "mine")
        assert told.params == {"preset": "paper", **EVERYTHING["params"]}
        assert told.layout == LAYOUT
        assert told.create_time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def test_an_answer_that_is_lost_starts_no_second_job(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            return [await client.invert(LAYOUT, model="signs") for _ in range(2)]

        desk = Desk()
        desk.fails["CreateInversion"] = [LostError(), FULL]
        with serve(desk) as url:
            jobs = using(url, work)
        first, *again, second = (r.idempotency_key for r in desk.asked_of("CreateInversion"))
        assert len(desk.jobs) == 2
        assert set(again) == {first}
        assert first != second != ""
        assert [job.name for job in jobs] == list(desk.jobs)

    def test_without_a_key_it_is_asked_once(self, serve: Any, using: Any) -> None:
        desk = Desk()
        desk.fails["CreateInversion"] = [LostError()]
        with serve(desk) as url, pytest.raises(errors.ConnectionFailedError):
            using(url, lambda client: client.invert(LAYOUT, model="signs", idempotency_key=""))
        assert len(desk.asked) == 1

    @pytest.mark.parametrize(
        ("refusal", "kind"),
        [
            (ContractError("idempotency_conflict", "another request"), errors.ConflictError),
            (ContractError("unknown_label", "no", field="layout.objects[0].label"), errors.UnknownLabelError),
        ],
    )
    def test_refusals_have_their_class(
        self, serve: Any, using: Any, refusal: ContractError, kind: type[errors.WhyboxError]
    ) -> None:
        desk = Desk()
        desk.fails["CreateInversion"] = [refusal]
        with serve(desk) as url, pytest.raises(kind) as caught:
            using(url, lambda client: client.invert(LAYOUT, model="signs"))
        assert (caught.value.field, len(desk.asked)) == (refusal.field, 1)

    def test_what_cannot_be_sent_is_told_before_anything_is(self) -> None:
        with Client("http://127.0.0.1:9") as client:
            for kind, told, change in (
                (ValueError, "seed: ", {"seed": -1}),
                (TypeError, "priority: ", {"priority": "high"}),
                (
                    ValueError,
                    r"objects\[0\]\.box: ",
                    {"layout": {"width": 1, "height": 1, "objects": [{"label": "a"}]}},
                ),
                (ValueError, "contradict each other: 'a', 'b'", {"preset": "a", "params": {"preset": "b"}}),
                (TypeError, "an image is a path", {"image": 3}),
                (ValueError, "params", {"params": {"a": object()}}),
            ):
                with pytest.raises(kind, match=told):
                    client.invert(**{"layout": LAYOUT, "model": "signs", **change})

    @pytest.mark.parametrize("name", ["", "inversions/", "a/b", "inversions/..", ".", "models/a"])
    def test_what_names_no_inversion(self, name: str) -> None:
        with Client("http://127.0.0.1:9") as client, pytest.raises(ValueError, match="named inversions/ID"):
            client.inversion(name)


class TestResult:
    def test_it_is_typed_and_the_same_on_both_transports(self, using: Any) -> None:
        async def work(client: Any) -> Any:
            job = await client.invert(LAYOUT, model="signs", seed=7)
            return job, await job.wait()

        told = []
        for serve in (rest, rpc):
            with serve(Desk()) as url:
                job, found = using(url, work)
            assert job.result is found
            assert (job.state, job.progress) == ("succeeded", InversionProgress(30, 30, LOSSES, 2))
            assert [str(detection) for detection in found.detections] == ["stop 0.98", "yield 0.90"]
            assert found.match == LayoutMatch(0.96, 1, 0.875, 1, 0)
            assert str(found.match) == "mean IoU 0.96, recall 1.00, AP 0.88, AP50 1.00, 0 unmatched"
            assert found.losses["cls"] == LossCurve("cls", (1, 2, 3), (2, 1, 0.5))
            assert found.params == {
                "iterations": 30,
                "learning_rate": 0.5,
                "preset": "paper",
                "single": False,
            }
            assert [type(found.params[name]) for name in ("iterations", "single")] == [int, bool]
            assert (found.seed, found.layout) == (7, LAYOUT)
            assert shade(found.image) == 250
            told.append((found.to_dict(), found.image.tobytes(), job.inversion.to_dict()))
        assert told[0][0] == told[1][0]
        assert told[0][1] == told[1][1]
        json.dumps([job for _, _, job in told])

    def test_it_has_pictures(self, tmp_path: Any) -> None:
        message = explainer_pb2.Inversion(name="inversions/1", state="succeeded", result=result())
        message.request.layout.CopyFrom(layout())
        with_picture = InversionResult.from_message(message, Picture(picture(250)))
        side = 320 + 8
        assert with_picture.picture().size == (8 + 4 * side, 8 + 22 + 240 + 8 + 22)
        assert with_picture.plot_losses().size == (640, 400)
        with_picture.save(tmp_path / "result.png")
        with Image.open(io.BytesIO(with_picture._repr_png_())) as shown:
            assert shown.size == with_picture.picture().size
        without = InversionResult.from_message(message, None)
        assert without.picture().size[0] == 8 + 2 * side
        with pytest.raises(ValueError, match="was not fetched: use its job's image"):
            _ = without.image
        assert without == with_picture
        assert repr(without).startswith("<InversionResult of inversions/1 by : mean IoU 0.96")

    def test_losses_of_any_kind_can_be_drawn(self) -> None:
        message = explainer_pb2.Inversion(state="succeeded", result=result())
        message.request.layout.CopyFrom(layout())
        del message.result.losses[:]
        assert InversionResult.from_message(message, None).plot_losses().size == (640, 400)
        message.result.losses.add(name="flat", iterations=[1], values=[0.5])
        message.result.losses.add(name="nothing", iterations=[1, 2], values=[0, -1])
        assert InversionResult.from_message(message, None).plot_losses().size == (640, 400)

    def test_what_contradicts_itself_cannot_be_read(self) -> None:
        message = explainer_pb2.Inversion(name="inversions/1", state="succeeded", result=result())
        message.result.losses.add(name="short", iterations=[1, 2], values=[1])
        with pytest.raises(errors.InvalidAnswerError, match="'short' has not a value for each"):
            client_of(Canned(lambda _: message)).inversion("1")

    def test_fields_are_documented(self) -> None:
        kinds = (
            *(Inversion, InversionEvent, InversionProgress, InversionResult, LayoutMatch, LossCurve),
            *(Layout, LayoutObject),
        )
        for kind in kinds:
            for name in kind.__dataclass_fields__:
                if name != "screen":
                    assert re.search(rf"\b{name}\b", kind.__doc__ or ""), f"{kind.__name__}.{name}"


class TestEnds:
    def test_a_job_that_fails(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            job = await client.inversion(name)
            with pytest.raises(errors.InversionFailedError) as caught:
                await job.wait()
            return job, caught.value

        desk = Desk()
        name = desk.put("queued").name
        desk.run(desk.jobs[name], "failed")
        desk.jobs[name].state = "queued"
        with serve(desk) as url:
            job, error = using(url, work)
        assert type(job.error) is errors.StorageError
        assert (error.type, error.field) == ("storage_failed", "image")
        assert error.message == f"{name} failed: the disk is full"
        assert job.inversion.to_dict()["error"]["type"] == "storage_failed"
        assert job.result is None

    def test_a_job_that_is_cancelled(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            job = await client.inversion(name)
            assert await job.cancel() is job
            assert job.state == "cancelled"
            with pytest.raises(errors.InversionCancelledError, match=f"{name} was cancelled"):
                await job.wait()
            await job.cancel()  # it is what was wanted already
            done = await client.inversion(other)
            with pytest.raises(errors.InversionEndedError):
                await done.cancel()

        desk = Desk()
        name, other = desk.put("running").name, desk.put("succeeded").name
        desk.fails["CancelInversion"] = [LostError()]
        with serve(desk) as url:
            using(url, work)

    def test_a_job_that_is_deleted(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            job = await client.inversion(name)
            assert await job.delete() is None
            for ask in (job.refresh, job.delete, job.wait, job.image, job.cancel):
                with pytest.raises(errors.UnknownInversionError):
                    await ask()

        desk = Desk()
        name = desk.put("running").name
        with serve(desk) as url:
            using(url, work)
        assert not desk.jobs

    def test_deleting_is_asked_once(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            job = await client.inversion(name)
            await job.delete()

        desk = Desk()
        name = desk.put("running").name
        desk.fails["DeleteInversion"] = [FULL]
        with serve(desk) as url, pytest.raises(errors.OverloadedError):
            using(url, work)
        assert len(desk.asked_of("DeleteInversion")) == 1


class TestLooking:
    def test_a_finished_job_is_found_with_its_picture(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            job = await client.inversion(name.removeprefix("inversions/"))
            found = shade(job.result.image), shade(await job.image())
            assert await job.refresh() is job
            return job, found, await job.wait()

        desk = Desk()
        name = desk.put("succeeded").name
        with serve(desk) as url:
            job, found, waited = using(url, work)
        assert found == (9, 9)
        assert waited is job.result
        assert {request.name for _, request in desk.asked} == {name}

    def test_there_may_be_no_picture_yet(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            return await (await client.inversion(name)).image()

        desk = Desk()
        name = desk.put("running").name
        with (
            serve(desk) as url,
            pytest.raises(errors.NotFoundError, match="has no picture yet: it is running"),
        ):
            using(url, work)

    def test_lists_are_read_page_by_page(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            every = [job async for job in client.inversions()]
            failed = [job.name async for job in client.inversions("failed")]
            async with aclosing(client.inversions()) as some:
                first = await anext(some)
            return every, failed, first, await every[0].wait()

        desk = Desk()
        names = [desk.put(state).name for state in ("failed", "queued", "failed", "running", "succeeded")]
        with serve(desk) as url:
            every, failed, first, waited = using(url, work)
        assert [job.name for job in every] == names[::-1]
        assert failed == [names[2], names[0]]
        assert first.name == names[-1]
        assert len(desk.asked_of("ListInversions")) == 3 + 1 + 1
        newest = every[0]
        assert newest.inversion.match == LayoutMatch(0.96, 1, 0.875, 1, 0)
        assert shade(waited.image) == 9
        assert newest.result is waited
        assert type(every[2].error) is errors.UnavailableError


class TestWatch:
    def test_events_come_in_order_with_previews(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            job = await client.invert(LAYOUT, model="signs")
            events, states = [], []
            async for event in job.watch():
                events.append(event)
                states.append((job.state, job.progress.iteration, len(job.inversion.layout.objects)))
            return events, states

        with serve(Desk()) as url:
            events, states = using(url, work)
        assert [event.id for event in events] == ["1", "2", "3", "4"]
        assert states == [("queued", 0, 2), ("running", 10, 2), ("running", 20, 2), ("succeeded", 30, 2)]
        assert events[0].image is None
        assert [shade(event.image) for event in events[1:]] == [100, 200, 250]
        assert events[2].progress.found == 1
        assert events[2].progress.losses == LOSSES
        assert str(events[0]) == f"{events[0].inversion.name} queued"
        assert str(events[2]).endswith(" running: iteration 20 of 30, 1 objects found")
        assert shade(events[-1].inversion.result.image) == 250

    @pytest.mark.parametrize(
        "how", [None, ContractError("backend_unavailable", "the service stops", retry_after=0.01)]
    )
    def test_a_broken_connection_is_made_anew_behind_the_last_event(
        self, serve: Any, using: Any, how: ContractError | None
    ) -> None:
        async def work(client: Any) -> Any:
            job = await client.invert(LAYOUT, model="signs")
            return [event.id async for event in job.watch()]

        desk = Desk()
        desk.breaks = {"1": how, "3": how}
        desk.fails["WatchInversion"] = [FULL, FULL, FULL]
        with serve(desk) as url:
            assert using(url, work) == ["1", "2", "3", "4"]
        behind = [request.last_event_id for request in desk.asked_of("WatchInversion")]
        assert behind == ["", "", "", "", "1", "3"]

    def test_what_is_no_break_ends_it(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            job = await client.invert(LAYOUT, model="signs")
            async for _ in job.watch():
                pass

        desk = Desk()
        desk.breaks = {"2": ContractError("unknown_inversion", "deleted")}
        with serve(desk) as url, pytest.raises(errors.UnknownInversionError):
            using(url, work)
        assert len(desk.asked_of("WatchInversion")) == 1

    def test_a_service_that_stays_away_is_given_up(self, serve: Any) -> None:
        desk = Desk()
        with serve(desk) as url:
            client = Client(url, timeout=0.3)
            client._backoff = Backoff(uniform=lambda _low, _high: 0.05)
            job = client.invert(LAYOUT, model="signs")
            desk.breaks = {"1": None}
            events = job.watch()
            assert next(events).id == "1"
        with client, pytest.raises(errors.ConnectionFailedError):
            next(events)

    def test_a_connection_on_which_nothing_comes_is_made_anew(
        self, serve: Any, using: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def work(client: Any) -> Any:
            job = await client.inversion(name)
            return [event.id async for event in job.watch()]

        desk = Desk()
        name = desk.put("queued").name
        watch = desk.watch

        def counted(request: Any) -> Any:
            if len(desk.asked_of("WatchInversion")) == 2:
                desk.run(desk.jobs[name])
            return watch(request)

        desk.watch = counted  # type: ignore[method-assign]
        monkeypatch.setattr(flows, "_CONNECTION_S", 0.6)
        monkeypatch.setattr("whybox_client.transports.rest._GRACE_S", 0.0)
        with serve(desk) as url:
            assert using(url, work) == ["1", "2", "3", "4"]
        behind = [request.last_event_id for request in desk.asked_of("WatchInversion")]
        assert behind == ["", "1", "1"]

    def test_the_time_is_for_all_of_it_and_the_job_goes_on(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            job = await client.inversion(name)
            with pytest.raises(errors.DeadlineExceededError):
                await job.wait(timeout=0.4)
            return job

        desk = Desk()
        name = desk.put("running").name
        with serve(desk) as url:
            assert using(url, work).state == "running"

    def test_what_is_left_of_the_time(self) -> None:
        now = 100.0
        watching = flows.watch_inversion("inversions/a", 1000, clock=lambda: now)
        message = explainer_pb2.InversionEvent(
            id="3", inversion=explainer_pb2.Inversion(name="inversions/a", state="running")
        )
        event, late = InversionEvent.from_message(message), errors.DeadlineExceededError("late")
        assert watching.resume is not None
        assert watching.call.lasting == 300
        now += 800
        call = watching.resume(event, late)
        assert call.lasting == 200
        assert call.request == explainer_pb2.WatchInversionRequest(name="inversions/a", last_event_id="3")
        now += 200
        with pytest.raises(errors.DeadlineExceededError, match="a is running after 1000 s, and goes on"):
            watching.resume(event, late)

    def test_a_time_that_cannot_be(self, using: Any) -> None:
        async def work(client: Any) -> Any:
            await (await client.inversion(name)).wait(timeout=0)

        desk = Desk()
        name = desk.put("running").name
        with rest(desk) as url, pytest.raises(ValueError, match="timeout is a number of seconds above 0"):
            using(url, work)

    def test_leaving_it_leaves_the_job(self, serve: Any, using: Any) -> None:
        async def work(client: Any) -> Any:
            job = await client.invert(LAYOUT, model="signs")
            async with aclosing(job.watch()) as events:
                await anext(events)
            return job

        desk = Desk()
        with serve(desk) as url:
            using(url, work)
        assert not desk.asked_of("CancelInversion")

    def test_a_terminal_gets_a_line_for_each(self, capsys: pytest.CaptureFixture[str]) -> None:
        with rest(Desk()) as url, Client(url) as client:
            for event in client.invert(LAYOUT, model="signs").watch():
                event.show()
                assert event._repr_png_()[:4] == b"\x89PNG"
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 4
        assert lines[-1].endswith("succeeded: iteration 30 of 30, 2 objects found")

    def test_waiting_shows_how_far_it_is(self, using: Any, capsys: pytest.CaptureFixture[str]) -> None:
        async def work(client: Any) -> Any:
            return await (await client.invert(LAYOUT, model="signs")).wait(progress=True)

        with rest(Desk()) as url:
            using(url, work)
        assert "30/30" in capsys.readouterr().err


def test_a_model_says_how_it_is_inverted() -> None:
    message = types_pb2.Model(name="signs")
    assert client_of(Canned(lambda _: message)).model("signs").inversion is None
    told = types_pb2.Invertible(max_pixels=500, min_side=32, max_objects=20, masks=True)
    told.params.add(name="iterations", type="integer").default_value.number_value = 600
    told.presets.add(name="paper", description="As published.").params.update({"iterations": 1000, "tv": 0.5})
    message.inversion.CopyFrom(told)
    model = client_of(Canned(lambda _: message)).model("signs")
    assert isinstance(model.inversion, Invertible)
    assert model.inversion.presets == (Preset("paper", "As published.", {"iterations": 1000, "tv": 0.5}),)
    assert model.inversion.params[0].default == 600
    limits = model.inversion
    assert (limits.max_pixels, limits.min_side, limits.max_objects, limits.masks) == (500, 32, 20, True)
    assert hash(model) == hash(client_of(Canned(lambda _: message)).model("signs"))


def test_both_kinds_of_jobs_have_the_same_methods() -> None:
    public = {name for name in vars(InversionJob) if not name.startswith("_")}
    assert public == {name for name in vars(AsyncInversionJob) if not name.startswith("_")}
    for one, other, names in (
        (InversionJob, AsyncInversionJob, public),
        (Client, AsyncClient, ("invert", "inversion", "inversions")),
    ):
        for name in names:
            blocking, awaited = getattr(one, name), getattr(other, name)
            assert blocking.__doc__, name
            assert awaited.__doc__, name
            ours, theirs = (
                list(inspect.signature(method).parameters.values()) for method in (blocking, awaited)
            )
            assert ours == theirs, name
