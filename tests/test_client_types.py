"""The public API as a type checker sees it from outside: `mypy --strict` on a user's script."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SCRIPT = """
import asyncio
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from whybox_client import AsyncClient, Client, Detection, Detections, Evaluations, Explanation, Model
from whybox_client import AsyncInversionJob, InversionEvent, InversionJob, InversionResult
from whybox_client import Layout, LayoutObject
from whybox_client import GroundTruth, SuppressedDetection, WhyboxError, errors, image_files

Failed = WhyboxError | OSError | ValueError | TypeError


def waiting(pixels: NDArray[np.uint8]) -> None:
    with Client("http://127.0.0.1:8000", timeout=30, retries=3) as client:
        assert_type(client.models(), list[Model])
        assert_type(client.ready(), bool)
        assert_type(client.detect("signs", pixels, labels="stop", retries=0), Detections)
        explanation = client.explain("signs", Path("a.jpg"), targets=["class"], params={"k": 1}, timeout=2.5)
        assert_type(explanation, Explanation)
        assert_type(explanation.heat_map().in_image(), NDArray[np.float32])
        if explanation.why_not is not None:
            assert_type(str(explanation.why_not), str)
            assert_type(explanation.why_not.candidate, Detection | None)
        assert_type(explanation.suppressed, tuple[SuppressedDetection, ...])
        for partial in client.explain_stream("signs", pixels, method="d_rise", seconds=5, layer=["a", "b"]):
            assert_type(partial, Explanation)
            assert_type(partial.final, bool)
        truth = [GroundTruth("stop", (1, 2, 3, 4), mask=pixels[..., 0] > 3)]
        evaluations = client.evaluate("signs", pixels, truth=truth, measures=["odi"], expected=None)
        assert_type(evaluations, Evaluations)
        assert_type(evaluations.of().values["odi"], float)
        assert_type(explanation.picture(), Image.Image)
        objects = [LayoutObject("stop", (1, 2, 30, 40)), LayoutObject("yield", mask=pixels[..., 0] > 3)]
        layout = Layout(64, 48, objects)
        assert_type(layout, Layout)
        job = client.invert(layout, model="signs", preset="paper", params={"iterations": 10}, image=pixels)
        assert_type(job, InversionJob)
        assert_type(job.wait(progress=True, timeout=60), InversionResult)
        assert_type(job.watch(), Generator[InversionEvent, None, None])
        assert_type(job.image(), Image.Image)
        assert_type(job.result, InversionResult | None)
        assert_type(job.cancel().state, str)
        assert_type(client.inversions("running"), Generator[InversionJob, None, None])
        client.invert({"width": 8, "height": 8, "objects": []}, model="signs")
        assert_type(client.explain_many("signs", "folder"), Generator[Explanation, None, None])
        for answer in client.explain_many("signs", image_files("f"), on_error="return", targets="x1", seed=3):
            assert_type(answer, Explanation | Failed)
            if isinstance(answer, Exception):
                continue
            assert_type(answer, Explanation)
        for found in client.detect_many("signs", [b"a", Path("b")], concurrency=8, progress=True, timeout=1):
            assert_type(found, Detections)


async def awaited() -> None:
    async with AsyncClient("grpc://127.0.0.1:8001") as client:
        assert_type(await client.model("signs"), Model)
        assert_type(await client.evaluate("signs", "a.jpg"), Evaluations)
        async for partial in client.explain_stream("signs", "a.jpg", samples=100):
            assert_type(partial, Explanation)
        job = await client.invert(Layout.load("layout.json"), model="signs")
        assert_type(job, AsyncInversionJob)
        assert_type(await job.wait(), InversionResult)
        async for event in job.watch():
            assert_type(event, InversionEvent)
        assert_type(client.explain_many("signs", "folder"), AsyncGenerator[Explanation, None])
        async for answer in client.detect_many("signs", (b"a" for _ in range(3)), on_error="return"):
            assert_type(answer, Detections | Failed)
    try:
        await client.detect("signs", "a.jpg")
    except errors.OverloadedError as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.field, str)
        assert_type(error.request_id, str)


asyncio.run(awaited())
"""

WRONG = {
    'client.explain_many("m", "f", targts=["class"])': "call-overload",
    'client.explain_many("m", "f", on_error="ignore")': "call-overload",
    'client.detect_many("m", "f", method="odam")': "call-overload",
    'client.detect("m", 3)': "arg-type",
    'client.explain_stream("m", "a.jpg", budget=3)': "call-arg",
    'client.evaluate("m", "a.jpg", truth=["stop"])': "list-item",
    'client.invert("layout.json", model="m")': "arg-type",
    'client.invert({}, model="m", iterations=3)': "call-arg",
    'client.detect("m", "a.jpg", retries="many")': "arg-type",
    'next(client.explain_many("m", "f", on_error="return")).picture()': "union-attr",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which whybox is installed, as mypy sees it: our sources, and what they need."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    places = [ROOT / "clients/python", ROOT / "proto", sysconfig.get_paths()["purelib"]]
    Path(paths["purelib"], "whybox.pth").write_text("".join(f"{place}\n" for place in places))
    return folder


def check(folder: Path, environment: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run mypy with no configuration; it finds the packages by their `py.typed`."""
    (folder / "script.py").write_text(script)
    python = environment / "bin" / "python"
    options = ["--strict", "--cache-dir", environment / "cache", "--python-executable", python]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, options), "script.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_users_script_is_accepted(tmp_path: Path, environment: Path) -> None:
    done = check(tmp_path, environment, SCRIPT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mistakes_are_found(tmp_path: Path, environment: Path) -> None:
    lines = "\n".join(f"    {line}" for line in WRONG)
    done = check(
        tmp_path,
        environment,
        f"from whybox_client import Client\n\n\ndef ask(client: Client) -> None:\n{lines}\n",
    )
    for number, code in enumerate(WRONG.values(), start=5):
        assert any(
            line.startswith(f"script.py:{number}: error:") and line.endswith(f"[{code}]")
            for line in done.stdout.splitlines()
        ), f"line {number}: {done.stdout}"


def test_the_packages_say_that_they_are_typed() -> None:
    for package in ("clients/python/whybox_client", "proto/whybox_proto"):
        assert (ROOT / package / "py.typed").exists()
