"""What the three hops share: the checks of a request, the errors, and the encoding of heat maps."""

from __future__ import annotations

import io
import math
import sys
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from PIL import Image

from whybox_proto import checks, maps
from whybox_proto.errors import ERRORS, ContractError, shorten, unknown_name
from whybox_proto.v1 import explainer_pb2, types_pb2

IMAGE = "aW1hZ2U="
"""Bytes in JSON are base64; any will do, for the checks decode no picture."""

MODEL = json_format.ParseDict(
    {
        "name": "signs",
        "labels": ["turn-left", "turn-right", "gate-open"],
        "input": {"max_bytes": 1000},
        "methods": [
            {
                "name": "odam",
                "targets": ["class", "x1", "combined"],
                "layers": ["level", "layer2"],
                "default_layer": "layer2",
                "params": [
                    {
                        "name": "smoothing",
                        "type": "number",
                        "minimum": 0,
                        "maximum": 1,
                        "default_value": 0.05,
                    },
                    {"name": "steps", "type": "integer", "minimum": 1, "default_value": 5},
                    {"name": "signed", "type": "boolean", "default_value": False},
                    {"name": "of", "type": "string", "choices": ["score", "logit"], "default_value": "score"},
                ],
            },
            {"name": "d-rise", "targets": ["class"], "sampling": True},
            {"name": "sides-only", "targets": ["x1"]},
        ],
        "nms": [
            {"kind": "iou", "iou_threshold": 0.5},
            {"kind": "soft", "sigma": 0.5, "final_threshold": 0.05},
            {"kind": "odam", "iou_threshold": 0.5, "corr_high": 0.8, "corr_low": 0.2},
            {"kind": "none"},
        ],
        "default_nms": "iou",
    },
    types_pb2.Model(),
)

GOOD: tuple[dict[str, Any], ...] = (
    {},
    {"select": {"score_threshold": 0, "max_detections": 1, "labels": ["gate-open", "turn-left"]}},
    {"select": {"score_threshold": 1, "max_detections": 1000, "indices": [0, 7], "box": [-3, 0.5, 4, 9]}},
    {"nms": {"kind": "none"}},
    {"nms": {"iou_threshold": 0}},
    {"nms": {"kind": "iou", "iou_threshold": 1}},
    {"nms": {"kind": "odam", "corr_high": 1, "corr_low": -1, "iou_threshold": 0.3}},
    {"nms": {"kind": "soft", "sigma": 1e-3, "final_threshold": 0, "explain_suppressed": True}},
    {"select": {"expected": {"box": [-4, 0, 9, 9], "label": "gate-open"}}},
)

GOOD_EXPLAIN: tuple[dict[str, Any], ...] = (
    {"method": "odam", "layer": "level", "targets": ["class", "class:turn-left", "class:gate-open", "x1"]},
    {"params": {"smoothing": 0, "steps": 12, "signed": True, "of": "logit"}},
    {"params": {"smoothing": 1}},
    {"method": "d-rise", "budget": {"seconds": 0.5, "samples": 1}},
    {"method": "d-rise", "targets": ["class:gate-open"]},
    {"output": {"size": "image", "encoding": "png", "max_side": 4096}},
    {"output": {"size": "feature", "encoding": "f32", "max_side": 1}},
    {"seed": 3},
)

