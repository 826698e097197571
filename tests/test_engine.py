"""The engine: what a worker answers, whatever it is asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import struct_pb2

from builders import LABELS, encoded, random_image, write_recipe
from whybox.detectors.base import Batch, Detections, Forward
from whybox.engine import Engine
from whybox.methods import METHODS, register
from whybox.recipe import read_recipe
from whybox_proto import maps
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

PICTURE = encoded(random_image(seed=5))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("recipe")
    recipe = read_recipe(write_recipe(folder, "retinanet"))
    return Engine.load(recipe, folder / str(recipe.weights))


def detect(image: bytes = PICTURE, **fields: object) -> worker_pb2.WorkerRequest:
    return worker_pb2.WorkerRequest(detect=explainer_pb2.DetectRequest(image=image, **fields), request_id="r")


def explain(image: bytes = PICTURE, **fields: object) -> worker_pb2.WorkerRequest:
    return worker_pb2.WorkerRequest(
        explain=explainer_pb2.ExplainRequest(image=image, **fields), request_id="r"
    )


def ask(engine: Engine, request: worker_pb2.WorkerRequest) -> worker_pb2.WorkerReply:
    (reply,) = engine.answer([request])
    return reply


def found(engine: Engine, **select: object) -> list[types_pb2.Detection]:
    reply = ask(engine, detect(select=types_pb2.Select(**select)))
    assert not reply.HasField("error"), reply.error
    return list(reply.detect.detections)


def test_a_description_says_what_can_be_asked(engine: Engine) -> None:
    model = ask(engine, worker_pb2.WorkerRequest(describe={})).model
    assert (model.name, list(model.labels)) == ("retinanet-random", list(LABELS))
    assert model.score_threshold == pytest.approx(0.05)
    odam = next(method for method in model.methods if method.name == "odam")
    assert list(odam.layers) == ["level", "stem", "layer1", "layer2", "layer3", "layer4"]
    assert odam.default_layer == "level"
    assert [layer.stride for layer in model.layers if layer.kind == "stage"] == [2, 4, 8, 16, 32]
    assert {nms.kind: [field.name for field, _ in nms.ListFields()] for nms in model.nms} == {
        "iou": ["kind", "iou_threshold"],
        "soft": ["kind", "sigma", "final_threshold"],
        "odam": ["kind", "iou_threshold", "corr_high", "corr_low"],
        "none": ["kind"],
    }
    assert model.default_nms == "iou"
    assert odam.params[0].default_value.number_value == pytest.approx(0.05)


def test_detections_are_described_in_the_image_frame(engine: Engine) -> None:
    reply = ask(engine, detect()).detect
    assert (reply.image.width, reply.image.height) == (160, 128)
    assert [d.index for d in reply.detections] == list(range(len(reply.detections)))
    assert len(reply.detections) > 5
    for detection in reply.detections:
        x1, y1, x2, y2 = detection.box
        assert 0 <= x1 < x2 <= 160
        assert 0 <= y1 < y2 <= 128
        assert detection.label == LABELS[detection.label_id]
    assert {stage.name for stage in reply.stages} == {"decode", "preprocess", "forward", "postprocess"}
    assert all(stage.seconds > 0 for stage in reply.stages)


class TestSelect:
    """Each filter of `select`, and their order."""

    def test_score_threshold(self, engine: Engine) -> None:
        everything = found(engine)
        threshold = everything[3].score
        assert [d.box for d in found(engine, score_threshold=threshold)] == [d.box for d in everything[:3]]

    def test_max_detections(self, engine: Engine) -> None:
        assert [d.box for d in found(engine, max_detections=2)] == [d.box for d in found(engine)[:2]]

    def test_labels_come_before_the_limit(self, engine: Engine) -> None:
        everything = found(engine, max_detections=1000)
        rare = min(LABELS, key=lambda label: sum(d.label == label for d in everything))
        assert everything[0].label != rare
        (only,) = found(engine, labels=[rare], max_detections=1)
        assert only.box == next(d for d in everything if d.label == rare).box

    def test_box_picks_the_one_that_overlaps_most(self, engine: Engine) -> None:
        everything = found(engine)
        wanted = everything[4]
        (picked,) = found(engine, box=wanted.box)
        assert picked.box == wanted.box
        assert picked.index == 0

    def test_a_box_on_nothing_is_warned_of(self, engine: Engine) -> None:
        reply = ask(engine, detect(select=types_pb2.Select(box=[500, 500, 600, 600])))
        assert not reply.detect.detections
        assert list(reply.detect.warnings) == ["no detection overlaps select.box"]

    def test_indices(self, engine: Engine) -> None:
        everything = found(engine)
        assert [d.box for d in found(engine, indices=[3, 1])] == [everything[3].box, everything[1].box]

    def test_an_index_too_far_is_named(self, engine: Engine) -> None:
        error = ask(engine, detect(select=types_pb2.Select(max_detections=3, indices=[0, 3]))).error
        assert (error.type, error.field, error.expected, error.got) == (
            "invalid_argument",
            "select.indices[1]",
            "0 to 2",
            "3",
        )


def test_maps_come_for_each_detection_and_target_in_order(engine: Engine) -> None:
    reply = ask(
        engine, explain(targets=["x2", "class:beta"], select=types_pb2.Select(max_detections=3))
    ).explain
    assert [(m.detection_index, m.target) for m in reply.heat_maps] == [
        (i, target) for i in range(3) for target in ("x2", "class:beta")
    ]
    assert {(m.method, m.layer, m.encoding) for m in reply.heat_maps} == {("odam", "level", "u8")}
    for heat_map, detection in zip(reply.heat_maps[::2], reply.detections, strict=True):
        values = maps.decode(heat_map)
        assert values.shape == (heat_map.height, heat_map.width)
        assert float(values.max()) > 0
        # The window of a level is centred on the cell that found the object.
        x1, y1, x2, y2 = heat_map.region
        cx, cy = (detection.box[0] + detection.box[2]) / 2, (detection.box[1] + detection.box[3]) / 2
        assert x1 - 16 <= cx <= x2 + 16
        assert y1 - 16 <= cy <= y2 + 16
    assert {"explain", "encode"} <= {stage.name for stage in reply.stages}


def test_encodings_and_parameters_act(engine: Engine) -> None:
    select = types_pb2.Select(max_detections=1)
    params = struct_pb2.Struct()
    params["smoothing"] = 0.0
    exact = ask(engine, explain(select=select, output=types_pb2.Output(encoding="f32"))).explain.heat_maps[0]
    rounded = ask(engine, explain(select=select)).explain.heat_maps[0]
    sharp = ask(engine, explain(select=select, params=params)).explain.heat_maps[0]
    step = (exact.max_value - exact.min_value) / 255
    assert np.abs(maps.decode(exact) - maps.decode(rounded)).max() <= step
    assert rounded.data != sharp.data


def test_asking_twice_gives_the_same_bytes(engine: Engine) -> None:
    first, second = (ask(engine, explain(targets=["class", "combined"])).explain for _ in range(2))
    assert [m.data for m in first.heat_maps] == [m.data for m in second.heat_maps]


def test_no_detection_gives_no_map(engine: Engine) -> None:
    reply = ask(engine, explain(select=types_pb2.Select(score_threshold=1.0))).explain
    assert not reply.detections
    assert not reply.heat_maps


@pytest.mark.parametrize(
    ("request_", "type_", "field"),
    [
        (worker_pb2.WorkerRequest(), "invalid_request", ""),
        (detect(b""), "missing_image", "image"),
        (detect(b"no picture"), "invalid_image", "image"),
        (detect(select=types_pb2.Select(labels=["alfa"])), "unknown_label", "select.labels[0]"),
        (detect(nms=types_pb2.Nms(kind="hard")), "invalid_argument", "nms.kind"),
        (explain(method="odem"), "unknown_method", "method"),
        (explain(targets=["x3"]), "unknown_target", "targets[0]"),
        (explain(layer="levl"), "unknown_layer", "layer"),
    ],
)
def test_one_bad_request_never_fails_its_neighbours(
    engine: Engine, request_: worker_pb2.WorkerRequest, type_: str, field: str
) -> None:
    alone = ask(engine, detect())
    before, wrong, after = engine.answer([detect(), request_, explain()])
    assert (wrong.error.type, wrong.error.field) == (type_, field)
    for ours, theirs in zip(before.detect.detections, alone.detect.detections, strict=True):
        assert ours.box == pytest.approx(list(theirs.box), abs=1e-3)
    assert len(after.explain.heat_maps) == len(alone.detect.detections)


def test_a_deadline_that_has_passed_is_not_worked_for(engine: Engine) -> None:
    late, early = detect(), detect()
    late.deadline, early.deadline = time.time() - 1, time.time() + 600
    replies = engine.answer([late, early])
    assert replies[0].error.type == "deadline_exceeded"
    assert replies[1].detect.detections


def test_work_stops_when_the_deadline_passes_on_the_way(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The method looks at the deadline between its parts, so a client that left holds no worker."""
    clock = [1000.0]
    request = explain()
    request.deadline = 1001
    taps = engine.detector.taps

    def slow(*arguments: Any, **options: Any) -> object:
        clock[0] += 10
        return taps(*arguments, **options)

    monkeypatch.setattr(time, "time", lambda: clock[0])
    monkeypatch.setattr(engine.detector, "taps", slow)
    assert ask(engine, request).error.type == "deadline_exceeded"


