"""`whybox explain` and `whybox detect`: budgets, NMS, what is missing and how good a map is.

The service here is a stand-in that answers from messages, so that every answer can be had.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from test_cli_completion import complete
from test_client_errors import Web, answer, web
from test_client_streams import GROWING, event_of
from whybox_client.cli import main
from whybox_proto import maps
from whybox_proto.v1 import explainer_pb2, types_pb2

PROTOBUF = "application/x-protobuf"
W, H = 40, 30
PATIENCE_S = 60.0


def model() -> types_pb2.Model:
    made = types_pb2.Model(
        name="signs",
        version="1.0",
        labels=["stop", "yield"],
        default_nms="iou",
        nms=[types_pb2.Nms(kind="iou", iou_threshold=0.5), types_pb2.Nms(kind="odam", corr_high=0.8)],
        ready=True,
        measures=[types_pb2.Measure(name="deletion", protocol="Random fill.", better="lower", needs="")],
    )
    odam = made.methods.add(name="odam", targets=["class", "x1", "combined"], layers=["level", "layer2"])
    odam.default_layer, odam.combines_layers = "level", True
    d_rise = made.methods.add(name="d_rise", targets=["class"], sampling=True)
    d_rise.params.add(name="cells", type="integer").default_value.number_value = 16
    return made


def explained() -> explainer_pb2.ExplainResponse:
    made = explainer_pb2.ExplainResponse(
        model="signs",
        image=types_pb2.ImageSize(width=W, height=H),
        detections=[types_pb2.Detection(box=[4, 4, 20, 20], label="stop", score=0.9)],
        suppressed=[
            types_pb2.SuppressedDetection(
                box=[5, 5, 21, 21],
                label="stop",
                score=0.4,
                by_index=0,
                iou=0.78,
                correlation=0.93,
                rule="same_object",
            )
        ],
    )
    heat_map = made.heat_maps.add(target="class", method="odam", layer="level", region=[0, 0, W, H])
    heat_map.faithfulness.update({"deletion": 0.25, "insertion": 0.5})
    maps.encode(np.eye(3, 4, dtype=np.float32), heat_map)
    return made


def missed() -> explainer_pb2.ExplainResponse:
    made = explained()
    told = types_pb2.WhyNot(reason="score", score_threshold=0.3, expected_iou=0.7)
    told.candidate.CopyFrom(types_pb2.Detection(box=[20, 5, 35, 20], label="yield", label_id=1, score=0.2))
    told.heat_maps.extend(made.heat_maps)
    del made.heat_maps[:]
    made.why_not.CopyFrom(told)
    return made


class Service:
    """Answers from messages, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.streams = 0
        self.answer = explained()
        self.growing = [event_of(part, number) for number, part in enumerate(GROWING)]

    def __call__(self, handler: Any) -> None:
        if handler.path.startswith("/v1/models?"):
            listed = explainer_pb2.ListModelsResponse(models=[model()])
            answer(200, PROTOBUF, listed.SerializeToString())(handler)
        elif handler.path == "/v1/models/signs":
            answer(200, PROTOBUF, model().SerializeToString())(handler)
        elif handler.headers["Accept"] == "text/event-stream":
            self.asked.append(explainer_pb2.ExplainRequest.FromString(handler.body))
            self.streams += 1
            answer(200, "text/event-stream", b"".join(self.growing))(handler)
        else:
            kind = explainer_pb2.DetectRequest if ":detect" in handler.path else explainer_pb2.ExplainRequest
            self.asked.append(kind.FromString(handler.body))
            answer(200, PROTOBUF, self.answer.SerializeToString())(handler)


@contextmanager
def serving() -> Iterator[tuple[Service, Web]]:
    service = Service()
    with web(service) as server:
        yield service, server


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.new("RGB", (W, H), (90, 120, 90)).save(path)
    return path