# What is asked, then the error's type and field.
BAD: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"image": ""}, "missing_image", "image"),
    ({"image": "A" * 1336}, "request_too_large", "image"),
    ({"select": {"score_threshold": -0.01}}, "invalid_argument", "select.score_threshold"),
    ({"select": {"score_threshold": 1.01}}, "invalid_argument", "select.score_threshold"),
    ({"select": {"score_threshold": "NaN"}}, "invalid_argument", "select.score_threshold"),
    ({"select": {"max_detections": 0}}, "invalid_argument", "select.max_detections"),
    ({"select": {"max_detections": 1001}}, "invalid_argument", "select.max_detections"),
    ({"select": {"labels": ["gate-open", "gate-opn"]}}, "unknown_label", "select.labels[1]"),
    ({"select": {"box": [0, 0, 1]}}, "invalid_argument", "select.box"),
    ({"select": {"box": [0, 0, 1, 1, 1]}}, "invalid_argument", "select.box"),
    ({"select": {"box": [1, 0, 1, 1]}}, "invalid_argument", "select.box"),
    ({"select": {"box": [0, 2, 1, 1]}}, "invalid_argument", "select.box"),
    ({"select": {"box": [0, 0, "Infinity", 1]}}, "invalid_argument", "select.box"),
    ({"select": {"expected": {"label": "gate-open"}}}, "invalid_argument", "select.expected.box"),
    ({"select": {"expected": {"box": [0, 0, 9, 9]}}}, "unknown_label", "select.expected.label"),
    (
        {"select": {"expected": {"box": [0, 0, 9, 9], "label": "gate-opn"}}},
        "unknown_label",
        "select.expected.label",
    ),
    (
        {"select": {"expected": {"box": [9, 0, 9, 9], "label": "gate-open"}}},
        "invalid_argument",
        "select.expected.box",
    ),
    (
        {"select": {"expected": {"box": [0, 0, "NaN", 9], "label": "gate-open"}}},
        "invalid_argument",
        "select.expected.box",
    ),
    ({"nms": {"kind": "oadm"}}, "invalid_argument", "nms.kind"),
    ({"nms": {"kind": "odam", "corr_high": 1.01}}, "invalid_argument", "nms.corr_high"),
    ({"nms": {"kind": "odam", "corr_low": "NaN"}}, "invalid_argument", "nms.corr_low"),
    ({"nms": {"kind": "odam", "corr_low": -1.5}}, "invalid_argument", "nms.corr_low"),
    ({"nms": {"kind": "odam", "sigma": 0.5}}, "unknown_parameter", "nms.sigma"),
    ({"nms": {"kind": "soft", "sigma": 0}}, "invalid_argument", "nms.sigma"),
    ({"nms": {"kind": "soft", "sigma": "Infinity"}}, "invalid_argument", "nms.sigma"),
    ({"nms": {"kind": "soft", "final_threshold": -0.1}}, "invalid_argument", "nms.final_threshold"),
    ({"nms": {"kind": "soft", "iou_threshold": 0.5}}, "unknown_parameter", "nms.iou_threshold"),
    ({"nms": {"kind": "IOU"}}, "invalid_argument", "nms.kind"),
    ({"nms": {"iou_threshold": 1.5}}, "invalid_argument", "nms.iou_threshold"),
    ({"nms": {"iou_threshold": "-Infinity"}}, "invalid_argument", "nms.iou_threshold"),
    ({"nms": {"kind": "none", "iou_threshold": 0.5}}, "unknown_parameter", "nms.iou_threshold"),
    ({"nms": {"sigma": 0.5}}, "unknown_parameter", "nms.sigma"),
)

BAD_EXPLAIN: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"method": "odamm"}, "unknown_method", "method"),
    ({"targets": ["x1", "x3"]}, "unknown_target", "targets[1]"),
    ({"targets": ["x1:turn-left"]}, "unknown_target", "targets[0]"),
    ({"targets": ["class:"]}, "unknown_label", "targets[0]"),
    ({"targets": ["class", "class:turn-lft"]}, "unknown_label", "targets[1]"),
    ({"targets": ["x1", "class", "x1"]}, "invalid_argument", "targets[2]"),
    ({"method": "sides-only", "targets": ["class:turn-left"]}, "unknown_target", "targets[0]"),
    ({"layer": "layer3"}, "unknown_layer", "layer"),
    ({"method": "d-rise", "layer": "level"}, "unknown_layer", "layer"),
    ({"params": {"smooth": 0.1}}, "unknown_parameter", "params.smooth"),
    ({"method": "d-rise", "params": {"smoothing": 0.1}}, "unknown_parameter", "params.smoothing"),
    ({"params": {"smoothing": "0.1"}}, "invalid_argument", "params.smoothing"),
    ({"params": {"smoothing": None}}, "invalid_argument", "params.smoothing"),
    ({"params": {"smoothing": [0.1]}}, "invalid_argument", "params.smoothing"),
    ({"params": {"smoothing": True}}, "invalid_argument", "params.smoothing"),
    ({"params": {"smoothing": -0.1}}, "invalid_argument", "params.smoothing"),
    ({"params": {"smoothing": 1.1}}, "invalid_argument", "params.smoothing"),
    ({"params": {"steps": 2.5}}, "invalid_argument", "params.steps"),
    ({"params": {"steps": 0}}, "invalid_argument", "params.steps"),
    ({"params": {"signed": 1}}, "invalid_argument", "params.signed"),
    ({"params": {"of": "logits"}}, "invalid_argument", "params.of"),
    ({"params": {"of": 1}}, "invalid_argument", "params.of"),
    ({"budget": {"samples": 10}}, "invalid_argument", "budget"),
    ({"method": "d-rise", "budget": {"seconds": 0}}, "invalid_argument", "budget.seconds"),
    ({"method": "d-rise", "budget": {"seconds": "NaN"}}, "invalid_argument", "budget.seconds"),
    ({"method": "d-rise", "budget": {"samples": 0}}, "invalid_argument", "budget.samples"),
    ({"output": {"size": "full"}}, "invalid_argument", "output.size"),
    ({"output": {"encoding": "U8"}}, "invalid_argument", "output.encoding"),
    ({"output": {"max_side": 0}}, "invalid_argument", "output.max_side"),
    ({"output": {"max_side": 4097}}, "invalid_argument", "output.max_side"),
)


