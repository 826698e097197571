"""`whybox invert` and `whybox inversions`, against a stand-in that knows nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from inversion_stand_in import Desk, H, W, layout, picture, rest, rpc
from test_cli_completion import complete
from whybox_client import Layout
from whybox_client.cli import main
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2

PATIENCE_S = 60.0


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture(params=[rest, rpc], ids=["rest", "grpc"])
def url(desk: Desk, request: pytest.FixtureRequest) -> Iterator[str]:
    with request.param(desk) as address:
        yield address


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "layout.json"
    path.write_text(json.dumps(Layout.from_message(layout()).to_dict()))
    return path


def whybox(*arguments: object, url: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env={"WHYBOX_URL": url})


def shade(path: Path) -> int:
    with Image.open(path) as image:
        assert image.size == (W, H)
        return int(np.asarray(image)[0, 0, 0])


class TestInvert:
    def test_a_picture_and_how_well_it_fits(self, desk: Desk, url: str, wanted: Path) -> None:
        (wanted.parent / "start.png").write_bytes(picture(1))
        options = "-m signs --out pictures/new.png --preset paper --param iterations=30 --param losses=cls"
        more = "--seed 7 --priority 9 --from start.png"
        result = whybox("invert", wanted, *options.split(), *more.split(), url=url)
        assert result.exit_code == 0, result.output
        (name,) = desk.jobs
        fits = "mean IoU 0.96, recall 1.00, AP 0.88, AP50 1.00, 0 unmatched"
        assert result.stdout == f"{name}: {fits} -> pictures/new.png\n"
        assert shade(Path("pictures/new.png")) == 250
        (asked,) = desk.asked_of("CreateInversion")
        assert (asked.model, asked.seed, asked.priority, asked.image) == ("signs", 7, 9, picture(1))
        assert dict(asked.params) == {"preset": "paper", "iterations": 30, "losses": "cls"}
        assert asked.layout == layout()
        assert asked.idempotency_key

    def test_the_only_model_and_the_name_of_the_picture(self, desk: Desk, url: str, wanted: Path) -> None:
        result = whybox("invert", wanted, url=url)
        assert result.exit_code == 0, result.output
        assert result.stdout.endswith(" -> out/layout-inverted.png\n")
        assert shade(Path("out/layout-inverted.png")) == 250
        assert desk.asked_of("CreateInversion")[0].model == "signs"

    def test_json(self, url: str, wanted: Path) -> None:
        result = whybox("invert", wanted, "--json", "--out", "a.jpg", url=url)
        told = json.loads(result.stdout)
        assert (told["match"]["recall"], told["params"]["preset"]) == (1, "paper")
        assert Path("a.jpg").exists()

    def test_a_job_that_is_left(self, desk: Desk, url: str, wanted: Path) -> None:
        result = whybox("invert", wanted, "--detach", url=url)
        (name,) = desk.jobs
        assert result.stdout == f"{name}: queued\n"
        assert not desk.asked_of("WatchInversion")
        told = json.loads(whybox("invert", wanted, "--detach", "--json", url=url).stdout)
        assert (told["state"], told["layout"]["width"]) == ("queued", W)

    def test_a_layout_of_cocos(self, desk: Desk, url: str, wanted: Path) -> None:
        instances: dict[str, Any] = {
            "images": [{"id": i, "width": W, "height": H} for i in (1, 2)],
            "categories": [{"id": 3, "name": "stop"}],
            "annotations": [
                {
                    "image_id": 2,
                    "category_id": 3,
                    "bbox": [1, 2, 10, 20],
                    "segmentation": [[1, 2, 11, 2, 11, 22]],
                }
            ],
        }
        wanted.write_text(json.dumps(instances))
        result = whybox("invert", wanted, url=url)
        assert result.exit_code == 1
        assert result.stderr == f"Error: {wanted}: image_id: expected one of 2 images (1, 2); got nothing\n"
        assert whybox("invert", wanted, "--image-id", 2, url=url).exit_code == 0
        assert whybox("invert", wanted, "--image-id", 2, "--boxes-only", url=url).exit_code == 0
        with_mask, without = (request.layout.objects[0] for request in desk.asked_of("CreateInversion"))
        assert list(with_mask.box) == list(without.box) == [1, 2, 11, 22]
        assert with_mask.mask
        assert not without.mask

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("{", "not JSON: "),
            ('{"width": 40, "height": 30}', "objects: expected a list of objects; got nothing"),
            (
                '{"width": 40, "height": 30, "objects": [{"label": "stop", "box": [1, 2]}]}',
                "objects[0].box: expected four numbers [x1, y1, x2, y2]; got [1, 2]",
            ),
        ],
    )
    def test_a_file_that_is_no_layout(self, desk: Desk, url: str, wanted: Path, text: str, told: str) -> None:
        wanted.write_text(text)
        result = whybox("invert", wanted, url=url)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: {wanted}: {told}")
        assert len(result.stderr.splitlines()) == 1
        assert not desk.asked

    @pytest.mark.parametrize(
        ("kind", "field", "told"),
        [
            ("invalid_argument", "layout.objects[1].box", "{layout}: objects[1].box: no; expected more"),
            ("invalid_argument", "layout", "{layout}: no; expected more"),
            (
                "invalid_argument",
                "layout.objects[0].mask",
                "{layout}: objects[0].mask: no; expected more; or --boxes",
            ),
            ("unknown_parameter", "params.iters", "--param iters: no; expected more"),
            ("invalid_argument", "params.preset", "--preset: no; expected more"),
            ("unknown_model", "model", "--model: no; expected more"),
            ("invalid_image", "image", "--from: no; expected more"),
            ("idempotency_conflict", "idempotency_key", "no (field idempotency_key; expected more"),
        ],
    )
    def test_refusals_in_the_command_lines_own_terms(
        self, desk: Desk, url: str, wanted: Path, kind: str, field: str, told: str
    ) -> None:
        desk.fails["CreateInversion"] = [ContractError(kind, "no", field=field, expected="more")]
        result = whybox("invert", wanted, url=url)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: {told.format(layout=wanted)}")
        assert len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        "options",
        [
            ("--out", "picture.txt"),
            ("--out", "picture"),
            ("--priority", "10"),
            ("--seed", "-1"),
            ("--param", "iterations"),
            ("--from", "no-such.png"),
        ],
    )
    def test_a_wrong_command_line(self, desk: Desk, url: str, wanted: Path, options: tuple[str, ...]) -> None:
        result = whybox("invert", wanted, *options, url=url)
        assert result.exit_code == 2
        assert options[0] in result.stderr
        assert not desk.asked

    def test_a_job_that_fails(self, desk: Desk, url: str, wanted: Path) -> None:
        def fail(job: explainer_pb2.Inversion, end: str = "failed") -> None:
            Desk.run(desk, job, end)

        desk.run = fail  # type: ignore[method-assign]
        result = whybox("invert", wanted, url=url)
        assert result.exit_code == 1
        (name,) = desk.jobs
        assert result.stderr.startswith(f"Error: {name} failed: the disk is full")
        assert not Path("out").exists()

    def test_a_picture_that_is_gone(self, desk: Desk, url: str) -> None:
        name = desk.put("succeeded").name
        desk.events[name][0].preview = b""
        result = whybox("inversions", "wait", name, url=url)
        assert result.exit_code == 1
        assert result.stderr == f"Error: {name} has succeeded, but its picture is not there\n"

    def test_a_picture_that_cannot_be_written(self, url: str, wanted: Path) -> None:
        Path("file").write_text("")
        result = whybox("invert", wanted, "--out", "file/picture.png", url=url)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: file/picture.png: ")

    def test_a_service_that_breaks_down(self, desk: Desk, wanted: Path) -> None:
        desk.fails["WatchInversion"] = [ContractError("internal", "broken")]
        with rest(desk) as url:
            result = whybox("invert", wanted, url=url)
        assert result.exit_code == 3
        (name,) = desk.jobs
        assert f"the job goes on with the service: whybox inversions wait {name[11:]}" in result.stderr

    @pytest.mark.parametrize(
        ("serve", "command", "cancelled"),
        [(rest, "invert", True), (rpc, "invert", True), (rest, "wait", False)],
        ids=["rest", "grpc", "wait"],
    )
    def test_ctrl_c(self, desk: Desk, wanted: Path, serve: Any, command: str, cancelled: bool) -> None:
        """Of a process that waits: `invert` cancels the job, `inversions wait` leaves it."""
        desk.run = lambda *_: None  # type: ignore[method-assign,assignment]
        arguments = ["invert", str(wanted)]
        if command == "wait":
            arguments = ["inversions", "wait", desk.put("running").name]
        with serve(desk) as url:
            process = subprocess.Popen(
                [sys.executable, "-m", "whybox_client.cli", *arguments],
                env={**os.environ, "WHYBOX_URL": url},
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            while not desk.asked_of("WatchInversion"):
                assert process.poll() is None, process.communicate()
            desk.over.wait(0.5)  # until it waits in the stream; earlier would do as well
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=PATIENCE_S)
            assert desk.cancelled.is_set() is cancelled
        (name,) = desk.jobs
        assert process.returncode == 130
        assert stdout == ""
        assert (f"{name} is cancelled; its last picture: whybox inversions show" in stderr) is cancelled
        assert "Traceback" not in stderr


class TestInversions:
    def test_a_table(self, desk: Desk, url: str) -> None:
        assert whybox("inversions", "list", url=url).stdout == "no inversions\n"
        ids = [desk.put(state).name[11:] for state in ("failed", "running", "succeeded")]
        result = whybox("inversions", "list", url=url)
        assert result.exit_code == 0, result.output
        head, *lines = result.stdout.splitlines()
        assert re.split("  +", head) == [
            *("ID", "STATE", "MODEL", "ITERATION", "MEAN IOU", "RECALL", "CREATED (UTC)"),
        ]
        assert lines[0].split() == [
            *(ids[2], "succeeded", "signs", "0/?", "0.96", "1.00"),
            *("2026-01-02", "03:04:05"),
        ]
        assert [line.split()[0] for line in lines] == ids[::-1]
        some = whybox("inversions", "list", "--limit", 1, "--state", "failed", "--json", url=url)
        assert [one["state"] for one in json.loads(some.stdout)] == ["failed"]
        assert whybox("inversions", "list", "--state", "lost", url=url).exit_code == 2

    def test_one(self, desk: Desk, url: str, tmp_path: Path) -> None:
        name = desk.put("succeeded").name
        out = tmp_path / "a" / "picture.png"
        result = whybox("inversions", "show", name, "--out", out, url=url)
        assert result.exit_code == 0, result.output
        lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
        assert lines["layout"] == f"{W} x {H}, 2 objects"
        assert lines["match"].startswith("mean IoU 0.96")
        assert (lines["parameters"], lines["picture"]) == ("preset=paper", str(out))
        assert shade(out) == 9
        told = json.loads(whybox("inversions", "show", name[11:], "--json", url=url).stdout)
        assert (told["name"], told["result"]["seed"]) == (name, 7)

    def test_one_that_failed(self, desk: Desk, url: str) -> None:
        name = desk.put("failed").name
        shown = whybox("inversions", "show", name, url=url)
        assert "error       no worker (backend_unavailable)" in shown.stdout
        assert whybox("inversions", "wait", name, url=url).exit_code == 1

    def test_one_that_is_waited_for(self, desk: Desk, url: str, tmp_path: Path) -> None:
        job = desk.put("queued")
        desk.run(job)
        job.state = "running"
        out = tmp_path / "picture.png"
        result = whybox("inversions", "wait", job.name, "--out", out, url=url)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"{job.name}: mean IoU 0.96")
        assert shade(out) == 250

    def test_some_are_cancelled_and_deleted(self, desk: Desk, url: str) -> None:
        names = [desk.put("running").name for _ in range(3)]
        result = whybox("inversions", "cancel", *names[:2], url=url)
        assert result.stdout == "".join(f"{name}: cancelled\n" for name in names[:2])
        assert [desk.jobs[name].state for name in names] == ["cancelled", "cancelled", "running"]
        result = whybox("inversions", "delete", *names[1:], url=url)
        assert result.stdout == "".join(f"{name}: deleted\n" for name in names[1:])
        assert list(desk.jobs) == names[:1]

    @pytest.mark.parametrize("verb", ["show", "wait", "cancel", "delete"])
    def test_one_that_is_not_there(self, url: str, verb: str) -> None:
        result = whybox("inversions", verb, "none", url=url)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: there is no inversion inversions/none")
        result = whybox("inversions", verb, "a/b", url=url)
        assert result.exit_code == 2
        assert "inversions/ID" in result.stderr

    def test_no_picture_yet(self, desk: Desk, url: str, tmp_path: Path) -> None:
        name = desk.put("running").name
        result = whybox("inversions", "show", name, "--out", tmp_path / "a.png", url=url)
        assert result.exit_code == 1
        assert "has no picture yet" in result.stderr


def test_names_are_completed(desk: Desk) -> None:
    inversion = desk.model.inversion
    inversion.presets.add(name="paper", description="as published")
    inversion.params.add(name="iterations", type="integer")
    desk.put("running")
    with rest(desk) as url:
        assert complete("whybox invert --preset pa", WHYBOX_URL=url) == ["plain,paper"]
        assert complete("whybox invert --param it", WHYBOX_URL=url) == ["plain,iterations="]
        assert complete("whybox inversions show 0", WHYBOX_URL=url) == [f"plain,{1:032x}"]
        shown = whybox("models", "show", "signs", url=url)
    assert "preset paper: as published" in shown.stdout
    assert "  iterations: integer" in shown.stdout


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_the_whole_service(live: Any, tmp_path: Path, transport: str) -> None:
    url = getattr(live, transport)
    label = json.loads(whybox("models", "show", live.model, "--json", url=url).stdout)["labels"][0]
    path, out = tmp_path / "layout.json", tmp_path / "picture.png"
    objects = [{"label": label, "box": [16, 16, 80, 80]}]
    path.write_text(json.dumps({"width": 128, "height": 96, "objects": objects}))
    made = whybox(
        *("invert", path, "-m", live.model, "--out", out, "--param", "iterations=3", "--json"), url=url
    )
    assert made.exit_code == 0, made.output
    result = json.loads(made.stdout)
    assert result["params"]["iterations"] == 3
    assert result["layout"]["objects"] == objects
    with Image.open(out) as image:
        assert image.size == (128, 96)
    listed = whybox("inversions", "list", "--limit", 1, "--state", "succeeded", url=url)
    assert result["name"][11:] in listed.stdout
    wrong = whybox("invert", path, "-m", live.model, "--param", "iteration=3", url=url)
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith("Error: --param iteration: ")
    assert "did you mean 'iterations'" in wrong.stderr
    objects[0]["label"] = label + "x"
    path.write_text(json.dumps({"width": 128, "height": 96, "objects": objects}))
    wrong = whybox("invert", path, "-m", live.model, url=url)
    assert wrong.stderr.startswith(f"Error: {path}: objects[0].label: there is no label")
