"""The client against the real service: both transports, both clients, every form of image."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from whybox_client import AsyncClient, Client, Detections, Explanation, GroundTruth, Nms, errors

W, H = 160, 128
FIRST: dict[str, Any] = {"score_threshold": 0.0, "max_detections": 3}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Blobs of colour, uint8 (H, W, 3)."""
    coarse = np.random.default_rng(3).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((W, H), Image.Resampling.BICUBIC))


@pytest.fixture(params=["rest", "grpc"])
def url(live: Any, request: pytest.FixtureRequest) -> str:
    address: str = getattr(live, request.param)
    return address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as opened:
        yield opened


def everywhere(live: Any, name: str, *args: Any, **kwargs: Any) -> list[Any]:
    """The same call by both clients over both transports."""
    answers = []
    for url in (live.rest, live.grpc):
        with Client(url) as client:
            answers.append(getattr(client, name)(*args, **kwargs))

        async def ask(url: str = url) -> Any:
            async with AsyncClient(url) as client:
                return await getattr(client, name)(*args, **kwargs)

        answers.append(asyncio.run(ask()))
    return answers


def assert_same(one: Detections, other: Detections) -> None:
    """Equal up to the rounding of a forward pass: another batch may have been formed."""
    assert [d.label for d in one] == [d.label for d in other]
    np.testing.assert_allclose([d.box for d in one], [d.box for d in other], atol=1e-2)
    np.testing.assert_allclose([d.score for d in one], [d.score for d in other], atol=1e-4)


def test_models_are_the_same_everywhere(live: Any) -> None:
    first, *others = everywhere(live, "models")
    assert sorted(model.name for model in first) == sorted(live.models)
    for other in others:
        assert other == first
    for model in first:
        assert model.ready
        assert model.labels
        assert "odam" in [method.name for method in model.methods]
        for described in everywhere(live, "model", model.name):
            assert described == model


def test_ready_everywhere(live: Any) -> None:
    assert everywhere(live, "ready") == [True] * 4


def test_detect_is_the_same_everywhere(live: Any, pixels: np.ndarray) -> None:
    first, *others = everywhere(live, "detect", live.model, pixels, **FIRST)
    assert isinstance(first, Detections)
    assert len(first) == 3
    assert (first.width, first.height) == (W, H)
    assert [d.index for d in first] == [0, 1, 2]
    assert first[0].score >= first[1].score >= first[2].score
    assert {stage.name for stage in first.stages} >= {"forward"}
    for other in others:
        assert_same(first, other)


def test_explain_is_the_same_everywhere(live: Any, pixels: np.ndarray) -> None:
    settings = {**FIRST, "targets": ["class", "x1", "combined"], "encoding": "f32"}
    first, *others = everywhere(live, "explain", live.model, pixels, **settings)
    assert isinstance(first, Explanation)
    assert [list(row) for row in first] == [["class", "x1", "combined"]] * 3
    for other in others:
        assert_same(first.detections, other.detections)
        for one, same in zip(first.heat_maps, other.heat_maps, strict=True):
            assert (one.target, one.method, one.layer) == (same.target, same.method, same.layer)
            np.testing.assert_allclose(
                one.values, same.values, rtol=1e-2, atol=1e-3 * np.abs(one.values).max()
            )