def detect(fields: dict[str, Any]) -> None:
    """Check a detect request with these fields."""
    request = json_format.ParseDict({"image": IMAGE, **fields}, explainer_pb2.DetectRequest())
    checks.check_detect(request, MODEL)


def explain(fields: dict[str, Any]) -> None:
    """Check an explain request with these fields."""
    request = json_format.ParseDict({"image": IMAGE, **fields}, explainer_pb2.ExplainRequest())
    checks.check_explain(request, MODEL)


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_good_requests_pass(fields: dict[str, Any]) -> None:
    detect(fields)
    explain(fields)


@pytest.mark.parametrize("fields", GOOD_EXPLAIN, ids=str)
def test_good_questions_pass(fields: dict[str, Any]) -> None:
    explain(fields)


@pytest.mark.parametrize(("fields", "type", "field"), BAD, ids=str)
def test_bad_requests_name_the_field(fields: dict[str, Any], type: str, field: str) -> None:
    for check in (detect, explain):
        with pytest.raises(ContractError) as raised:
            check(fields)
        assert (raised.value.type, raised.value.field) == (type, field)
        assert raised.value.message
        assert raised.value.expected or type == "not_implemented"


@pytest.mark.parametrize(("fields", "type", "field"), BAD_EXPLAIN, ids=str)
def test_bad_questions_name_the_field(fields: dict[str, Any], type: str, field: str) -> None:
    with pytest.raises(ContractError) as raised:
        explain(fields)
    assert (raised.value.type, raised.value.field) == (type, field)
    assert raised.value.message
    assert raised.value.expected or type == "not_implemented"


def test_the_first_field_at_fault_is_named() -> None:
    with pytest.raises(ContractError) as raised:
        explain({"targets": ["x9"], "select": {"max_detections": 0}})
    assert raised.value.field == "select.max_detections"


def test_an_error_says_what_came_and_what_was_expected() -> None:
    with pytest.raises(ContractError) as raised:
        detect({"select": {"max_detections": 2000}})
    assert raised.value.expected == "at least 1 and at most 1000"
    assert raised.value.got == "2000"
    with pytest.raises(ContractError) as raised:
        explain({"method": "d-rise", "budget": {"seconds": -1}})
    assert raised.value.expected == "above 0"
    with pytest.raises(ContractError) as raised:
        explain({"budget": {"seconds": 0.5, "samples": 4}})
    assert raised.value.got == "seconds 0.5, samples 4"


def test_a_long_value_is_cut_before_it_is_sent_back() -> None:
    with pytest.raises(ContractError) as raised:
        detect({"select": {"labels": ["x" * 10_000]}})
    assert len(raised.value.got) <= 80
    assert len(raised.value.message) < 200


