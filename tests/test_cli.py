"""`whybox` on the command line: against the real service, and where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from whybox_client.cli import main
from whybox_client.cli.explain import _stems
from whybox_client.cli.tables import table

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blobs of colour, 160 x 128."""
    coarse = np.random.default_rng(3).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("scenes") / "scene.png"
    Image.fromarray(coarse).resize((160, 128), Image.Resampling.BICUBIC).save(path)
    return path


def whybox(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env=environment)


def process(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own: what other packages warn of when imported is not our test's matter."""
    return subprocess.run(
        [sys.executable, "-m", "whybox_client.cli", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(params=["rest", "grpc"])
def url(live: Any, request: pytest.FixtureRequest) -> str:
    address: str = getattr(live, request.param)
    return address


class TestModels:
    def test_a_table(self, live: Any, url: str) -> None:
        result = whybox("models", "--url", url)
        assert result.exit_code == 0, result.output
        head, *lines = result.stdout.splitlines()
        assert head.split() == ["NAME", "VERSION", "FAMILY", "READY", "METHODS", "MEASURES", "LABELS"]
        assert [line.split()[0] for line in lines] == sorted(live.models)
        assert all(" yes " in line for line in lines)

    def test_json(self, live: Any, url: str) -> None:
        result = whybox("models", "--json", "--url", url)
        assert [model["name"] for model in json.loads(result.stdout)] == sorted(live.models)

    def test_show(self, live: Any) -> None:
        name = live.model
        result = whybox("models", "show", name, WHYBOX_URL=live.grpc)
        assert result.exit_code == 0, result.output
        for word in (name, "method odam", "targets", "labels", "nms", "(default)"):
            assert word in result.stdout
        shown = json.loads(whybox("models", "show", name, "--url", live.rest, "--json").stdout)
        assert (shown["name"], shown["ready"]) == (name, True)
        assert json.loads(whybox("models", "--json", "--url", live.rest, "show", name).stdout) == shown

    def test_a_name_that_is_not_there(self, live: Any, url: str) -> None:
        result = whybox("models", "show", live.model + "x", "--url", url)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: there is no model")
        assert f"did you mean '{live.model}'" in result.stderr
        assert len(result.stderr.splitlines()) == 1


class TestDetect:
    def test_a_table_for_each_image(self, live: Any, url: str, scene: Path) -> None:
        settings = ("-m", live.model, "--score-threshold", 0, "--max-detections", 2, "--url", url)
        result = whybox("detect", scene, scene, *settings)
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert lines[0] == lines[5] == str(scene)
        assert lines[1].split() == ["#", "LABEL", "SCORE", "X1", "Y1", "X2", "Y2"]
        assert [line.split()[0] for line in lines[2:4]] == ["0", "1"]

    def test_a_line_of_json_for_each_image(self, live: Any, url: str, scene: Path) -> None:
        settings = (
            "-m",
            live.model,
            "--score-threshold",
            0,
            "--max-detections",
            2,
            "--json",
            "--url",
            url,
        )
        result = whybox("detect", scene, scene, *settings)
        assert result.exit_code == 0, result.output
        one, other = map(json.loads, result.stdout.splitlines())
        assert one["file"] == other["file"] == str(scene)
        assert len(one["detections"]) == 2

    def test_no_detections_are_said(self, live: Any, scene: Path) -> None:
        result = whybox("detect", scene, "-m", live.model, "--score-threshold", 1, "--url", live.rest)
        assert result.exit_code == 0
        assert "no detections" in result.stdout

    def test_a_model_must_be_named_where_there_are_several(self, live: Any, scene: Path) -> None:
        result = whybox("detect", scene, "--score-threshold", 1, "--url", live.rest)
        if len(live.models) == 1:
            assert result.exit_code == 0
        else:
            assert result.exit_code == 2
            assert f"say which --model: {', '.join(sorted(live.models))}" in result.stderr


class TestExplain:
    def test_a_picture_and_json_for_each_image(
        self, live: Any, url: str, scene: Path, tmp_path: Path
    ) -> None:
        result = whybox(
            *(
                "explain",
                scene,
                "--out",
                tmp_path / "a" / "b",
                "-m",
                live.model,
                "--targets",
                "class, x1",
            ),
            *("--score-threshold", 0, "--max-detections", 2, "--url", url),
        )
        assert result.exit_code == 0, result.output
        picture = tmp_path / "a" / "b" / "scene-explained.png"
        assert result.stdout == f"{scene}: 2 detections -> {picture}\n"
        with Image.open(picture) as drawn:
            assert drawn.size == (8 + 3 * (320 + 8), 8 + 2 * (22 + 256 + 8))
        said = json.loads(picture.with_suffix(".json").read_text())
        assert (said["file"], said["picture"]) == (str(scene), picture.name)
        assert [m["target"] for m in said["heat_maps"]] == ["class", "x1"] * 2

    def test_a_bad_file_among_many_is_reported_and_the_others_go_on(
        self, live: Any, url: str, scene: Path, tmp_path: Path
    ) -> None:
        bad, missing = tmp_path / "bad.jpg", tmp_path / "missing.jpg"
        bad.write_bytes(b"no picture")
        result = whybox(
            *("explain", bad, missing, scene, "--out", tmp_path, "-m", live.model),
            *("--score-threshold", 0, "--max-detections", 1, "--url", url),
        )
        assert result.exit_code == 1
        assert (tmp_path / "scene-explained.png").exists()
        first, second, last = result.stderr.splitlines()
        assert first.startswith(f"{bad}: ")
        assert "field image" in first
        assert second == f"{missing}: No such file or directory"
        assert last == "Error: 2 of 3 images failed"

    @pytest.mark.parametrize(("timeout", "exit_code"), [("60", 1), ("0.001", 3)])
    def test_the_only_image_fails_in_one_line(
        self, live: Any, scene: Path, tmp_path: Path, timeout: str, exit_code: int
    ) -> None:
        image = tmp_path / "bad.jpg"
        image.write_bytes(b"no picture" if exit_code == 1 else scene.read_bytes())
        result = whybox("detect", image, "-m", live.model, "--timeout", timeout, "--url", live.rest)
        assert result.exit_code == exit_code
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"Error: {image}: ")

    @pytest.mark.parametrize(
        "wrong",
        [
            ("--targets", "klass"),
            ("--layer", "no-such-layer"),
            ("--method", "no-such-method"),
            ("--label", "no-such-label"),
            ("--param", "no_such=1"),
        ],
    )
    def test_what_is_wrong_for_every_image_is_said_once(
        self, live: Any, scene: Path, tmp_path: Path, wrong: tuple[str, str]
    ) -> None:
        result = whybox(
            "explain", scene, scene, "--out", tmp_path, "-m", live.model, *wrong, "--url", live.rest
        )
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert "expected" in result.stderr
        assert "field" in result.stderr

    def test_as_a_process_it_shows_progress_to_a_terminal_only(
        self, live: Any, scene: Path, tmp_path: Path
    ) -> None:
        settings = ("-m", live.model, "--score-threshold", 0, "--max-detections", 1)
        done = process(tmp_path, "explain", scene, scene, *settings, WHYBOX_URL=live.grpc)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{scene}: 1 detections -> out/scene-explained.png\n" * 2


class TestNoService:
    @pytest.mark.parametrize("url", [NOBODY, "grpc://127.0.0.1:9"])
    @pytest.mark.parametrize(
        "command",
        [("models",), ("models", "show", "m"), ("detect", "a.png"), ("explain", "a.png", "-m", "m")],
    )
    def test_it_is_said_in_one_line(
        self,
        command: tuple[str, ...],
        url: str,
        scene: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("a.png").write_bytes(scene.read_bytes())
        result = whybox(*command, "--url", url)
        assert result.exit_code == 3
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"Error: {url}: ")
        assert "is `whybox serve` running there?" in line

    @pytest.mark.parametrize(
        "command",
        [
            ("models", "--url", "ftp://host"),
            ("detect",),
            ("detect", "a.png", "--score-threshold", "2"),
            ("detect", "a.png", "--timeout", "0"),
            ("explain", "a.png", "--param", "sigma"),
            ("models", "build", "no-such-recipe.yaml"),
            ("serve", "--model-store", "no-such-folder"),
            ("serve", "--port", "70000"),
            ("no-such-command",),
        ],
    )
    def test_a_wrong_command_line(self, command: tuple[str, ...]) -> None:
        result = whybox(*command)
        assert result.exit_code == 2
        assert "Traceback" not in result.output

    def test_version_and_help(self) -> None:
        assert whybox("--version").stdout.startswith("whybox, version ")
        for command in ((), ("serve",), ("models",), ("models", "build"), ("detect",), ("explain",)):
            assert "Usage:" in whybox(*command, "-h").stdout

    def test_build_without_recipes(self, tmp_path: Path) -> None:
        done = process(tmp_path, "models", "build")
        assert done.returncode == 2
        assert "no recipe given" in done.stderr

    def test_a_recipe_that_cannot_be_built(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.yaml").write_text("nonsense: true\n")
        done = process(tmp_path, "models", "build", "recipe.yaml", "--out", "store")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: recipe.yaml: ")

    def test_a_recipe_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "model_store").mkdir()
        (tmp_path / "model_store" / "Mine.yaml").write_text("nonsense: true\n")
        for name in ("Mine", "mine"):
            done = process(tmp_path, "models", "build", name, "--weights", ".")
            assert done.stderr.startswith(f"Error: {Path('model_store/Mine.yaml')}: ")
        done = process(tmp_path, "models", "build", "Your")
        assert done.returncode == 2
        assert "no file Your, and no recipe of that name in model_store" in " ".join(done.stderr.split())

    @pytest.mark.parametrize(
        ("command", "missing"),
        [(("serve", "--model-store", "."), "ts"), (("models", "build", "r.yaml"), "torch")],
    )
    def test_a_missing_extra_is_named(self, command: tuple[str, ...], missing: str, tmp_path: Path) -> None:
        (tmp_path / "r.yaml").write_text("{}")
        code = (
            f"import sys; sys.modules[{missing!r}] = None; "
            f"from whybox_client.cli import main; main({list(command)!r})"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: this needs more than the client")
        assert line.endswith("pip install 'whybox[serve]'")


def test_outputs_of_images_with_one_name_do_not_overwrite_each_other() -> None:
    images = ["a/cat.jpg", "b/cat.png", "a/cat.jpg", "cat-2.png", "c/cat.gif"]
    assert _stems(images) == {
        "a/cat.jpg": "cat",
        "b/cat.png": "cat-2",
        "cat-2.png": "cat-2-2",
        "c/cat.gif": "cat-3",
    }


def test_parameters_are_numbers_booleans_or_strings() -> None:
    from whybox_client.cli.options import parameters

    context: Any = None
    texts = ["a=1", "b=0.5", "c=true", "d=relu", "e=[1]", 'f="x"', "g=a=b", "h="]
    assert parameters(context, context, texts) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "relu",
        "e": "[1]",
        "f": "x",
        "g": "a=b",
        "h": "",
    }


def test_tables_put_numbers_to_the_right() -> None:
    assert table(("NAME", "N"), [("a", 5), ("long", 10)]).splitlines() == ["NAME   N", "a      5", "long  10"]
    assert table(("NAME", "N"), []) == "NAME  N"
