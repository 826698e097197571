"""What a request must satisfy, given the model's own description.

The gateway runs these checks before it spends a worker's time; the worker runs the same ones, because a
request can reach it without the gateway. Nothing here knows HTTP, gRPC or torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from whybox_proto.errors import ContractError, shorten, unknown_name
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

DEFAULT_METHOD = "odam"
DEFAULT_TARGETS = ("class",)
DEFAULT_MAX_DETECTIONS = 100
MAX_DETECTIONS = 1000
MAX_SIDE = 4096
DEFAULT_MAX_SIDE = 512
MAX_UNKNOWN_BYTES = 1 << 16
OUTPUT_SIZES = ("feature", "image")
DEFAULT_ENCODING = "u8"
OUTPUT_ENCODINGS = ("u8", "f32", "png")


def check_detect(request: explainer_pb2.DetectRequest, model: types_pb2.Model) -> None:
    """Check a detect request against the model that shall answer it.

    Raises:
        ContractError: with the path of the first field at fault.
    """
    check_known(request)
    _check_image(request.image, model)
    _check_select(request.select, model)
    _check_nms(request.nms, model)


def check_explain(request: explainer_pb2.ExplainRequest, model: types_pb2.Model) -> None:
    """Check an explain request against the model that shall answer it.

    Raises:
        ContractError: with the path of the first field at fault.
    """
    check_known(request)
    _check_image(request.image, model)
    _check_select(request.select, model)
    _check_nms(request.nms, model)
    method = find_method(request, model)
    _check_targets(request.targets, method, model)
    _check_layer(request.layer, method)
    check_params(request.params, method.params)
    if request.HasField("budget"):
        if not method.sampling:
            raise ContractError(
                "invalid_argument",
                f"the method {method.name!r} draws no samples, so it takes no budget",
                field="budget",
                expected="no budget",
                got=shorten(
                    ", ".join(f"{field.name} {value:g}" for field, value in request.budget.ListFields())
                ),
            )
        _check_budget(request.budget)
    if request.evaluate:
        _check_not_expected(request.select, field="select.expected")
    _check_output(request.output)


def check_evaluate(request: explainer_pb2.EvaluateRequest, model: types_pb2.Model) -> None:
    """Check an evaluate request against the model that shall answer it.

    That the truth is of the picture's size shows where the picture is known; see `check_same_size`.

    Raises:
        ContractError: with the path of the first field at fault.
    """
    check_known(request)
    try:
        check_explain(request.explain, model)
    except ContractError as error:
        error.field = f"explain.{error.field}" if error.field else "explain"
        raise
    _check_not_expected(request.explain.select, field="explain.select.expected")
    truth = request.truth if request.HasField("truth") else None
    check_truth(truth, model)
    check_measures(request.measures, truth, model)


def check_measure(request: worker_pb2.MeasureRequest, model: types_pb2.Model) -> None:
    """Check a measure request, the part of an evaluation that one map takes.

    Raises:
        ContractError: with the path of the first field at fault.
    """
    check_known(request)
    _check_image(request.image, model)
    found = request.detection
    if len(found.box) != 4 or not all(map(math.isfinite, found.box)):  # a detection may be thinner than a box
        raise ContractError(
            "invalid_argument",
            "not the box of a detection",
            field="detection.box",
            expected="four finite numbers [x1, y1, x2, y2]",
            got=shorten([float(f"{v:g}") for v in found.box[:5]]),
        )
    if found.label not in model.labels:
        raise unknown_name("unknown_label", "label", found.label, model.labels, field="detection.label")
    target = request.heat_map.target
    head, colon, label = target.partition(":")
    known = {name for method in model.methods for name in method.targets}
    if head not in known or (colon and head != "class"):
        raise unknown_name("unknown_target", "target", target, sorted(known), field="heat_map.target")
    if colon and label not in model.labels:
        raise unknown_name("unknown_label", "label", label, model.labels, field="heat_map.target")
    truth = request.truth if request.HasField("truth") else None
    check_truth(truth, model)
    check_measures(request.measures, truth, model)


def check_truth(truth: types_pb2.Layout | None, model: types_pb2.Model) -> None:
    """Check the objects that are really there; None passes.

    Raises:
        ContractError: with the path of the first field at fault, below ``truth``.
    """
    if truth is None:
        return
    most = model.input.max_side or math.inf
    check_range(truth.width, field="truth.width", low=1, high=most)
    check_range(truth.height, field="truth.height", low=1, high=most)
    if not 1 <= len(truth.objects) <= MAX_DETECTIONS:
        raise ContractError(
            "invalid_argument",
            "the truth has no objects" if not truth.objects else "the truth has too many objects",
            field="truth.objects",
            expected=f"1 to {MAX_DETECTIONS} objects; leave the truth out where none are known",
            got=f"{len(truth.objects)} objects",
        )
    for i, thing in enumerate(truth.objects):
        field = f"truth.objects[{i}]"
        if thing.label not in model.labels:
            raise unknown_name("unknown_label", "label", thing.label, model.labels, field=f"{field}.label")
        check_given_box_inside(thing.box, field=f"{field}.box", size=(truth.width, truth.height))
        for name in ("mask", "evidence"):
            if counts := getattr(thing, name):
                check_mask(counts, truth, field=f"{field}.{name}")


def check_same_size(truth: types_pb2.Layout, width: int, height: int) -> None:
    """Check that the truth is of the upright picture's size.

    Raises:
        ContractError: where it is not.
    """
    if (truth.width, truth.height) != (width, height):
        raise ContractError(
            "invalid_argument",
            "the truth is not of the picture's size",
            field="truth",
            expected=f"width {width} and height {height}, those of the upright picture",
            got=f"width {truth.width} and height {truth.height}",
        )


def check_measures(names: Sequence[str], truth: types_pb2.Layout | None, model: types_pb2.Model) -> None:
    """Check that measures exist, and that what they need of the truth is given.

    Raises:
        ContractError: with the path of the first field at fault.
    """
    described = {measure.name: measure for measure in model.measures}
    for i, name in enumerate(names):
        field = f"measures[{i}]"
        if name not in described:
            raise unknown_name("invalid_argument", "measure", name, described, field=field)
        if name in names[:i]:
            raise ContractError(
                "invalid_argument",
                "a measure is asked for twice",
                field=field,
                expected="each once",
                got=shorten(name),
            )
        needs = described[name].needs
        if not needs:
            continue
        if truth is None:
            raise ContractError(
                "invalid_argument",
                f"{name} needs the objects that are really there",
                field="truth",
                expected=f"objects, each with its {needs}",
                got="no truth",
            )
        lacking = [i for i, thing in enumerate(truth.objects) if needs != "box" and not getattr(thing, needs)]
        # The evidence of others is of no account; their masks are.
        if len(lacking) == len(truth.objects) or (lacking and needs == "mask"):
            raise ContractError(
                "invalid_argument",
                f"{name} needs each object's {needs}" if needs == "mask" else f"{name} needs {needs}",
                field=f"truth.objects[{lacking[0]}].{needs}",
                expected="COCO run-length encoding, compressed counts",
                got="nothing",
            )


def _check_not_expected(select: types_pb2.Select, *, field: str) -> None:
    if select.HasField("expected"):
        raise ContractError(
            "invalid_argument",
            "what was missed has no detection whose maps could be measured",
            field=field,
            expected="nothing where maps are measured",
            got=shorten(f"{select.expected.label} in {[float(f'{v:g}') for v in select.expected.box]}"),
        )


def check_mask(counts: str, truth: types_pb2.Layout, *, field: str) -> None:
    """Check that a mask is one of a picture of the layout's size."""
    from whybox_proto import rle  # brings NumPy, which the gateway starts without

    try:
        rle.runs(counts, truth.height, truth.width)
    except ValueError as error:
        raise ContractError(
            "invalid_argument",
            f"not a mask of the picture: {error}",
            field=field,
            expected=f"COCO run-length encoding, compressed counts, of {truth.width} x {truth.height} pixels",
            got=shorten(counts),
        ) from error