def test_without_a_method_the_default_one_is_described() -> None:
    assert checks.find_method(explainer_pb2.ExplainRequest(), MODEL).name == checks.DEFAULT_METHOD
    assert checks.find_method(explainer_pb2.ExplainRequest(method="d-rise"), MODEL).name == "d-rise"


def test_the_checks_need_neither_torch_nor_http() -> None:
    """They run in the gateway and in the worker alike."""
    for module in ("whybox_proto.checks", "whybox_proto.errors"):
        names = vars(sys.modules[module])
        assert not {"torch", "grpc", "httpx", "fastapi", "starlette"} & set(names)


# Errors


@pytest.mark.parametrize("type", ERRORS)
def test_an_error_survives_the_wire(type: str) -> None:
    error = ContractError(type, "what happened", field="select.box", expected="four", got="three")
    message = explainer_pb2.Error.FromString(error.to_message("id-1").SerializeToString())
    assert message.request_id == "id-1"
    back = ContractError.from_message(message)
    assert back.row is ERRORS[type]
    assert vars(back) == vars(error)
    assert str(back) == "what happened"


def test_a_type_that_this_version_does_not_know_is_internal() -> None:
    back = ContractError.from_message(
        explainer_pb2.Error(type="from_the_future", message="told", field="a.b")
    )
    assert (back.type, back.message, back.field) == ("internal", "told", "a.b")


def test_an_error_that_is_not_in_the_table_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="'sad' is not in the table"):
        ContractError("sad", "")


@pytest.mark.parametrize(
    ("got", "hint"),
    [("turn-lft", "did you mean 'turn-left'?"), ("gateopen", "did you mean 'gate-open'?"), ("zzzz", "")],
)
def test_an_unknown_name_meets_its_nearest(got: str, hint: str) -> None:
    error = unknown_name("unknown_label", "label", got, MODEL.labels, field="select.labels[0]")
    assert error.message == f"there is no label {got!r}" + (f"; {hint}" if hint else "")
    assert (error.type, error.field, error.got) == ("unknown_label", "select.labels[0]", got)
    assert error.expected == "one of: turn-left, turn-right, gate-open"


def test_many_known_names_are_counted_and_none_is_said() -> None:
    many = unknown_name("unknown_label", "label", "b", (f"a{i}" for i in range(91)), field="")
    assert many.expected.startswith("one of: a0, a1, ")
    assert many.expected.endswith("a19, … (91 in all)")
    assert unknown_name("unknown_layer", "layer", "b", [], field="").expected == "no layer at all"


def test_values_from_outside_are_cut() -> None:
    assert shorten("short") == "short"
    assert shorten("x" * 81) == "x" * 79 + "…"
    assert shorten([1, 2], 4) == "[1,…"


# Heat maps on the wire

MAPS = {
    "ramp": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
    "negative": np.array([[-3.5, 0.25], [1e-3, 7.0]], np.float32),
    "all below zero": np.array([[-2.0, -1.0, -1.5]], np.float32),
    "constant": np.full((2, 5), 4.25, np.float32),
    "zero": np.zeros((3, 3), np.float32),
    "one cell": np.array([[-6.5]], np.float32),
    "large": np.array([[1e30, -1e30], [0, 1e29]], np.float32),
    "small": np.array([[0, 1e-30], [5e-31, 2e-31]], np.float32),
    "random": np.random.default_rng(0).normal(size=(7, 11)).astype(np.float32),
}


@pytest.mark.parametrize("encoding", ["u8", "f32", "png"])
@pytest.mark.parametrize("name", MAPS)
def test_a_map_survives_the_wire(name: str, encoding: str) -> None:
    values = MAPS[name]
    message = types_pb2.HeatMap()
    maps.encode(values, message, encoding)
    message = types_pb2.HeatMap.FromString(message.SerializeToString())
    assert (message.height, message.width) == values.shape
    assert message.encoding == encoding
    assert (message.min_value, message.max_value) == (values.min(), values.max())
    back = maps.decode(message)
    assert back.dtype == np.float32
    assert back.shape == values.shape
    if encoding == "f32":
        assert np.array_equal(back, values)
        return
    span = float(values.max()) - float(values.min())
    # Half a step of 255, and float32's own rounding.
    assert np.abs(back.astype(float) - values).max() <= span * (0.5 / 255 + 1e-6)
    assert np.isclose(back.max(), values.max(), rtol=1e-5)
    assert np.isclose(back.min(), values.min(), rtol=1e-5)


