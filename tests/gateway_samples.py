"""Messages made by reflection, so that a test covers fields that are added later."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from whybox_proto.v1 import explainer_pb2, types_pb2

SERVICE = explainer_pb2.DESCRIPTOR.services_by_name["Explainer"]
MESSAGES: list[type[Message]] = [
    GetMessageClass(descriptor)
    for file in (types_pb2.DESCRIPTOR, explainer_pb2.DESCRIPTOR)
    for descriptor in file.message_types_by_name.values()
]


def filled(kind: type[Message], rng: random.Random, *, sparse: bool = False) -> Message:
    """A message with a value in every field, or in some of them."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        if sparse and rng.random() < 0.4:
            continue
        fill(message, field, rng, sparse=sparse)
    return message


def fill(message: Message, field: FieldDescriptor, rng: random.Random, *, sparse: bool = False) -> None:
    """Put a value into one field."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for key in ("beta", "alpha"):
            getattr(message, field.name)[key] = scalar(field.message_type.fields_by_name["value"], rng)
    elif field.message_type is not None:
        values = [
            submessage(field.message_type, rng, sparse=sparse) for _ in range(2 if field.is_repeated else 1)
        ]
        if field.is_repeated:
            getattr(message, field.name).extend(values)
        else:
            getattr(message, field.name).CopyFrom(values[0])
    elif field.is_repeated:
        getattr(message, field.name).extend(scalar(field, rng) for _ in range(4))
    else:
        setattr(message, field.name, scalar(field, rng))


def submessage(descriptor: Descriptor, rng: random.Random, *, sparse: bool) -> Message:
    """A message for a field, a well-known type among them."""
    kind = GetMessageClass(descriptor)
    if descriptor.full_name == "google.protobuf.Struct":
        struct = kind()
        struct.update(
            {"number": 0.5, "flag": True, "text": "α", "list": [1, "two", None], "object": {"deep": 1}}
        )
        return struct
    if descriptor.full_name == "google.protobuf.Value":
        return kind(number_value=rng.random())
    if descriptor.full_name == "google.protobuf.Timestamp":
        return kind(seconds=rng.randrange(1 << 31), nanos=rng.randrange(10**9))
    return filled(kind, rng, sparse=sparse)


def scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    """A value that a scalar field can hold."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.randrange(1, 9))
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return rng.choice(["plain", "naïve “quotes” ✓", "line\nbreak", 'with "quotes" and \\'])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice([0.1, 1 / 3, -1e-30, 3.4e38, 16777217.0, 123.456, rng.uniform(-1e4, 1e4)])
    if field.cpp_type in (FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_INT64):
        return (1 << 63) - rng.randrange(1, 99)
    return rng.randrange(1, 1 << 31)


def leaves(descriptor: Descriptor, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """The scalar and well-known fields of a message and those in it, by dotted path; no lists of messages."""
    for field in descriptor.fields:
        path = prefix + field.name
        below = field.message_type
        if below is None or below.full_name.startswith("google.protobuf."):
            yield path, field
        elif not field.is_repeated and not below.GetOptions().map_entry:
            yield from leaves(below, path + ".")


def put(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Hang a value into nested dicts."""
    *parents, last = path.split(".")
    branch = tree
    for name in parents:
        branch = branch.setdefault(name, {})
    branch[last] = value
    return tree
