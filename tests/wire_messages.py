"""Bytes that are, nearly are, or are no protobuf messages: strategies for hypothesis."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.message import Message
from hypothesis import strategies as st

from gateway_samples import filled
from whybox_proto.v1 import explainer_pb2

ODD_NUMBERS = (0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e308, -1e-308, 1e39, -1.0, 2.0**63)


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    written = bytearray()
    number &= (1 << 64) - 1
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])


def field(number: int, kind: int, body: bytes) -> bytes:
    """A field; kinds: 0 varint, 1 eight bytes, 2 bytes and their length, 3 and 4 groups, 5 four bytes."""
    return varint(number << 3 | kind) + (varint(len(body)) + body if kind == 2 else body)


@st.composite
def wire(draw: Callable[..., Any], depth: int = 3) -> bytes:
    """A message of fields that may or may not be known, of any type, nested."""
    written = b""
    for _ in range(draw(st.integers(0, 5))):
        number = draw(st.integers(1, 16) | st.sampled_from([100, 19_000, (1 << 29) - 1]))
        kind = draw(st.sampled_from([0, 1, 2, 2, 2, 3, 4, 5]))
        if kind == 0:
            body = varint(draw(st.integers(0, (1 << 64) - 1)))
        elif kind in (1, 5):
            value = draw(st.sampled_from(ODD_NUMBERS) | st.floats())
            body = struct.pack("<d", value) if kind == 1 else draw(st.binary(min_size=4, max_size=4))
        elif kind == 2:
            below = wire(depth=depth - 1) if depth else st.binary(max_size=4)
            body = draw(st.binary(max_size=8) | st.text(max_size=8).map(str.encode) | below)
        else:
            body = b""
        written += field(number, kind, body)
    return written


@st.composite
def mutated(draw: Callable[..., Any], kind: type[Message], image: bytes, model: str) -> bytes:
    """A message with values in every field or in some, and then a few wrong bytes, or none."""
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    message: Any = filled(kind, rng, sparse=True)
    if draw(st.booleans()):
        message.model, message.model_version = model, ""
    if draw(st.booleans()):
        message.image = image
    for name in draw(st.lists(st.sampled_from(["select", "nms", "budget", "output", "params"]), max_size=5)):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    if draw(st.booleans()):
        message.select.box[:] = [draw(st.sampled_from(ODD_NUMBERS)) for _ in range(4)]
    written = bytearray(message.SerializeToString())
    for _ in range(draw(st.integers(0, 4))):
        at = rng.randrange(len(written) + 1)
        how = rng.randrange(4)
        if how == 0 and at < len(written):
            written[at] = rng.randrange(256)
        elif how == 1:
            written[at:at] = rng.randbytes(rng.randrange(1, 5))
        elif how == 2:
            del written[at : at + rng.randrange(1, 5)]
        else:
            written += draw(wire())
    return bytes(written)


def requests(kind: type[Message], image: bytes, model: str) -> st.SearchStrategy[bytes]:
    """Bodies for an rpc: random bytes, fields of any kind, and mutated requests."""
    return st.binary(max_size=200) | wire() | mutated(kind, image, model)


def _deep(levels: int) -> bytes:
    """A value in a list in a list …"""
    value = b""
    for _ in range(levels):
        value = field(6, 2, field(1, 2, value))  # Value.list_value, ListValue.values
    return value


def _entry(name: bytes, value: bytes) -> bytes:
    return field(1, 2, field(1, 2, name) + field(2, 2, value))


def _odd_params(number: float) -> explainer_pb2.ExplainRequest:
    value = struct_pb2.Value(number_value=number)
    return explainer_pb2.ExplainRequest(params=struct_pb2.Struct(fields={"smoothing": value}))


def nasty() -> dict[str, tuple[bytes, str]]:
    """What to add to a good explain request: bytes, and the type of the error, or none."""
    explain = explainer_pb2.ExplainRequest
    request = explain()
    request.select.indices.extend([0] * 200_000)
    far = explain()
    far.select.indices.extend([2**32 - 1])
    twice = field(9, 2, _entry(b"smoothing", field(2, 1, struct.pack("<d", 9.0))))
    return {
        "an unknown field": (field(99, 0, b"\x01"), "unknown_field"),
        "an unknown field, inside": (field(4, 2, field(99, 2, b"x")), "unknown_field"),
        "an unknown group": (field(99, 3, b"") + field(99, 4, b""), "unknown_field"),
        "a field of another type": (field(6, 0, b"\x01"), "unknown_field"),
        "a label of no UTF-8": (field(4, 2, field(3, 2, b"\xff\xfe")), "invalid_request"),
        "a method of no UTF-8": (field(6, 2, b"\xff\xfe"), "invalid_request"),
        "a parameter named in no UTF-8": (field(9, 2, _entry(b"\xff", b"")), "invalid_request"),
        "a parameter of no kind": (field(9, 2, _entry(b"smoothing", b"")), "invalid_argument"),
        "a parameter given twice": (
            twice + field(9, 2, _entry(b"smoothing", field(2, 1, struct.pack("<d", 0.1)))),
            "",
        ),
        "lists nested 40 deep": (field(9, 2, _entry(b"smoothing", _deep(20))), "invalid_argument"),
        "lists nested 10,000 deep": (field(9, 2, _entry(b"smoothing", _deep(5000))), "invalid_request"),
        "groups nested 10,000 deep": (field(99, 3, b"") * 10_000, "invalid_request"),
        "200,000 times the same index": (request.SerializeToString(), "invalid_argument"),
        "20 million unknown fields": (field(99, 0, b"\x01") * 20_000_000, "unknown_field"),
        "a million labels": (
            explain(select={"labels": ["alpha"] * 1_000_000}).SerializeToString(),
            "invalid_argument",
        ),
        "a label of 30 MB": (
            explain(select={"labels": ["alpha" * 6_000_000]}).SerializeToString(),
            "unknown_label",
        ),
        "a target of 30 MB": (explain(targets=["alpha" * 6_000_000]).SerializeToString(), "unknown_target"),
        "a list of 5 million values": (
            field(9, 2, _entry(b"smoothing", field(6, 2, b"\x0a\0" * 5_000_000))),
            "invalid_argument",
        ),
        "a box of a million sides": (
            explain(select={"box": [1.0] * 1_000_000}).SerializeToString(),
            "invalid_argument",
        ),
        "an index of 4 billion": (far.SerializeToString(), "invalid_argument"),
        "a seed of 2^64 - 1": (field(11, 0, varint(-1)), ""),
        **{
            f"smoothing of {number}": (
                _odd_params(number).SerializeToString(),
                "" if number == 0 else "invalid_argument",
            )
            for number in ODD_NUMBERS
        },
        **{
            f"a box to {number}": (
                explain(select={"box": [0, 0, number, 5]}).SerializeToString(),
                "invalid_argument",
            )
            for number in (float("nan"), float("inf"), float("-inf"), 0.0, -1.0)
        },
        **{
            f"a score threshold of {number}": (
                explain(select={"score_threshold": number}).SerializeToString(),
                "" if number == 0 else "invalid_argument",
            )
            for number in (float("nan"), float("inf"), float("-inf"), -1.0, 0.0, -0.0, 2.0)
        },
    }
