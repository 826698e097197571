"""Requests that are refused, by name: what is asked, and the error that it makes on either transport.

A request begins as a good one; `change` puts a value at a dotted path of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import picture_files
from gateway_calls import b64


@dataclass(frozen=True)
class BadInput:
    """One bad request.

    Attributes:
        rpc: what is asked for.
        change: values by dotted path of the request.
        type: of the error.
        field: that the error names.
        says: a part of its message.
        headers: of REST, with their gRPC metadata of the same names.
    """

    change: dict[str, Any]
    type: str
    field: str
    says: str = ""
    rpc: str = "Explain"
    headers: dict[str, str] = field(default_factory=dict)


def _bad(path: str, value: Any, type: str, says: str = "", field: str = "", rpc: str = "Explain") -> BadInput:
    return BadInput({path: value}, type, field or path, says, rpc)


MANY = list(range(1001))

BAD_INPUTS: dict[str, BadInput] = {
    # Ranges: just outside, and far.
    "a score just above 1": _bad("select.score_threshold", 1.0000001, "invalid_argument", "out of range"),
    "a score just below 0": _bad("select.score_threshold", -1e-7, "invalid_argument", "out of range"),
    "no detections at all": _bad("select.max_detections", 0, "invalid_argument", "out of range"),
    "one detection too many": _bad("select.max_detections", 1001, "invalid_argument", "out of range"),
    "4 billion detections": _bad("select.max_detections", 2**32 - 1, "invalid_argument", "out of range"),
    "an IoU of 1.5": _bad("nms.iou_threshold", 1.5, "invalid_argument", "out of range"),
    "no samples": _bad("budget.samples", 0, "invalid_argument", "no samples", "budget"),
    "no seconds": _bad("budget.seconds", 0.0, "invalid_argument", "no samples", "budget"),
    "a map of no side": _bad("output.max_side", 0, "invalid_argument", "out of range"),
    "a map of 4097 on a side": _bad("output.max_side", 4097, "invalid_argument", "out of range"),
    "smoothing below its least": _bad(
        "params", {"smoothing": -0.001}, "invalid_argument", "out of range", "params.smoothing"
    ),
    "smoothing of 1e308": _bad(
        "params", {"smoothing": 1e308}, "invalid_argument", "out of range", "params.smoothing"
    ),
    "a page of 1001": _bad("page_size", 1001, "invalid_argument", rpc="ListModels"),
    # Boxes.
    "a box of three sides": _bad("select.box", [1.0, 2.0, 3.0], "invalid_argument", "not a box"),
    "a box of five sides": _bad("select.box", [1.0, 2.0, 3.0, 4.0, 5.0], "invalid_argument", "not a box"),
    "a box without width": _bad("select.box", [5.0, 2.0, 5.0, 4.0], "invalid_argument", "not a box"),
    "a box upside down": _bad("select.box", [1.0, 9.0, 5.0, 4.0], "invalid_argument", "not a box"),
    # Lists.
    "an index twice": _bad("select.indices", [0, 0], "invalid_argument", "twice", "select.indices[1]"),
    "an index that is not there": _bad(
        "select.indices", [999], "invalid_argument", "no such detection", "select.indices[0]"
    ),
    "an index past every answer": _bad(
        "select.indices", [1000], "invalid_argument", "no such detection", "select.indices[0]"
    ),
    "too many indices": _bad("select.indices", MANY, "invalid_argument", field="select.indices[1000]"),
    "more labels than there are": _bad("select.labels", ["beta"] * 5, "invalid_argument", "more labels"),
    "a target twice": _bad("targets", ["x1", "class", "x1"], "invalid_argument", "twice", "targets[2]"),
    # Names: unknown, near, empty, long, in another case, with something around them.
    "a method nearly right": _bad("method", "odma", "unknown_method", "did you mean 'odam'"),
    "a method in capitals": _bad("method", "ODAM", "unknown_method"),
    "a method with a space": _bad("method", "odam ", "unknown_method", "did you mean 'odam'"),
    "a method of 100,000 letters": _bad("method", "odam" * 25_000, "unknown_method"),
    "a target nearly right": _bad("targets", ["clas"], "unknown_target", "'class'", "targets[0]"),
    "an empty target": _bad("targets", [""], "unknown_target", field="targets[0]"),
    "a target of no label": _bad("targets", ["class:"], "unknown_label", field="targets[0]"),
    "a target of an unknown label": _bad("targets", ["class:gamm"], "unknown_label", "'gamma'", "targets[0]"),
    "a side with a label": _bad("targets", ["x1:beta"], "unknown_target", field="targets[0]"),
    "a label nearly right": _bad("select.labels", ["apha"], "unknown_label", "'alpha'", "select.labels[0]"),
    "an empty label": _bad("select.labels", [""], "unknown_label", field="select.labels[0]"),
    "a label with a null": _bad("select.labels", ["alpha\0"], "unknown_label", field="select.labels[0]"),
    "a label in another script": _bad("select.labels", ["αλφα"], "unknown_label", field="select.labels[0]"),
    "a layer nearly right": _bad("layer", "layer33", "unknown_layer", "'layer3'"),
    "a parameter nearly right": _bad(
        "params", {"smothing": 1}, "unknown_parameter", "'smoothing'", "params.smothing"
    ),
    "a parameter of another type": _bad(
        "params", {"smoothing": True}, "invalid_argument", "not of its type", "params.smoothing"
    ),
    "a parameter without a value": _bad(
        "params", {"smoothing": None}, "invalid_argument", "not of its type", "params.smoothing"
    ),
    "a kind of NMS nearly right": _bad("nms.kind", "iuo", "invalid_argument", "'iou'"),
    "an option of another NMS": _bad("nms.sigma", 0.5, "unknown_parameter"),
    "an encoding nearly right": _bad("output.encoding", "f64", "invalid_argument"),
    "a size nearly right": _bad("output.size", "img", "invalid_argument"),
    "a model nearly right": _bad("model", "retinanet-randon", "unknown_model", "did you mean"),
    "a model of 1000 letters": _bad("model", "m" * 1000, "unknown_model"),
    "a model of another script": _bad("model", "модель", "unknown_model"),
    "a version that is not there": _bad("model_version", "9.9", "unknown_model"),
    "a version with a slash": _bad("model_version", "1.0/../..", "unknown_model"),
    "a page token of nobody": _bad("page_token", "§", "invalid_argument", rpc="ListModels"),
    # Evaluations.
    "an unknown measure": _bad(
        "measures", ["delition"], "invalid_argument", "did you mean 'deletion'", "measures[0]", "Evaluate"
    ),
    "a measure twice": _bad(
        "measures", ["deletion", "deletion"], "invalid_argument", "twice", "measures[1]", "Evaluate"
    ),
    "a truth of no size": _bad("truth.width", 0, "invalid_argument", "out of range", rpc="Evaluate"),
    "a truth of another size": _bad(
        "truth",
        {"width": 3, "height": 4, "objects": [{"label": "beta", "box": [0.0, 0.0, 1.0, 1.0]}]},
        "invalid_argument",
        "not of the picture's size",
        rpc="Evaluate",
    ),
    "an evaluation of an unknown method": _bad(
        "explain.method", "odma", "unknown_method", "did you mean 'odam'", rpc="Evaluate"
    ),
    "an evaluation of an index that is not there": _bad(
        "explain.select.indices",
        [999],
        "invalid_argument",
        "no such detection",
        "explain.select.indices[0]",
        "Evaluate",
    ),
    "an evaluation of no picture": _bad("explain.image", "", "missing_image", rpc="Evaluate"),
    # What was missed.
    "something expected nowhere": _bad(
        "select.expected.label", "beta", "invalid_argument", field="select.expected.box"
    ),
    "something expected without a label": _bad(
        "select.expected.box", [1.0, 2.0, 3.0, 4.0], "unknown_label", field="select.expected.label"
    ),
    # Pictures; `picture_files` has all of them.
    "no picture": _bad("image", "", "missing_image"),
    "a picture that is none": _bad("image", b64(b"<svg/>"), "invalid_image", "no picture"),
    "half a picture": _bad("image", b64(picture_files.saved(picture_files.NOISE)[:3000]), "invalid_image"),
    "a picture of 33 MB": _bad("image", b64(bytes(33 << 20)), "request_too_large", "too large"),
    # Two things wrong: the first field of the checks is told.
    "a picture that is missing and a method that is unknown": BadInput(
        {"image": "", "method": "x"}, "missing_image", "image"
    ),
    # The call itself.
    "an empty request id": BadInput({}, "invalid_argument", "X-Request-Id", headers={"X-Request-Id": ""}),
    "a request id of 129 letters": BadInput(
        {}, "invalid_argument", "X-Request-Id", headers={"X-Request-Id": "x" * 129}
    ),
}
