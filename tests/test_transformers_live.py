"""A DETR as a user has it: packed by the command, served by TorchServe, asked over both transports."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from builders import LABELS, encoded, random_image
from conftest import PATIENCE_SECONDS, Live, serving
from query_models import random_query_detector, write_checkpoint
from whybox_client import Client, Detections, Layout, LayoutObject
from whybox_client.cli import main

NAME, THRESHOLD = "detr", 0.05
HEIGHT, WIDTH = 128, 160
"""Resized to 64 x 80 (`query_models.SHORT`), so the last stage, of stride 32, has 2 x 3 cells."""

LAYOUT = Layout(64, 64, (LayoutObject(LABELS[1], (6, 8, 40, 44)), LayoutObject(LABELS[3], (30, 20, 60, 58))))
ITERATIONS = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detr")
    recipe = write_checkpoint(folder, NAME, score_threshold=THRESHOLD)
    done = CliRunner().invoke(main, ["models", "build", str(recipe), "--out", str(folder / "store")])
    assert done.exit_code == 0, done.output
    assert done.output.split() == [str(folder / "store" / f"{NAME}.mar")]
    return folder / "store"


@pytest.fixture(scope="module")
def served(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(store, tmp_path_factory.mktemp("serving")) as running:
        yield running


@pytest.fixture(scope="module")
def clients(served: Live) -> Iterator[tuple[Client, ...]]:
    """Over REST and over gRPC."""
    with (
        Client(served.rest, timeout=PATIENCE_SECONDS) as rest,
        Client(served.grpc, timeout=PATIENCE_SECONDS) as grpc,
    ):
        yield rest, grpc


@pytest.fixture(scope="module")
def image() -> bytes:
    return encoded(random_image(HEIGHT, WIDTH))


def assert_same(one: Detections, other: Detections) -> None:
    """Equal, but for the rounding of a forward pass."""
    assert [d.label for d in one] == [d.label for d in other]
    np.testing.assert_allclose([d.box for d in one], [d.box for d in other], atol=1e-2)
    np.testing.assert_allclose([d.score for d in one], [d.score for d in other], atol=1e-4)


def test_its_description(clients: tuple[Client, ...], store: Path) -> None:
    rest, grpc = (client.model(NAME) for client in clients)
    assert rest == grpc
    assert (rest.family, rest.architecture, rest.labels) == ("transformers", "detr", LABELS)
    assert rest.ready
    assert rest.default_nms == "none"
    assert [layer.name for layer in rest.layers] == ["stage4", "memory", "stage1", "stage2", "stage3"]
    methods = {method.name: method for method in rest.methods}
    assert {"odam", "attention", "d_rise"} <= methods.keys()
    assert methods["attention"].layers == ("decoder", "encoder")
    assert rest.inversion is not None
    with zipfile.ZipFile(store / f"{NAME}.mar") as archive:
        assert rest.weights_sha256 == hashlib.sha256(archive.read("weights.safetensors")).hexdigest()


def test_detections_are_those_of_the_model_in_this_process(clients: tuple[Client, ...], image: bytes) -> None:
    detector = random_query_detector(NAME)
    settings = replace(detector.defaults, score_threshold=THRESHOLD)
    (own,) = detector.detect([random_image(HEIGHT, WIDTH)], settings)
    for client in clients:
        found = client.detect(NAME, image)
        assert len(found) > 1
        assert [d.label_id for d in found] == own.labels.tolist()
        np.testing.assert_allclose([d.box for d in found], own.boxes.numpy(), atol=1e-2)
        np.testing.assert_allclose([d.score for d in found], own.scores.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("method", "layer", "targets"),
    [
        ("odam", None, ["class", "x1"]),
        ("odam", "memory", ["class", "y2"]),
        ("attention", "decoder", ["class"]),
        ("attention", "encoder", ["class"]),
    ],
)
def test_explanations(
    clients: tuple[Client, ...], image: bytes, method: str, layer: str | None, targets: list[str]
) -> None:
    rest, grpc = (
        client.explain(NAME, image, method=method, layer=layer, targets=targets, encoding="f32")
        for client in clients
    )
    assert_same(rest.detections, grpc.detections)
    assert [list(row) for row in rest] == [targets] * len(rest.detections)
    for one, other in zip(rest.heat_maps, grpc.heat_maps, strict=True):
        assert (one.method, one.layer) == (method, layer or "stage4")
        assert (one.height, one.width) == (2, 3)
        left, top, right, bottom = one.region
        assert (right - left, bottom - top) == pytest.approx((WIDTH, HEIGHT))
        assert left <= 0 < right
        assert top <= 0 < bottom
        assert np.isfinite(one.values).all()
        np.testing.assert_allclose(one.values, other.values, rtol=1e-2, atol=1e-3 * np.abs(one.values).max())
    shown = np.array([one.values for one in rest.heat_maps])
    assert (shown >= 0).all()
    assert np.ptp(shown, axis=(1, 2)).max() > 0
    if method == "attention":
        np.testing.assert_allclose(shown.sum((1, 2)), 1, rtol=1e-4)
    else:
        of_class, of_side = shown[0::2], shown[1::2]
        assert not np.allclose(of_class, of_side, rtol=0.1, atol=0)


def test_an_inversion_to_its_end(clients: tuple[Client, ...]) -> None:
    pictures = []
    for client in clients:
        job = client.invert(LAYOUT, model=NAME, params={"iterations": ITERATIONS}, seed=3)
        result = job.wait(timeout=PATIENCE_SECONDS)
        assert (job.state, job.progress.iteration) == ("succeeded", ITERATIONS)
        assert result.layout == LAYOUT
        assert result.params["iterations"] == ITERATIONS
        assert "total" in result.losses
        assert result.image.size == (LAYOUT.width, LAYOUT.height)
        assert result.detections.model == NAME
        pictures.append(result.image.tobytes())
    assert pictures[0] == pictures[1]
