"""Message descriptors to JSON Schema, as OpenAPI 3.1 uses it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from whybox_proto import checks
from whybox_proto.inversions import LONGEST_KEY, MOST_PRIORITY
from whybox_proto.states import STATES
from whybox_service.paging import MAX_PAGE_SIZE
from whybox_service.rest.comments import comments

Schema = dict[str, Any]

_SCALARS: dict[int, Schema] = {
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1},
    FieldDescriptor.CPPTYPE_INT64: {"type": "string", "pattern": r"^-?\d+$"},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "string", "pattern": r"^\d+$"},
}
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.Value": {},
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Empty": {"type": "object"},
}
_SHARE: Schema = {"minimum": 0, "maximum": 1}
_BOUNDS: dict[str, Schema] = {
    "Budget.samples": {"minimum": 1},
    "Budget.seconds": {"exclusiveMinimum": 0},
    "CreateInversionRequest.idempotency_key": {"maxLength": LONGEST_KEY},
    "CreateInversionRequest.priority": {"maximum": MOST_PRIORITY},
    "ListInversionsRequest.page_size": {"maximum": MAX_PAGE_SIZE},
    "ListInversionsRequest.state": {"enum": ["", *STATES]},
    "ListModelsRequest.page_size": {"maximum": MAX_PAGE_SIZE},
    "Nms.corr_high": {"minimum": -1, "maximum": 1},
    "Nms.corr_low": {"minimum": -1, "maximum": 1},
    "Nms.final_threshold": _SHARE,
    "Nms.iou_threshold": _SHARE,
    "Nms.sigma": {"exclusiveMinimum": 0},
    "Output.encoding": {"enum": ["", *checks.OUTPUT_ENCODINGS]},
    "Output.max_side": {"minimum": 1, "maximum": checks.MAX_SIDE},
    "Output.size": {"enum": ["", *checks.OUTPUT_SIZES]},
    "Select.box": {"maxItems": 4},
    "Select.indices": {"maxItems": checks.MAX_DETECTIONS, "uniqueItems": True},
    "Select.max_detections": {"minimum": 1, "maximum": checks.MAX_DETECTIONS},
    "Select.score_threshold": _SHARE,
    "ExplainRequest.targets": {"uniqueItems": True},
}
"""What `whybox_proto.checks` asks of a field whatever the model."""


def reference(descriptor: Descriptor) -> Schema:
    """Return a reference to a message's schema, or the schema itself of a well-known type."""
    well_known = _WELL_KNOWN.get(descriptor.full_name)
    return dict(well_known) if well_known is not None else {"$ref": f"#/components/schemas/{descriptor.name}"}


def schemas(requests: Iterable[Descriptor], responses: Iterable[Descriptor]) -> dict[str, Schema]:
    """Return the schemas of all messages that can stand in these requests and responses.

    A request has no field that nobody knows; a response has every field that knows no absence.
    """
    asked = {d.name: d for request in requests for d in reachable(request)}
    told = {d.name: d for response in responses for d in reachable(response)}
    return {
        name: _message(descriptor, asked=name in asked)
        for name, descriptor in sorted({**asked, **told}.items())
    }


def reachable(descriptor: Descriptor) -> Iterator[Descriptor]:
    """Yield a message and, once each, the messages below it; well-known types and map entries excluded."""
    seen: set[str] = set()
    waiting = [descriptor]
    while waiting:
        current = waiting.pop()
        if current.full_name in seen or current.full_name in _WELL_KNOWN:
            continue
        seen.add(current.full_name)
        waiting += [f.message_type for f in current.fields if f.message_type is not None]
        if not current.GetOptions().map_entry:
            yield current


def field_schema(field: FieldDescriptor) -> Schema:
    """Return the schema of one field, with what the .proto file says about it."""
    name = ".".join(field.full_name.split(".")[-2:])
    schema = {**_field(field), **_BOUNDS.get(name, {})}
    comment = comments().get(name)
    return {**schema, "description": comment} if comment else schema


def _message(descriptor: Descriptor, *, asked: bool) -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": {field.name: field_schema(field) for field in descriptor.fields},
    }
    if comment := comments().get(descriptor.name):
        schema["description"] = comment
    if asked:
        schema["additionalProperties"] = False
    elif required := [field.name for field in descriptor.fields if not field.has_presence]:
        schema["required"] = required
    return schema


def _field(field: FieldDescriptor) -> Schema:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _single(field.message_type.fields_by_name["value"])}
    if field.is_repeated:
        return {"type": "array", "items": _single(field)}
    return _single(field)


def _single(field: FieldDescriptor) -> Schema:
    if field.message_type is not None:
        return reference(field.message_type)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    return dict(_SCALARS[field.cpp_type])