def _check_given_box(box: Sequence[float], *, field: str) -> None:
    """Check a box that must be there."""
    if not len(box):
        raise ContractError(
            "invalid_argument", "a box is missing", field=field, expected="[x1, y1, x2, y2]", got="nothing"
        )
    check_box(box, field=field)


def check_given_box_inside(box: Sequence[float], *, field: str, size: tuple[int, int]) -> None:
    """Check a box that must be there, and lie within a picture of `size` (width, height)."""
    _check_given_box(box, field=field)
    if min(box) < 0 or box[2] > size[0] or box[3] > size[1]:
        raise ContractError(
            "invalid_argument",
            "a box passes the picture's border",
            field=field,
            expected=f"x from 0 to {size[0]}, y from 0 to {size[1]}",
            got=shorten([float(f"{v:g}") for v in box]),
        )


def check_known(message: Message, *, path: str = "") -> None:
    """Check that a message that came in binary holds no field that this version does not know.

    Protobuf would pass over it in silence, and the caller would get an answer to another question.

    Raises:
        ContractError: ``unknown_field``, with the path of the message and the field's number.
    """
    if not path:
        known = type(message)()
        known.CopyFrom(message)
        known.DiscardUnknownFields()
        extra = message.ByteSize() - known.ByteSize()
        if extra > MAX_UNKNOWN_BYTES:  # to list millions of them would take seconds
            raise ContractError(
                "unknown_field",
                f"{extra} bytes are in fields that nobody knows",
                expected="none",
                got=f"{extra} bytes",
            )
        if not extra:
            return
    unknown = UnknownFieldSet(message)
    if len(unknown):
        number = unknown[0].field_number
        raise ContractError(
            "unknown_field",
            f"there is no field of number {number}",
            field=f"{path}.{number}" if path else str(number),
            expected="one of: " + ", ".join(f"{f.number} ({f.name})" for f in message.DESCRIPTOR.fields),
            got=str(number),
        )
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.file.package != message.DESCRIPTOR.file.package:
            continue
        inside = f"{path}.{field.name}" if path else field.name
        repeated = field.is_repeated
        for i, part in enumerate(value if repeated else [value]):
            check_known(part, path=f"{inside}[{i}]" if repeated else inside)


