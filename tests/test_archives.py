"""Archives: self-contained, and served by TorchServe's own loader in an environment with little else."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from packaging.requirements import Requirement

from builders import LABELS, encoded, random_image, write_recipe
from whybox.archives import build
from whybox.engine import Engine
from whybox.recipe import Recipe, RecipeError

PROMISED = ("torch", "torchvision", "protobuf", "safetensors", "numpy", "pillow", "pyyaml", "torchserve")
"""What a TorchServe's Python must have, and TorchServe itself."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    return build(write_recipe(folder, "faster-rcnn"), folder / "store")


def test_an_archive_carries_what_a_worker_needs_and_no_more(archive: Path) -> None:
    names = set(zipfile.ZipFile(archive).namelist())
    assert {
        "whybox_entry_faster_rcnn_random.py",
        "recipe.yaml",
        "weights.safetensors",
        "whybox/engine.py",
    } <= names
    assert {"whybox_proto/v1/worker_pb2.py", "MAR-INF/MANIFEST.json", "model-config.yaml"} <= names
    left_out = "scenes", "training", "evaluation"
    assert not [n for n in names if any(w in n for w in left_out) or n.endswith((".pyc", "_grpc.py"))]


def test_building_again_replaces(archive: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "faster-rcnn", version="2.0")
    again = build(path, archive.parent)
    assert again == archive
    manifest = json.loads(zipfile.ZipFile(again).read("MAR-INF/MANIFEST.json"))
    assert manifest["model"]["modelVersion"] == "2.0"


def test_weights_of_pytorch_are_packed_as_safetensors(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "fcos")
    state = safetensors.torch.load_file(tmp_path / "fcos-random.safetensors")
    torch.save(state, tmp_path / "fcos.pth")
    with zipfile.ZipFile(build(path, tmp_path / "store", tmp_path / "fcos.pth")) as packed:
        assert yaml.safe_load(packed.read("recipe.yaml"))["weights"] == "weights.safetensors"
        own = safetensors.torch.load(packed.read("weights.safetensors"))
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [("classification_head.cls_logits", "scores"), ("regression_head.bbox_reg", "boxes")],
)
def test_a_model_that_answers_with_what_is_not_finite(spoilt: str, words: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "fcos")
    state = safetensors.torch.load_file(tmp_path / "fcos-random.safetensors")
    state[f"head.{spoilt}.bias"].fill_(torch.nan)
    safetensors.torch.save_file(state, tmp_path / "fcos-random.safetensors")
    with pytest.raises(RecipeError, match=f"fcos-random: the {words} of a picture of noise are not finite"):
        build(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("broken", ["prepare", "forward", "postprocess"])
def test_a_model_that_fails_on_a_picture(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path, "retinanet", input={"max_pixels": 10_000})
    load = Engine.load

    def load_broken(recipe: Recipe, weights: Path) -> Engine:
        engine = load(recipe, weights)

        def fail(*_: object) -> None:
            raise KeyError("sizes")

        monkeypatch.setattr(engine.detector, broken, fail)
        return engine

    monkeypatch.setattr(Engine, "load", load_broken)
    words = "retinanet-random: the model fails on a picture of 100 x 100 pixels: KeyError: 'sizes'"
    with pytest.raises(RecipeError, match=words):
        build(path, tmp_path / "store")


def requirements_of(names: tuple[str, ...]) -> set[str]:
    """These distributions and all that they require."""
    seen: set[tuple[str, str]] = set()
    wanted = [(name, "") for name in names]
    while wanted:
        name, extra = wanted.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted += [(requirement.name, asked) for asked in ("", *requirement.extras)]
    return {name for name, _ in seen}


def link_environment(folder: Path) -> None:
    """Link the promised distributions, and nothing else, into a folder that can be a sys.path."""
    for name in requirements_of(PROMISED):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            if ".." in file.parts:
                continue
            source, target = Path(str(distribution.locate_file(file.parts[0]))), folder / file.parts[0]
            if not source.is_dir() or source.name.endswith((".dist-info", ".libs")):
                if not target.exists():
                    target.symlink_to(source)
            else:
                # Packages such as nvidia are shared between distributions: link file by file.
                whole = folder / file
                whole.parent.mkdir(parents=True, exist_ok=True)
                if not whole.exists():
                    whole.symlink_to(str(distribution.locate_file(file)))


SERVE = """
import json, sys
model_dir, out = sys.argv[1], sys.argv[2]
sys.path[:0] = [model_dir, *sys.argv[3:]]
import importlib.util
for absent in ("grpc", "cv2", "fastapi", "httpx", "whybox_client", "whybox_service", "pycocotools"):
    assert importlib.util.find_spec(absent) is None, f"{absent} is not promised"
from ts.model_loader import ModelLoaderFactory
manifest = json.load(open(model_dir + "/MAR-INF/MANIFEST.json"))
entry = manifest["model"]["handler"]
service = ModelLoaderFactory.get_model_loader().load("m", model_dir, entry, None, 2, None)
import whybox
assert whybox.__file__.startswith(model_dir), whybox.__file__
image = open(out, "rb").read()
def call(**headers):
    part = {"name": "body", "value": image, "contentType": ""}
    rows = [{"name": k.encode(), "value": v.encode()} for k, v in headers.items()]
    return {"requestId": b"1", "parameters": [part], "headers": rows}
class Metrics:
    request_ids = None
    def add_time(self, *args): pass
service.context.metrics = Metrics()
service.cl_socket = None
answers = service.predict([call(explain="False"), call(explain="True")])
open(out + ".answer", "wb").write(bytes(answers))
"""


def test_an_archive_runs_where_only_the_promised_packages_are(archive: Path, tmp_path: Path) -> None:
    """TorchServe's own loader and service run it, on a sys.path with the promised packages alone."""
    model_dir, environment, image = tmp_path / "model", tmp_path / "env", tmp_path / "image.png"
    zipfile.ZipFile(archive).extractall(model_dir)
    environment.mkdir()
    link_environment(environment)
    image.write_bytes(encoded(random_image()))
    command = [sys.executable, "-I", "-S", "-c", SERVE, str(model_dir), str(image), str(environment)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answer = image.with_name("image.png.answer").read_bytes()
    assert b"detections" in answer
    assert b"heat_maps" in answer
    assert any(label.encode() in answer for label in LABELS)