def test_u8_is_as_the_contract_says() -> None:
    message = types_pb2.HeatMap()
    maps.encode(np.array([[-1.0, 0.0], [1.0, 0.5]], np.float32), message)
    assert message.encoding == "u8"
    assert list(message.data) == [0, 128, 255, 191]
    assert len(message.data) == message.width * message.height


def test_f32_is_little_endian_row_by_row() -> None:
    message = types_pb2.HeatMap()
    maps.encode(np.array([[1.0, 2.0]], np.float32), message, "f32")
    assert message.data == bytes.fromhex("0000803f 00000040")


def test_png_is_a_grey_picture_of_the_u8_bytes() -> None:
    plain, packed = types_pb2.HeatMap(), types_pb2.HeatMap()
    maps.encode(MAPS["random"], plain, "u8")
    maps.encode(MAPS["random"], packed, "png")
    with Image.open(io.BytesIO(packed.data)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (11, 7))
        assert picture.tobytes() == plain.data


def test_a_constant_map_is_the_lowest_byte() -> None:
    message = types_pb2.HeatMap()
    maps.encode(MAPS["constant"], message)
    assert set(message.data) == {0}
    assert np.array_equal(maps.decode(message), MAPS["constant"])


@pytest.mark.parametrize("encoding", ["u8", "png"])
@pytest.mark.parametrize("largest", [1e-37, 1e-40, 1e-44])
def test_a_map_of_tiny_values_survives_the_wire(encoding: str, largest: float) -> None:
    """The gradient of an improbable class is that small."""
    values = np.array([[0, largest]], np.float32)
    message = types_pb2.HeatMap()
    maps.encode(values, message, encoding)
    levels = np.asarray(Image.open(io.BytesIO(message.data))) if encoding == "png" else list(message.data)
    assert np.array_equal(np.ravel(levels), [0, 255])
    assert maps.decode(message)[0, 0] == 0


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 2, 1), np.float32),
        np.zeros(4, np.float32),
        np.zeros((0, 3), np.float32),
        np.array([[0, math.nan]], np.float32),
        np.array([[0, math.inf]], np.float32),
    ],
    ids=["3 axes", "1 axis", "empty", "nan", "inf"],
)
def test_what_is_no_map_is_not_encoded(values: maps.FloatMap) -> None:
    with pytest.raises(ValueError, match=r"a map is a finite \(h, w\) array"):
        maps.encode(values, types_pb2.HeatMap())


def test_an_encoding_that_there_is_not_is_refused_both_ways() -> None:
    with pytest.raises(ValueError, match="one of u8, f32, png; got 'jpeg'"):
        maps.encode(MAPS["ramp"], types_pb2.HeatMap(), "jpeg")
    with pytest.raises(ValueError, match="one of u8, f32, png; got ''"):
        maps.decode(types_pb2.HeatMap(width=1, height=1, data=b"\0"))


@pytest.mark.parametrize(
    ("encoding", "change"),
    [
        ("u8", {"data": b"\0" * 11}),
        ("f32", {"data": b"\0" * 44}),
        ("f32", {"data": b"\0" * 47}),
        ("png", {"width": 3}),
    ],
)
def test_data_that_do_not_fit_are_refused(encoding: str, change: dict[str, Any]) -> None:
    message = types_pb2.HeatMap()
    maps.encode(MAPS["ramp"], message, encoding)
    message.MergeFrom(types_pb2.HeatMap(**change))
    with pytest.raises(ValueError, match=r"reshape|buffer size"):
        maps.decode(message)


@pytest.mark.parametrize("keep", [0, 8, 40])
def test_a_broken_png_is_refused(keep: int) -> None:
    message = types_pb2.HeatMap()
    maps.encode(MAPS["random"], message, "png")
    message.data = message.data[:keep]
    with pytest.raises(ValueError):  # noqa: PT011 - the words are Pillow's
        maps.decode(message)


# Heat maps in the image frame


