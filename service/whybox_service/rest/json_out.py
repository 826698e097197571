"""Messages to JSON: the proto3 mapping with snake_case names, fields at their default printed.

The same mapping as `google.protobuf.json_format` with `preserving_proto_field_name` and
`always_print_fields_with_no_presence` (a test holds them together), several times as fast, because what a
message type needs is worked out once.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_INT64 = (
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT64,
)
_FLOAT32 = struct.Struct("<f")

Writer = Callable[[Any], Any]


def to_json(value: Any) -> bytes:
    """Write a value as compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def to_dict(message: Message) -> dict[str, Any]:
    """Turn a message into what `json.dumps` takes."""
    if message.DESCRIPTOR.full_name.startswith("google.protobuf."):
        well_known: dict[str, Any] = _well_known(message)
        return well_known
    return {
        name: write(getattr(message, name))
        for name, has_presence, write in _fields(message.DESCRIPTOR)
        if not has_presence or message.HasField(name)
    }


def _well_known(message: Any) -> Any:
    """Turn a message of protobuf's own into what the mapping makes of it; those in our lists are quick."""
    if isinstance(message, struct_pb2.Struct):
        return {name: _value(value) for name, value in message.fields.items()}
    if isinstance(message, timestamp_pb2.Timestamp):
        return message.ToJsonString()
    return json_format.MessageToDict(message)


def _value(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value" and math.isfinite(value.number_value):
        return value.number_value
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return value.bool_value
    return json_format.MessageToDict(value)


@cache
def _fields(descriptor: Descriptor) -> list[tuple[str, bool, Writer]]:
    return [(field.name, field.has_presence, _writer(field)) for field in descriptor.fields]


def _writer(field: FieldDescriptor) -> Writer:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        write = _single(field.message_type.fields_by_name["value"])
        return lambda entries: {str(key): write(entries[key]) for key in sorted(entries)}
    write = _single(field)
    if field.is_repeated:
        return lambda values: [write(value) for value in values]
    return write


def _single(field: FieldDescriptor) -> Writer:
    if field.message_type is not None:
        return to_dict
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: base64.b64encode(value).decode("ascii")
    if field.cpp_type in _INT64:
        return str
    if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        return _float32
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return _float64
    return lambda value: value


def _float32(value: float) -> float | str:
    """Write the shortest decimal that reads back as the same 32-bit float."""
    if not math.isfinite(value):
        return _float64(value)
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        try:
            if _FLOAT32.unpack(_FLOAT32.pack(short))[0] == value:
                return short
        except OverflowError:  # rounded up past the largest float
            continue
    return float(f"{value:.9g}")


def _float64(value: float) -> float | str:
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