def whybox(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def explain(scene: Path, *options: object) -> tuple[Service, Result]:
    with serving() as (service, server):
        out = scene.parent / "out"
        return service, whybox("explain", scene, "--out", out, *options, "--url", server.url)


def test_what_is_said_arrives(scene: Path) -> None:
    options = "--layer level+layer2 --param sign=abs --seed 4 --nms odam --nms-param corr_high=0.7 --evaluate"
    service, result = explain(scene, *options.split(), "--suppressed", "--label", "stop")
    assert result.exit_code == 0, result.output
    (asked,) = service.asked
    assert (asked.layer, asked.params["sign"], asked.seed, asked.evaluate) == ("level+layer2", "abs", 4, True)
    assert (asked.nms.kind, asked.nms.explain_suppressed) == ("odam", True)
    assert asked.nms.corr_high == pytest.approx(0.7)
    assert not asked.nms.HasField("corr_low")
    assert (asked.select.max_detections, asked.HasField("budget")) == (10, False)
    assert service.streams == 0
    picture = scene.parent / "out" / "scene-explained.png"
    lines = result.stdout.splitlines()
    assert lines[0] == f"{scene}: 1 detections -> {picture}"
    assert lines[1].split() == ["#", "LABEL", "TARGET", "DELETION", "INSERTION"]
    assert lines[2].split() == ["0", "stop", "class", "0.25", "0.5"]
    assert lines[3].split() == ["SUPPRESSED", "SCORE", "BY", "IOU", "CORRELATION", "RULE"]
    assert lines[4].split() == ["stop", "0.4", "0", "(stop", "0.90)", "0.78", "0.93", "same_object"]
    said = json.loads(picture.with_suffix(".json").read_text())
    assert said["heat_maps"][0]["faithfulness"] == {"deletion": 0.25, "insertion": 0.5}
    assert said["suppressed"][0]["rule"] == "same_object"


def test_numbers_alone_are_the_models_own_nms(scene: Path) -> None:
    with serving() as (service, server):
        result = whybox("detect", scene, "--nms-param", "iou_threshold=0.3", "--url", server.url)
    assert result.exit_code == 0, result.output
    assert (service.asked[0].nms.kind, service.asked[0].nms.explain_suppressed) == ("", False)
    assert service.asked[0].nms.iou_threshold == pytest.approx(0.3)


def test_detect_lists_what_was_suppressed(scene: Path) -> None:
    with serving() as (service, server):
        result = whybox("detect", scene, "--suppressed", "--url", server.url)
        assert "same_object" in result.stdout.splitlines()[4]
        del service.answer.suppressed[:]
        result = whybox("detect", scene, "--suppressed", "--url", server.url)
    assert result.stdout.splitlines()[3] == "nothing was suppressed"


def test_why_an_object_is_missing(scene: Path) -> None:
    with serving() as (service, server):
        service.answer = missed()
        out = scene.parent / "out"
        result = whybox(
            *("explain", scene, "--out", out, "--url", server.url),
            *("--expected", " 20,5, 36.5,20,no entry, left"),
        )
    assert result.exit_code == 0, result.output
    select = service.asked[0].select
    assert (list(select.expected.box), select.expected.label) == ([20, 5, 36.5, 20], "no entry, left")
    assert not select.HasField("max_detections")
    (first,) = result.stdout.splitlines()
    best = "The best candidate (yield 0.20, IoU 0.70 with the expected box)"
    assert first == f"{scene}: {best} is below the score threshold 0.30 -> {out / 'scene-explained.png'}"
    with Image.open(out / "scene-explained.png") as drawn:
        assert drawn.size == (8 + 2 * 328, 8 + 22 + 240 + 8 + 22)
    assert json.loads((out / "scene-explained.json").read_text())["why_not"]["reason"] == "score"


def test_a_sampling_method_is_streamed_for_one_image(scene: Path) -> None:
    service, result = explain(scene, "--method", "d_rise", "--seconds", 2.5, "--samples", 30)
    assert result.exit_code == 0, result.output
    assert (result.stderr, service.streams) == ("", 1)
    (asked,) = service.asked
    assert (asked.budget.seconds, asked.budget.samples) == (2.5, 30)
    said = json.loads((scene.parent / "out" / "scene-explained.json").read_text())
    assert (said["heat_maps"][0]["samples"], said["final"]) == (30, True)


def test_many_images_are_not(scene: Path) -> None:
    service, result = explain(scene, scene, "--method", "d_rise")
    assert result.exit_code == 0, result.output
    assert (service.streams, len(service.asked)) == (0, 2)


def test_a_stream_that_breaks_is_told_in_one_line(scene: Path) -> None:
    with serving() as (service, server):
        service.growing = service.growing[:1]
        result = whybox("explain", scene, "--method", "d_rise", "--out", scene.parent, "--url", server.url)
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert "the stream ended before its result" in line


@pytest.mark.parametrize(
    "wrong",
    [
        ("--expected", "1,2,3,stop"),
        ("--expected", "1,2,3,four,stop"),
        ("--expected", "1,2,3,4,"),
        ("--nms-param", "threshold=0.5"),
        ("--nms-param", "iou_threshold=half"),
        ("--seconds", "0"),
        ("--samples", "0"),
        ("--seed", "-1"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_asked(scene: Path, wrong: tuple[str, str]) -> None:
    service, result = explain(scene, *wrong)
    assert result.exit_code == 2
    assert wrong[0] in result.stderr
    assert service.asked == []


def test_a_missed_object_is_not_measured(scene: Path) -> None:
    service, result = explain(scene, "--expected", "1,2,3,4,stop", "--evaluate")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "Error: --evaluate and --expected do not go together: a missed object is not measured"
    )
    assert service.asked == []


def test_models_tell_of_samples_layers_and_measures() -> None:
    with serving() as (_, server):
        table = whybox("models", "--url", server.url).stdout
        shown = whybox("models", "show", "signs", "--url", server.url).stdout
    assert table.splitlines()[1].split() == ["signs", "1.0", "yes", "odam,", "d_rise", "1", "2"]
    assert "  layers   level, layer2 (default level; several as a+b)\n" in shown
    assert "  samples  drawn at random" in shown.partition("method d_rise")[2]
    assert "samples" not in shown.partition("method d_rise")[0]
    assert "measure deletion: lower is better. Random fill." in shown


def test_the_shell_completes_what_a_model_offers() -> None:
    with serving() as (_, server):
        for words, completed in (
            ("--method d_", ["d_rise"]),
            ("--layer ", ["level", "layer2"]),
            ("--layer level+", ["level+layer2"]),
            ("--method d_rise --layer l", []),
            ("--method d_rise --param c", ["cells="]),
            ("--targets class,", ["class,x1", "class,combined"]),
            ("--nms o", ["odam"]),
            ("--nms-param corr_", ["corr_high=", "corr_low="]),
            ("-m other --method d_", []),
        ):
            told = complete(f"whybox explain {words}", WHYBOX_URL=server.url)
            assert told == [f"plain,{name}" for name in completed], words


def test_a_terminal_sees_samples_and_standard_error(scene: Path) -> None:
    """In a pseudo-terminal of its own."""
    import fcntl
    import pty
    import struct
    import termios

    with serving() as (_, server):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        with os.fdopen(ours, "rb", buffering=0) as screen:
            command = ["explain", str(scene), "--method", "d_rise", "--samples", "30", "--url", server.url]
            process = subprocess.Popen(
                [sys.executable, "-m", "whybox_client.cli", *command],
                cwd=scene.parent,
                stdout=subprocess.DEVNULL,
                stderr=theirs,
            )
            os.close(theirs)
            shown = b""
            with suppress(OSError):  # Linux says so when the other end is closed
                while part := screen.read(4096):
                    shown += part
            assert process.wait(PATIENCE_S) == 0
    assert b"30/30" in shown
    assert b"standard error 0.033" in shown