def test_a_cell_keeps_its_value_at_its_centre() -> None:
    """Cells of 3 x 5 pixels: their centres are centres of pixels."""
    values = MAPS["random"]
    height, width = values.shape
    placed = maps.enlarge(values, (0, 0, 3 * width, 5 * height), 3 * width, 5 * height)
    assert placed.dtype == np.float32
    assert placed.shape == (5 * height, 3 * width)
    assert np.allclose(placed[2::5, 1::3], values, rtol=0, atol=1e-6)


def test_between_centres_it_is_bilinear() -> None:
    values = np.array([[0, 3], [6, 9]], np.float32)
    placed = maps.enlarge(values, (0, 0, 6, 6), 6, 6)
    assert np.allclose(placed[1, 1:5], [0, 1, 2, 3])
    assert np.allclose(placed[1:5, 1], [0, 2, 4, 6])
    assert np.isclose(placed[2, 3], 2 / 3 * (0 + (3 - 0) * 2 / 3) + 1 / 3 * (6 + (9 - 6) * 2 / 3))
    # Beyond the outermost centres the nearest cell goes on.
    assert np.allclose(placed[0], placed[1])
    assert np.allclose(placed[:, 5], placed[:, 4])


def test_over_the_whole_image_it_equals_pillows_enlargement() -> None:
    values = MAPS["random"]
    expected = np.asarray(Image.fromarray(values).resize((64, 50), Image.Resampling.BILINEAR))
    assert np.allclose(maps.enlarge(values, (0, 0, 64, 50), 64, 50), expected, atol=1e-5)


def test_outside_its_region_it_is_zero() -> None:
    values = np.full((4, 4), 2.0, np.float32)
    placed = maps.enlarge(values, (2, 3, 6, 8), 10, 9)
    expected = np.zeros((9, 10), np.float32)
    expected[3:8, 2:6] = 2
    assert np.array_equal(placed, expected)


def test_a_region_may_end_between_pixels() -> None:
    """A pixel belongs to the region when its centre does."""
    placed = maps.enlarge(np.ones((2, 2), np.float32), (1.4, 0.6, 3.6, 2.4), 5, 4)
    assert np.argwhere(placed).tolist() == [[1, 1], [1, 2], [1, 3]]


def test_a_region_may_pass_the_images_border() -> None:
    """What shows is what would show of the larger picture."""
    values = MAPS["random"]
    height, width = 5 * values.shape[0], 3 * values.shape[1]
    whole = maps.enlarge(values, (0, 0, width, height), width, height)
    moved = maps.enlarge(values, (-6, -10, width - 6, height - 10), width - 9, height - 15)
    assert np.allclose(moved, whole[10:-5, 6:-3], atol=1e-6)


def test_a_region_beyond_the_image_shows_nothing() -> None:
    assert not maps.enlarge(np.ones((2, 2), np.float32), (20, 0, 30, 8), 10, 8).any()


def test_one_cell_fills_its_region() -> None:
    placed = maps.enlarge(np.array([[-3.0]], np.float32), (1, 0, 3, 2), 4, 2)
    assert np.array_equal(placed, np.array([[0, -3, -3, 0]] * 2, np.float32))


def test_a_map_larger_than_the_image_is_sampled() -> None:
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert np.allclose(maps.enlarge(values, (0, 0, 2, 2), 2, 2), [[2.5, 4.5], [10.5, 12.5]])


@pytest.mark.parametrize(("path", "field"), [("", "99"), ("select", "select.99"), ("output", "output.99")])
def test_a_binary_field_that_nobody_knows_is_refused(path: str, field: str) -> None:
    """Protobuf keeps unknown fields without a word; the caller would not learn that one was not heeded."""
    unknown = bytes([0x98, 0x06, 0x01])  # field 99, varint 1
    request = explainer_pb2.ExplainRequest(image=b"x")
    part = getattr(request, path) if path else request
    part.MergeFromString(unknown)
    with pytest.raises(ContractError) as caught:
        checks.check_explain(request, types_pb2.Model())
    assert (caught.value.type, caught.value.field, caught.value.got) == ("unknown_field", field, "99")
    assert "1 (" in caught.value.expected
