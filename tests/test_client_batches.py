"""Many images at once: bounded, in order, errors raised or returned, and over at once when that is asked."""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import grpc
import pytest
from PIL import Image

from test_client_errors import abort_with, answer, grpc_server, problem, status_of, web
from whybox_client import AsyncClient, Client, Detections, Explanation, batches, errors, flows, image_files
from whybox_proto.errors import ContractError, to_problem
from whybox_proto.v1 import explainer_pb2

PROTOBUF = "application/x-protobuf"
PATIENCE_S = 30.0


class Service:
    """Answers `detect` with the image it got as its warning; `wish` says what else happens."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.under_way = 0
        self.most = 0
        self.seen: list[bytes] = []
        self.gone = 0
        self.released = threading.Event()
        self.arrived = threading.Semaphore(0)

    def detect(self, body: bytes) -> explainer_pb2.DetectResponse | ContractError:
        image = explainer_pb2.DetectRequest.FromString(body).image
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.seen.append(image)
        self.arrived.release()
        try:
            wish, _, amount = image.decode().partition(" ")
            if wish == "sleep":
                time.sleep(float(amount))
            if wish == "hang":
                self.released.wait(PATIENCE_S)
            if wish == "bad":
                return ContractError("invalid_image", "no picture", field="image")
            if wish == "full" and self.seen.count(image) < 2:
                return ContractError("overloaded", "full", retry_after=0.05)
            return explainer_pb2.DetectResponse(model="signs", warnings=[image.decode()])
        finally:
            with self.lock:
                self.under_way -= 1

    def over_rest(self, handler: Any) -> None:
        outcome = self.detect(handler.body)
        if isinstance(outcome, ContractError):
            refusal = to_problem(outcome)
            problem(**{"type_uri": refusal.pop("type"), **refusal})(handler)
        else:
            answer(200, PROTOBUF, outcome.SerializeToString())(handler)

    def over_grpc(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        def left() -> None:
            with self.lock:
                self.gone += 1

        context.add_callback(left)
        outcome = self.detect(body)
        if isinstance(outcome, ContractError):
            return abort_with(status_of(outcome, ""))(body, context)
        return outcome.SerializeToString()


@contextmanager
def running(service: Service, transport: str) -> Iterator[str]:
    server = web(service.over_rest) if transport == "rest" else grpc_server(service.over_grpc)
    with server as at:
        try:
            yield at if isinstance(at, str) else at.url
        finally:
            service.released.set()


@pytest.fixture(params=["rest", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def sync_many(url: str, images: Any, **settings: Any) -> list[Any]:
    with Client(url, timeout=PATIENCE_S) as client:
        return list(client.detect_many("signs", images, **settings))


def async_many(url: str, images: Any, **settings: Any) -> list[Any]:
    async def go() -> list[Any]:
        async with AsyncClient(url, timeout=PATIENCE_S) as client:
            return [found async for found in client.detect_many("signs", images, **settings)]

    return asyncio.run(go())


@pytest.fixture(params=[sync_many, async_many], ids=["sync", "async"])
def many(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    kind: Callable[..., list[Any]] = request.param
    return kind


def told(answers: list[Any]) -> list[str]:
    return [found.warnings[0] if isinstance(found, Detections) else type(found).__name__ for found in answers]


class TestBatch:
    def test_answers_come_in_the_order_of_the_images_and_bounded(
        self, transport: str, many: Callable[..., list[Any]]
    ) -> None:
        service = Service()
        with running(service, transport) as url:
            answers = many(url, [b"sleep 0.1"] * 6 + [b"a 1", b"a 2", b"sleep 0.05", b"a 3"], concurrency=3)
        assert told(answers) == ["sleep 0.1"] * 6 + ["a 1", "a 2", "sleep 0.05", "a 3"]
        assert service.most == 3

    def test_one_at_a_time(self, many: Callable[..., list[Any]]) -> None:
        service = Service()
        with running(service, "rest") as url:
            assert told(many(url, (b"sleep 0.02" for _ in range(5)), concurrency=1)) == ["sleep 0.02"] * 5
        assert service.most == 1

    def test_an_error_in_its_place(
        self, transport: str, many: Callable[..., list[Any]], tmp_path: Path
    ) -> None:
        images: list[Any] = [b"a", b"bad", tmp_path / "no.png", 3, b"b"]
        with running(Service(), transport) as url:
            answers = many(url, images, on_error="return")
        assert told(answers) == ["a", "InvalidImageError", "FileNotFoundError", "TypeError", "b"]

    def test_an_error_raised_says_of_which_image(
        self, transport: str, many: Callable[..., list[Any]], tmp_path: Path
    ) -> None:
        (tmp_path / "bad.png").write_bytes(b"bad")
        service = Service()
        with running(service, transport) as url, pytest.raises(errors.InvalidImageError) as info:
            many(url, [b"a", tmp_path / "bad.png", *[b"sleep 0.05"] * 100], concurrency=2)
        assert info.value.__notes__ == [f"image 1 of the batch ({tmp_path / 'bad.png'})"]
        assert len(service.seen) < 10

    def test_what_is_refused_for_now_is_asked_again(
        self, transport: str, many: Callable[..., list[Any]]
    ) -> None:
        service = Service()
        with running(service, transport) as url:
            assert told(many(url, [b"full 1", b"full 2", b"a"])) == ["full 1", "full 2", "a"]
        assert sorted(service.seen) == [b"a", b"full 1", b"full 1", b"full 2", b"full 2"]
        with running(Service(), transport) as url:
            answers = many(url, [b"full 1", b"a"], retries=0, on_error="return")
        assert told(answers) == ["OverloadedError", "a"]

    def test_a_source_is_read_as_it_is_used_up(self) -> None:
        read = 0

        def endless() -> Iterator[bytes]:
            nonlocal read
            while True:
                read += 1
                yield b"sleep 0.01"

        with running(Service(), "rest") as url, Client(url) as client:
            answers = client.detect_many("signs", endless(), concurrency=2)
            for _ in range(5):
                next(answers)
            assert read <= 5 + 2 * 2
            answers.close()
            before = read
            time.sleep(0.1)
            assert read == before

    def test_a_source_that_breaks_is_told_after_the_answers_before_it(
        self, many: Callable[..., list[Any]]
    ) -> None:
        def breaking() -> Iterator[bytes]:
            yield from (b"sleep 0.05", b"a")
            raise LookupError("the disk is gone")

        got: list[Any] = []

        async def go(url: str) -> None:
            async with AsyncClient(url) as client:
                async for found in client.detect_many("signs", breaking()):
                    got.append(found)

        def ask(url: str) -> None:
            if many is async_many:
                return asyncio.run(go(url))
            with Client(url) as client:
                return got.extend(client.detect_many("signs", breaking()))

        with running(Service(), "rest") as url, pytest.raises(LookupError, match="the disk"):
            ask(url)
        assert told(got) == ["sleep 0.05", "a"]

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            ({"concurrency": 0}, ValueError),
            ({"on_error": "ignore"}, ValueError),
            ({"images": b"one image"}, TypeError),
            ({"images": "no-such-folder"}, FileNotFoundError),
            ({"images": 3}, TypeError),
        ],
    )
    def test_what_cannot_be_is_told_at_once(self, wrong: dict[str, Any], error: type[Exception]) -> None:
        for kind in (Client, AsyncClient):
            with pytest.raises(error):
                kind("http://127.0.0.1:9").explain_many(**{"model": "m", "images": [], **wrong})  # type: ignore[arg-type]


class TestEnd:
    """What is under way is called off, and no thread is left."""

    def test_leaving_the_loop(self, transport: str) -> None:
        service = Service()
        threads = threading.active_count()
        with running(service, transport) as url:
            with Client(url, timeout=600) as client:
                start = time.monotonic()
                for found in client.detect_many("signs", [b"a", *[b"hang"] * 20], concurrency=3):
                    assert told([found]) == ["a"]
                    for _ in range(4):
                        assert service.arrived.acquire(timeout=PATIENCE_S)
                    break
                assert time.monotonic() - start < PATIENCE_S / 2
                assert not any(t.name.startswith("whybox batch") for t in threading.enumerate())
                assert told([client.detect("signs", b"b")]) == ["b"]
            if transport == "grpc":
                patience = time.monotonic() + PATIENCE_S
                while service.gone < 4 and time.monotonic() < patience:
                    time.sleep(0.02)
                assert service.gone >= 4, "calls go on that nobody waits for"
            service.released.set()
        patience = time.monotonic() + PATIENCE_S
        while threading.active_count() > threads and time.monotonic() < patience:
            time.sleep(0.02)
        assert threading.active_count() <= threads

    def test_cancelling_the_task(self, transport: str) -> None:
        service = Service()

        async def go(url: str) -> None:
            async with AsyncClient(url, timeout=600) as client:

                async def loop() -> None:
                    async with aclosing(client.detect_many("signs", [b"hang"] * 20, concurrency=3)) as found:
                        async for _ in found:
                            raise AssertionError

                task = asyncio.create_task(loop())
                for _ in range(3):
                    assert await asyncio.to_thread(service.arrived.acquire, timeout=PATIENCE_S)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert asyncio.all_tasks() == {asyncio.current_task()}
                service.released.set()
                assert told([await client.detect("signs", b"b")]) == ["b"]

        with running(service, transport) as url:
            asyncio.run(go(url))
        assert service.most == 3

    def test_a_wait_before_asking_again_is_ended_too(self) -> None:
        refused = problem("urn:whybox:error:overloaded", 429, retry_after_seconds=300)
        asked = threading.Event()

        def refuse(handler: Any) -> None:
            refused(handler)
            asked.set()

        def interrupt() -> None:
            assert asked.wait(PATIENCE_S)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

        with web(refuse) as server, Client(server.url, timeout=600) as client:
            answers = client.detect_many("signs", [b"x"] * 3)
            thread = threading.Thread(target=interrupt)
            thread.start()
            start = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                next(answers)
            assert time.monotonic() - start < PATIENCE_S
            thread.join()
        assert not any(t.name.startswith("whybox batch") for t in threading.enumerate())

    def test_ctrl_c(self, transport: str) -> None:
        code = (
            "import sys, whybox_client\n"
            "with whybox_client.Client(sys.argv[1], timeout=600) as client:\n"
            "    list(client.detect_many('signs', [b'hang'] * 50))\n"
        )
        service = Service()
        with running(service, transport) as url:
            process = subprocess.Popen(
                [sys.executable, "-c", code, url], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            try:
                for _ in range(4):
                    assert service.arrived.acquire(timeout=PATIENCE_S)
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=PATIENCE_S)
            finally:
                process.kill()
                process.communicate()
        assert process.returncode == -signal.SIGINT
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert err.count("Traceback") == 1


class TestFolders:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "below").mkdir()
        (tmp_path / ".hidden").mkdir()
        for name in ("b.jpg", "a.PNG", "c.txt", ".d.png", "below/e.webp", ".hidden/f.png", "g.tiff"):
            (tmp_path / name).write_bytes(name.encode())
        return tmp_path

    def test_the_images_sorted(self, folder: Path) -> None:
        assert image_files(folder) == [folder / name for name in ("a.PNG", "b.jpg", "g.tiff")]
        below = image_files(str(folder), recursive=True)
        assert below == [folder / name for name in ("a.PNG", "b.jpg", "below/e.webp", "g.tiff")]
        with pytest.raises(FileNotFoundError):
            image_files(folder / "no")

    def test_the_endings_are_those_of_the_formats_that_the_service_decodes(self) -> None:
        from whybox.images import FORMATS
        from whybox_client.folders import SUFFIXES

        known = Image.registered_extensions()
        assert {known[suffix] for suffix in SUFFIXES} == set(FORMATS)

    def test_a_folder_is_a_batch(self, folder: Path, many: Callable[..., list[Any]]) -> None:
        with running(Service(), "rest") as url:
            assert told(many(url, folder)) == ["a.PNG", "b.jpg", "g.tiff"]
            assert told(many(url, str(folder), recursive=True)) == [
                "a.PNG",
                "b.jpg",
                "below/e.webp",
                "g.tiff",
            ]
            assert told(many(url, folder / "b.jpg")) == ["b.jpg"]
            (folder / "empty").mkdir()
            with pytest.raises(ValueError, match="there are no images in"):
                many(url, folder / "empty")


def test_a_bar_counts_answers_and_errors(
    many: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with running(Service(), "rest") as url:
        many(url, [b"a", b"bad", b"b"], on_error="return", progress=True)
        assert "3/3" in shown.getvalue()
        assert "failed=1" in shown.getvalue()
        shown.truncate(0)
        many(url, (b"a" for _ in range(2)), progress=True)
        assert "2image" in shown.getvalue()
        shown.truncate(0)
        many(url, [b"a"])
        assert shown.getvalue().strip("\0") == ""


@pytest.mark.parametrize(
    ("settings", "flow"),
    [(batches.DetectSettings, flows.detect), (batches.ExplainSettings, flows.explain)],
)
def test_a_batch_takes_what_one_call_takes(settings: type, flow: Callable[..., object]) -> None:
    arguments = inspect.signature(flow).parameters
    assert set(get_type_hints(settings)) == set(arguments) - {"model", "image", "request_id"}
    for name, kind in settings.__annotations__.items():
        assert kind.__forward_arg__ == arguments[name].annotation, name


def test_many_explanations_of_the_live_service(live: Any, picture: bytes, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(picture)
    (tmp_path / "b2.png").write_bytes(b"no picture")

    async def asked(url: str) -> list[Any]:
        async with AsyncClient(url) as client:
            return [e async for e in client.explain_many(live.model, tmp_path, on_error="return", **settings)]

    settings: Any = {"score_threshold": 0.0, "max_detections": 2, "targets": ["class", "x1"]}
    for url in (live.rest, live.grpc):
        with Client(url) as client:
            one = client.explain(live.model, picture, **settings)
            for answers in (
                list(client.explain_many(live.model, tmp_path, on_error="return", **settings)),
                asyncio.run(asked(url)),
            ):
                kinds = [type(each) for each in answers]
                assert kinds == [Explanation, Explanation, errors.InvalidImageError, Explanation]
                for explanation in answers[:2]:
                    assert [target for maps in explanation for target in maps] == ["class", "x1"] * 2
                    assert [d.label for d in explanation.detections] == [d.label for d in one.detections]
