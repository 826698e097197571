"""`whybox detect` and `whybox explain` on folders: jobs, retries, what an error does, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from test_client_errors import answer, problem, web
from whybox_client.cli import main
from whybox_proto.v1 import explainer_pb2, types_pb2

PROTOBUF = "application/x-protobuf"
PATIENCE_S = 30.0
MODELS = explainer_pb2.ListModelsResponse(models=[types_pb2.Model(name="signs")])


def whybox(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, one of them below; their grey says which they are."""
    (tmp_path / "in" / "below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "below/a.png")):
        Image.new("L", (4, 4), number).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


class Service:
    """One model, "signs"; `answers` decides by the image what becomes of a request."""

    def __init__(self, behave: Callable[[str, int], Callable[[Any], None] | None]) -> None:
        self.behave = behave
        self.lock = threading.Lock()
        self.asked: dict[str, int] = {}
        self.under_way = self.most = 0

    def __call__(self, handler: Any) -> None:
        if handler.path.startswith("/v1/models?"):
            return answer(200, PROTOBUF, MODELS.SerializeToString())(handler)
        image = explainer_pb2.DetectRequest.FromString(handler.body).image
        name = str(sorted(self.images).index(image)) if image in self.images else "?"
        with self.lock:
            self.asked[name] = self.asked.get(name, 0) + 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            refusal = self.behave(name, self.asked[name])
        finally:
            with self.lock:
                self.under_way -= 1
        found = explainer_pb2.DetectResponse(model="signs", warnings=[name])
        return (refusal or answer(200, PROTOBUF, found.SerializeToString()))(handler)

    images: tuple[bytes, ...] = ()


@contextmanager
def serving(behave: Callable[[str, int], Callable[[Any], None] | None]) -> Iterator[tuple[Service, str]]:
    service = Service(behave)
    with web(service) as server:
        yield service, server.url


def fine(_name: str, _time: int) -> None:
    return None


BAD_IMAGE = problem("urn:whybox:error:invalid_image", 400, detail="no picture", field="image")
FULL = problem("urn:whybox:error:overloaded", 429, detail="full", retry_after_seconds=0.05)
BROKEN = problem("urn:whybox:error:internal", 500, detail="a bug")


def named(result: Result) -> list[str]:
    return [json.loads(line)["file"] for line in result.stdout.splitlines()]


class TestFolders:
    def test_a_folder_stands_for_its_images(self, folder: Path) -> None:
        with serving(fine) as (_, url):
            result = whybox("detect", folder, "--json", "--url", url)
            assert named(result) == [str(folder / "a.png"), str(folder / "b.png")]
            result = whybox("detect", "-r", folder, folder / "a.png", "--json", "--url", url)
            assert result.exit_code == 0
            assert named(result) == [str(folder / n) for n in ("a.png", "b.png", "below/a.png", "a.png")]

    def test_explained_pictures_are_not_explained_again(self, live: Any, folder: Path) -> None:
        settings = ("-m", live.model, "--score-threshold", 1, "--url", live.rest)
        for _ in range(2):
            result = whybox("explain", "-r", folder, "--out", folder / "out", *settings)
            assert result.exit_code == 0, result.output
            assert len(result.stdout.splitlines()) == 3
        made = sorted(path.name for path in (folder / "out").glob("*.png"))
        assert made == ["a-2-explained.png", "a-explained.png", "b-explained.png"]

    def test_a_folder_without_images(self, tmp_path: Path) -> None:
        result = whybox("detect", tmp_path, "--url", "http://127.0.0.1:9")
        assert result.exit_code == 2
        assert f"there are no images in {tmp_path}; see --recursive" in result.stderr

    def test_so_many_at_one_time(self, folder: Path) -> None:
        def slow(_name: str, _time: int) -> None:
            time.sleep(0.1)

        for jobs in (1, 3):
            with serving(slow) as (service, url):
                images = [folder / "a.png"] * 9
                result = whybox("detect", *images, "--jobs", jobs, "-m", "signs", "--url", url)
            assert result.exit_code == 0, result.output
            assert service.most == jobs


class TestErrors:
    @pytest.fixture(autouse=True)
    def _images(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ("a.png", "b.png", "below/a.png")
        images = tuple(sorted((folder / name).read_bytes() for name in names))
        monkeypatch.setattr(Service, "images", images)
        self.order = [str(images.index((folder / name).read_bytes())) for name in names]

    def run(
        self, folder: Path, behave: Callable[[str, int], Callable[[Any], None] | None], *options: object
    ) -> tuple[Service, Result]:
        with serving(behave) as (service, url):
            return service, whybox("detect", "-r", folder, "--json", "--jobs", 1, *options, "--url", url)

    def test_the_others_go_on(self, folder: Path) -> None:
        first = self.order[0]
        _, result = self.run(folder, lambda name, _: BAD_IMAGE if name == first else None)
        assert result.exit_code == 1
        assert named(result) == [str(folder / "b.png"), str(folder / "below/a.png")]
        told, last = result.stderr.splitlines()
        assert told.startswith(f"{folder / 'a.png'}: no picture (field image; request ")
        assert last == "Error: 1 of 3 images failed"

    def test_or_stop(self, folder: Path) -> None:
        second = self.order[1]
        _, result = self.run(folder, lambda name, _: BAD_IMAGE if name == second else None, "--stop-on-error")
        assert result.exit_code == 1
        assert named(result) == [str(folder / "a.png")]
        (told,) = result.stderr.splitlines()
        assert told.startswith(f"Error: {folder / 'b.png'}: no picture")

    def test_a_service_at_fault_is_another_exit_code(self, folder: Path) -> None:
        _, result = self.run(folder, lambda *_: BROKEN)
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (3, "Error: 3 of 3 images failed")
        first = self.order[0]
        _, result = self.run(folder, lambda name, _: BAD_IMAGE if name == first else BROKEN)
        assert result.exit_code == 1
        _, result = self.run(folder, lambda *_: BROKEN, "--stop-on-error")
        assert (result.exit_code, len(result.stderr.splitlines())) == (3, 1)

    def test_what_is_refused_for_now_is_sent_again(self, folder: Path) -> None:
        service, result = self.run(folder, lambda _, time: FULL if time < 3 else None)
        assert result.exit_code == 0, result.output
        assert set(service.asked.values()) == {3}
        service, result = self.run(folder, lambda _, time: FULL if time < 3 else None, "--retries", 0)
        assert result.exit_code == 3
        assert set(service.asked.values()) == {1}

    def test_an_unknown_key_is_told_once(self, folder: Path) -> None:
        refused = problem("urn:whybox:error:unauthenticated", 401, detail="no key")
        _, result = self.run(folder, lambda *_: refused)
        assert result.exit_code == 1
        (told,) = result.stderr.splitlines()
        assert told.startswith("Error: no key")


def test_ctrl_c_ends_it_at_once(folder: Path) -> None:
    asked, released = threading.Event(), threading.Event()

    def hang(_name: str, _time: int) -> None:
        asked.set()
        released.wait(PATIENCE_S)

    with serving(hang) as (_, url):
        command = [sys.executable, "-m", "whybox_client.cli", "detect", str(folder), "--timeout", "600"]
        process = subprocess.Popen(
            [*command, "--url", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            assert asked.wait(PATIENCE_S)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            process.communicate()
            released.set()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err


def test_a_terminal_sees_a_bar(folder: Path) -> None:
    """In a pseudo-terminal of its own."""
    import fcntl
    import pty
    import struct
    import termios

    with serving(fine) as (_, url):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        with os.fdopen(ours, "rb", buffering=0) as screen:
            process = subprocess.Popen(
                [sys.executable, "-m", "whybox_client.cli", "detect", folder, "--url", url],
                stdout=subprocess.DEVNULL,
                stderr=theirs,
            )
            os.close(theirs)
            shown = b""
            with suppress(OSError):  # Linux says so when the other end is closed
                while part := screen.read(4096):
                    shown += part
            assert process.wait(PATIENCE_S) == 0
    assert b"2/2" in shown