def test_all_forms_of_an_image_give_the_same_answer(live: Any, pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    Image.fromarray(pixels).save(path)
    with Image.open(path) as opened, Client(live.rest) as client:
        forms = (path, str(path), path.read_bytes(), opened, pixels)
        first, *others = (client.detect(live.model, form, **FIRST) for form in forms)
    for other in others:
        assert_same(first, other)


def test_a_turned_photograph_is_upright_as_file_and_as_pillow_image(live: Any, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", exif=exif)
    with Client(live.rest) as client, Image.open(buffer) as opened:
        as_file = client.detect(live.model, buffer.getvalue(), **FIRST)
        as_image = client.detect(live.model, opened, **FIRST)
    assert (as_file.width, as_file.height) == (H, W)
    assert as_file.image.size == (H, W)
    assert_same(as_file, as_image)


def test_grey_arrays_are_explained(live: Any, client: Client, pixels: np.ndarray) -> None:
    explanation = client.explain(live.model, pixels[:, :, 0], **FIRST)
    assert len(explanation) == 3


def test_selections_reach_the_model(live: Any, client: Client, pixels: np.ndarray) -> None:
    name = live.model
    every = client.detect(name, pixels, **FIRST)
    chosen = client.detect(name, pixels, **FIRST, indices=1)
    assert [d.box for d in chosen] == [every[1].box]
    nearest = client.detect(name, pixels, **FIRST, box=every[2].box)
    assert [d.box for d in nearest] == [every[2].box]
    label = every[0].label
    assert {d.label for d in client.detect(name, pixels, score_threshold=0, labels=label)} == {label}
    assert len(client.detect(name, pixels, score_threshold=1.0)) == 0
    loose = client.detect(name, pixels, score_threshold=0.0, nms=Nms("iou", iou_threshold=0.9))
    strict = client.detect(name, pixels, score_threshold=0.0, nms=Nms("iou", iou_threshold=0.1))
    assert len(strict) < len(loose) or len(loose) == 100


SAMPLING: dict[str, Any] = {
    **FIRST,
    "max_detections": 1,
    "method": "d_rise",
    "params": {"samples": 12, "cells": 4},
    "seed": 5,
    "encoding": "f32",
    "timeout": 100,
}


def test_streams_end_with_what_explain_answers_everywhere(live: Any, pixels: np.ndarray) -> None:
    first, *others = everywhere(live, "explain", live.model, pixels, **SAMPLING)
    assert first.samples == 12
    for url in (live.rest, live.grpc):
        with Client(url) as client:
            results = list(client.explain_stream(live.model, pixels, **SAMPLING))
        assert [explanation.final for explanation in results] == [False] * (len(results) - 1) + [True]
        drawn = [explanation.samples or 0 for explanation in results]
        assert drawn == sorted(drawn)
        others.append(results[-1])

        async def last(url: str = url) -> Explanation:
            async with AsyncClient(url) as client:
                stream = client.explain_stream(live.model, pixels, **SAMPLING)
                return [explanation async for explanation in stream][-1]

        others.append(asyncio.run(last()))
    for other in others:
        assert other.samples == 12
        np.testing.assert_array_equal(other.heat_map().values, first.heat_map().values)


def test_a_stream_of_a_method_that_draws_nothing(live: Any, client: Client, pixels: np.ndarray) -> None:
    (only,) = client.explain_stream(live.model, pixels, **FIRST)
    assert (only.final, only.samples, len(only.heat_maps)) == (True, None, 3)


def test_a_refused_stream_is_a_typed_error(live: Any, client: Client, pixels: np.ndarray) -> None:
    with pytest.raises(errors.UnknownMethodError) as caught:
        list(client.explain_stream(live.model, pixels, method="odem"))
    assert caught.value.field == "method"
    with pytest.raises(errors.InvalidArgumentError) as refused:
        list(client.explain_stream(live.model, pixels, seconds=0, **{**SAMPLING, "timeout": 60}))
    assert refused.value.field == "budget.seconds"


def test_what_was_suppressed_is_the_same_everywhere(live: Any, pixels: np.ndarray) -> None:
    settings: dict[str, Any] = {"score_threshold": 0.0, "explain_suppressed": True}
    first, *others = everywhere(live, "detect", live.model, pixels, **settings, nms="iou")
    assert first.suppressed
    for one in first.suppressed:
        assert one.rule == "iou"
        assert one.by is None or one.label == one.by.label
    for other in others:
        assert [str(one) for one in other.suppressed] == [str(one) for one in first.suppressed]
    (alike, *_) = everywhere(live, "detect", live.model, pixels, **settings, nms="odam")
    assert {one.rule for one in alike.suppressed} <= {"same_object", "same_evidence"}
    assert all(one.correlation is not None for one in alike.suppressed)


def test_why_not_is_the_same_everywhere(live: Any, pixels: np.ndarray) -> None:
    with Client(live.rest) as client:
        there = client.detect(live.model, pixels, **FIRST)[0]
    told = everywhere(live, "explain", live.model, pixels, **FIRST, expected=(there.box, there.label))
    for explanation in told:
        why_not = explanation.why_not
        assert why_not is not None
        assert (why_not.reason, why_not.by.index) == ("found", 0)
        assert str(why_not).startswith(f"It is in the answer, as detection 0 ({there})")
        assert explanation.heat_maps == ()
    high = {"score_threshold": 1.0, "expected": (there.box, there.label), "targets": ["class", "x1"]}
    for explanation in everywhere(live, "explain", live.model, pixels, **high):
        why_not = explanation.why_not
        assert (why_not.reason, why_not.score_threshold) == ("score", 1.0)
        assert [heat_map.target for heat_map in why_not.heat_maps] == ["class", "x1"]
        assert why_not.heat_map("x1").in_image().shape == (H, W)
    for found in everywhere(live, "detect", live.model, pixels, **FIRST, expected=(there.box, there.label)):
        assert found.why_not.reason == "found"


def test_evaluations_are_the_same_everywhere(live: Any, pixels: np.ndarray) -> None:
    with Client(live.rest) as client:
        there = client.detect(live.model, pixels, **FIRST)[0]
    mask = np.zeros((H, W), bool)
    x1, y1, x2, y2 = (round(side) for side in there.box)
    mask[y1:y2, x1:x2] = True
    settings: dict[str, Any] = {
        **FIRST,
        "max_detections": 1,
        "truth": [GroundTruth(there.label, mask=mask)],
        "measures": ["energy_box", "energy_mask"],
    }
    first, *others = everywhere(live, "evaluate", live.model, pixels, **settings)
    assert [(e.detection.index, e.target) for e in first] == [(0, "class")]
    for evaluation in first:
        assert evaluation.values["energy_box"] == pytest.approx(evaluation.values["energy_mask"])
    for other in others:
        assert other.measures == first.measures == ("energy_box", "energy_mask")
        for one, same in zip(first, other, strict=True):
            assert dict(same.values) == pytest.approx(dict(one.values), abs=1e-3)


def test_maps_in_image_size_are_those_that_the_client_enlarges(
    live: Any, client: Client, pixels: np.ndarray
) -> None:
    name = live.model
    settings: dict[str, Any] = {**FIRST, "max_detections": 1, "encoding": "f32"}
    small = client.explain(name, pixels, **settings).heat_map()
    large = client.explain(name, pixels, **settings, output_size="image").heat_map()
    assert (large.width, large.height) == (W, H)
    assert small.width < W
    scale = np.abs(large.values).max()
    np.testing.assert_allclose(small.in_image(), large.in_image(), atol=1e-3 * scale)
    np.testing.assert_allclose(large.in_image(), large.values, atol=1e-6 * scale)


@pytest.mark.parametrize("encoding", ["u8", "png"])
def test_encodings_agree(live: Any, client: Client, pixels: np.ndarray, encoding: str) -> None:
    name, settings = live.model, {**FIRST, "max_detections": 1}
    exact = client.explain(name, pixels, **settings, encoding="f32").heat_map().values
    coded = client.explain(name, pixels, **settings, encoding=encoding).heat_map().values
    np.testing.assert_allclose(coded, exact, atol=(exact.max() - exact.min()) / 200)


def test_pictures_of_a_real_answer(live: Any, client: Client, pixels: np.ndarray, tmp_path: Path) -> None:
    explanation = client.explain(live.model, pixels, **FIRST, targets=["class", "y2"])
    assert explanation.picture().width > 3 * 320
    assert explanation[0]["y2"].overlay().size == (W, H)
    explanation.save(tmp_path / "why.png")
    assert explanation._repr_png_().startswith(b"\x89PNG")
    assert np.abs(explanation[0]["class"].in_image()).max() > 0


def bomb() -> bytes:
    """A PNG that says it has 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


REFUSED: list[tuple[type[errors.WhyboxError], dict[str, Any], str]] = [
    (errors.UnknownModelError, {"model": "no-such-model"}, "model"),
    (errors.UnknownLabelError, {"labels": ["no-such-label"]}, "select.labels[0]"),
    (errors.UnknownMethodError, {"method": "odem"}, "method"),
    (errors.UnknownTargetError, {"targets": ["class", "x3"]}, "targets[1]"),
    (errors.UnknownLabelError, {"targets": ["class:no-such-label"]}, "targets[0]"),
    (errors.UnknownLayerError, {"layer": "no-such-layer"}, "layer"),
    (errors.UnknownParameterError, {"params": {"no_such": 1}}, "params.no_such"),
    (errors.InvalidArgumentError, {"score_threshold": 1.5}, "select.score_threshold"),
    (errors.InvalidArgumentError, {"box": [5, 5, 1, 1]}, "select.box"),
    (errors.InvalidArgumentError, {"nms": "no-such-kind"}, "nms.kind"),
    (errors.InvalidArgumentError, {"output_size": "huge"}, "output.size"),
    (errors.InvalidArgumentError, {"encoding": "u16"}, "output.encoding"),
    (errors.InvalidImageError, {"image": b""}, "image"),
    (errors.InvalidImageError, {"image": b"no picture at all"}, "image"),
]


@pytest.mark.parametrize(
    ("kind", "wrong", "field"), REFUSED, ids=[f"{f}-{k.__name__}" for k, _, f in REFUSED]
)
def test_refusals_are_typed_and_the_same_everywhere(
    live: Any, pixels: np.ndarray, kind: type[errors.WhyboxError], wrong: dict[str, Any], field: str
) -> None:
    settings = {"model": live.model, "image": pixels, **wrong}
    told = set()
    for url in (live.rest, live.grpc):
        with Client(url) as client, pytest.raises(kind) as caught:
            client.explain(**settings, request_id="the-id-of-this-test")
        error = caught.value
        assert type(error) is kind
        assert error.request_id == "the-id-of-this-test"
        told.add((error.type, error.message, error.field, error.expected, error.got))
    assert len(told) == 1
    assert error.field == field
    assert error.expected
    assert error.got or "image" in wrong


def test_an_image_of_too_many_pixels_is_refused(live: Any, client: Client) -> None:
    with pytest.raises(errors.RequestError) as caught:
        client.detect(live.model, bomb())
    assert caught.value.field == "image"


def test_a_call_that_is_late_is_a_deadline_error(live: Any, client: Client, pixels: np.ndarray) -> None:
    with pytest.raises(errors.DeadlineExceededError) as caught:
        client.detect(live.model, pixels, timeout=0.001)
    assert caught.value.retryable
    assert len(client.detect(live.model, pixels, **FIRST)) == 3


def test_a_request_id_comes_back(live: Any, client: Client, pixels: np.ndarray) -> None:
    assert client.detect(live.model, pixels, request_id="mine-42").request_id == "mine-42"


def test_threads_may_share_a_client(live: Any, client: Client, pixels: np.ndarray) -> None:
    def ask(_: int) -> Detections:
        return client.detect(live.model, pixels, **FIRST)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(ask, range(8))
    for other in others:
        assert_same(first, other)


def test_calls_may_be_awaited_together(live: Any, url: str, pixels: np.ndarray) -> None:
    async def ask() -> list[Detections]:
        async with AsyncClient(url) as client:
            return await asyncio.gather(*(client.detect(live.model, pixels, **FIRST) for _ in range(6)))

    first, *others = asyncio.run(ask())
    for other in others:
        assert_same(first, other)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.bmp"])
def test_files_of_other_formats_are_sent_as_they_are(
    live: Any, client: Client, pixels: np.ndarray, tmp_path: Path, name: str
) -> None:
    Image.fromarray(pixels).save(tmp_path / name)
    assert len(client.detect(live.model, tmp_path / name, **FIRST)) == 3