def find_method(request: explainer_pb2.ExplainRequest, model: types_pb2.Model) -> types_pb2.Method:
    """Return the description of the method asked for (`DEFAULT_METHOD` where none is named)."""
    name = request.method or DEFAULT_METHOD
    for method in model.methods:
        if method.name == name:
            return method
    raise unknown_name("unknown_method", "method", name, [m.name for m in model.methods], field="method")


def check_choice(value: str, choices: Sequence[str], *, field: str) -> None:
    """Check a closed set of lowercase strings; empty means the default and passes."""
    if value and value not in choices:
        raise unknown_name("invalid_argument", field.rsplit(".", 1)[-1], value, choices, field=field)


def check_range(
    value: float, *, field: str, low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> None:
    """Check that a number is finite and in [low, high], or (low, high] with `open_low`."""
    if math.isfinite(value) and low <= value <= high and not (open_low and value == low):
        return
    bounds = f"{'above' if open_low else 'at least'} {low:g}" if low > -math.inf else "finite"
    if high < math.inf:
        bounds += f" and at most {high:g}"
    raise ContractError(
        "invalid_argument", f"{field} is out of range", field=field, expected=bounds, got=f"{value:g}"
    )


def check_nms_number(name: str, value: float, *, field: str) -> None:
    """Check a number of a kind of NMS: a correlation from -1 to 1, a width above 0, else a share of 1."""
    if name == "sigma":
        check_range(value, field=field, low=0, open_low=True)
    else:
        check_range(value, field=field, low=-1 if name.startswith("corr") else 0, high=1)


def check_box(box: Sequence[float], *, field: str) -> None:
    """Check a box [x1, y1, x2, y2]: four finite numbers, x1 < x2 and y1 < y2; empty passes."""
    if not len(box):
        return
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        raise ContractError(
            "invalid_argument",
            "not a box",
            field=field,
            expected="four finite numbers [x1, y1, x2, y2] with x1 < x2 and y1 < y2",
            got=shorten([float(f"{v:g}") for v in box[:5]]),
        )


def _check_image(image: bytes, model: types_pb2.Model) -> None:
    if not image:
        raise ContractError(
            "missing_image", "the request has no image", field="image", expected="the bytes of a picture"
        )
    check_image_bytes(image, model)


def check_image_bytes(image: bytes, model: types_pb2.Model) -> None:
    """Check that an encoded picture is not larger than the model takes; none at all passes."""
    limit = model.input.max_bytes
    if limit and len(image) > limit:
        raise ContractError(
            "request_too_large",
            "the image is too large",
            field="image",
            expected=f"at most {limit} bytes",
            got=f"{len(image)} bytes",
        )


def _check_select(select: types_pb2.Select, model: types_pb2.Model) -> None:
    if select.HasField("score_threshold"):
        check_range(select.score_threshold, field="select.score_threshold", low=0, high=1)
    if select.HasField("max_detections"):
        check_range(select.max_detections, field="select.max_detections", low=1, high=MAX_DETECTIONS)
    if len(select.labels) > len(model.labels):
        raise ContractError(
            "invalid_argument",
            "more labels than the model has",
            field="select.labels",
            expected=f"at most {len(model.labels)}",
            got=f"{len(select.labels)} labels",
        )
    for i, label in enumerate(select.labels):
        if label not in model.labels:
            raise unknown_name("unknown_label", "label", label, model.labels, field=f"select.labels[{i}]")
    _check_indices(select.indices)
    check_box(select.box, field="select.box")
    if select.HasField("expected"):
        _check_given_box(select.expected.box, field="select.expected.box")
        label = select.expected.label
        if label not in model.labels:
            raise unknown_name("unknown_label", "label", label, model.labels, field="select.expected.label")


def _check_indices(indices: Sequence[int]) -> None:
    """Check that no detection is asked for twice; whether it is there shows when all are known."""
    seen: set[int] = set()
    for i, index in enumerate(indices[: MAX_DETECTIONS + 1]):
        if index in seen or index >= MAX_DETECTIONS:
            raise ContractError(
                "invalid_argument",
                "a detection is asked for twice" if index in seen else "there is no such detection",
                field=f"select.indices[{i}]",
                expected=f"each once, from 0 to {MAX_DETECTIONS - 1}",
                got=str(index),
            )
        seen.add(index)


def _check_nms(nms: types_pb2.Nms, model: types_pb2.Model) -> None:
    check_choice(nms.kind, [described.kind for described in model.nms], field="nms.kind")
    kind = nms.kind or model.default_nms
    described = next(d for d in model.nms if d.kind == kind)
    for name in ("iou_threshold", "corr_high", "corr_low", "sigma", "final_threshold"):
        if not nms.HasField(name):
            continue
        if not described.HasField(name):
            raise ContractError(
                "unknown_parameter",
                f"NMS of kind {kind!r} has no {name}",
                field=f"nms.{name}",
                expected=", ".join(f.name for f, _ in described.ListFields() if f.name != "kind") or "none",
                got=name,
            )
        check_nms_number(name, getattr(nms, name), field=f"nms.{name}")


def _check_targets(targets: Sequence[str], method: types_pb2.Method, model: types_pb2.Model) -> None:
    seen: set[str] = set()
    for i, target in enumerate(targets):
        field = f"targets[{i}]"
        if target in seen:
            raise ContractError(
                "invalid_argument",
                "a target is asked for twice",
                field=field,
                expected="each once",
                got=shorten(target),
            )
        seen.add(target)
        head, colon, label = target.partition(":")
        if colon and head == "class" and "class" in method.targets:
            if label not in model.labels:
                raise unknown_name("unknown_label", "label", label, model.labels, field=field)
        elif target not in method.targets:
            known = [*method.targets, "class:LABEL"] if "class" in method.targets else method.targets
            raise unknown_name("unknown_target", "target", target, known, field=field)


def _check_layer(layer: str, method: types_pb2.Method) -> None:
    """Check a layer, or several joined by "+" where the method combines them; empty passes."""
    named = layer.split("+") if method.combines_layers else [layer]
    for i, name in enumerate(named):
        if layer and name not in method.layers:
            raise unknown_name("unknown_layer", "layer", name, method.layers, field="layer")
        if name in named[:i]:
            raise ContractError(
                "invalid_argument",
                "a layer is combined with itself",
                field="layer",
                expected="each layer once",
                got=shorten(layer),
            )


def check_params(params: struct_pb2.Struct, known: Sequence[types_pb2.Parameter]) -> None:
    """Check parameters against their descriptions.

    Raises:
        ContractError: with the path of the first at fault, below ``params``.
    """
    described = {p.name: p for p in known}
    for name, value in params.fields.items():
        field = f"params.{shorten(name)}"
        if name not in described:
            raise unknown_name("unknown_parameter", "parameter", name, described, field=field)
        parameter = described[name]
        kind = value.WhichOneof("kind")
        wanted = {"number": "number_value", "integer": "number_value", "boolean": "bool_value"}
        number = value.number_value
        if kind != wanted.get(parameter.type, "string_value") or (
            parameter.type == "integer" and not number.is_integer()
        ):
            raise ContractError(
                "invalid_argument",
                f"{name} is not of its type",
                field=field,
                expected=f"{'an' if parameter.type == 'integer' else 'a'} {parameter.type}",
                got=_shown(value),
            )
        if kind == "number_value":
            check_range(
                number,
                field=field,
                low=parameter.minimum if parameter.HasField("minimum") else -math.inf,
                high=parameter.maximum if parameter.HasField("maximum") else math.inf,
            )
        if parameter.choices and value.string_value not in parameter.choices:
            raise unknown_name("invalid_argument", name, value.string_value, parameter.choices, field=field)


def _shown(value: struct_pb2.Value) -> str:
    """Show a parameter's value in an error; lists and objects, which may be large, by what they are."""
    kind = value.WhichOneof("kind")
    if kind in ("list_value", "struct_value"):
        return "a list" if kind == "list_value" else "an object"
    return shorten(json_format.MessageToJson(value, indent=None))


def _check_budget(budget: types_pb2.Budget) -> None:
    if budget.HasField("seconds"):
        check_range(budget.seconds, field="budget.seconds", low=0, open_low=True)
    if budget.HasField("samples"):
        check_range(budget.samples, field="budget.samples", low=1)


def _check_output(output: types_pb2.Output) -> None:
    check_choice(output.size, OUTPUT_SIZES, field="output.size")
    check_choice(output.encoding, OUTPUT_ENCODINGS, field="output.encoding")
    if output.HasField("max_side"):
        check_range(output.max_side, field="output.max_side", low=1, high=MAX_SIDE)