@pytest.mark.parametrize("size", [(1, 1), (2, 100), (700, 14)])
def test_the_smallest_and_thinnest_pictures_are_answered(engine: Engine, size: tuple[int, int]) -> None:
    reply = ask(engine, explain(encoded(random_image(*size))))
    assert (reply.explain.image.height, reply.explain.image.width) == size


def test_requests_of_a_batch_share_a_forward_pass(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = engine.detector.forward

    def counted(batch: Batch, *, keep: bool = False) -> Forward:
        seen.append(len(batch.frames))
        return forward(batch, keep=keep)

    monkeypatch.setattr(engine.detector, "forward", counted)
    other = encoded(random_image(96, 96))
    replies = engine.answer([detect(), detect(other), explain(), detect()])
    assert seen == [3, 1]
    assert all(reply.WhichOneof("result") in ("detect", "explain") for reply in replies)


def test_a_picture_that_breaks_the_network_fails_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in shared work is traced to its picture, and its details stay in the log."""
    prepare = engine.detector.prepare

    def fragile(images: Sequence[torch.Tensor]) -> list[tuple[list[int], Batch]]:
        if any(image.shape[0] == 97 for image in images):
            raise RuntimeError("secret details")
        return prepare(images)

    monkeypatch.setattr(engine.detector, "prepare", fragile)
    good, broken, fine = engine.answer([detect(), detect(encoded(random_image(97, 96))), detect()])
    assert good.detect.detections
    assert fine.detect.detections
    assert broken.error.type == "internal"
    assert "secret" not in str(broken)
    assert broken.error.request_id == "r"


def test_an_answer_that_is_too_large_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whybox.explaining.MAX_RESPONSE_BYTES", 100)
    error = ask(engine, explain()).error
    assert (error.type, error.field) == ("response_too_large", "targets")
    assert "fewer targets" in error.expected


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'odam' is already there"):
        register(METHODS["odam"])


def test_detections_can_be_cut() -> None:
    boxes = torch.arange(12.0).view(3, 4)
    whole = Detections(boxes, torch.arange(3), boxes[:, 0], boxes, torch.arange(3))
    assert whole[torch.tensor([2, 0])].labels.tolist() == [2, 0]
    assert len(whole[:1]) == 1
