"""Parameters as they come in a request, as Python's values."""

from __future__ import annotations

from google.protobuf import struct_pb2

from whybox.methods.base import ParamValue
from whybox_proto.v1 import types_pb2


def value_of(described: types_pb2.Parameter, value: struct_pb2.Value) -> ParamValue:
    """Read a parameter's value, which has been checked against its description."""
    if described.type == "boolean":
        return value.bool_value
    if described.type == "string":
        return value.string_value
    return int(value.number_value) if described.type == "integer" else value.number_value
