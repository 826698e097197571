"""JSON in and out: the proto3 mapping, and errors that name the field."""

from __future__ import annotations

import base64
import json
import random
import struct
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from gateway_samples import MESSAGES, filled, leaves, put
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2
from whybox_service.rest import json_in, json_out
from whybox_service.rest.query import read_query

REQUESTS = [explainer_pb2.DetectRequest, explainer_pb2.ExplainRequest]


def read(body: str | bytes, kind: type[Message] = explainer_pb2.ExplainRequest) -> Any:
    message = kind()
    json_in.read_message(json_in.parse(body if isinstance(body, bytes) else body.encode()), message)
    return message


def fault(call: Any, *args: Any) -> ContractError:
    with pytest.raises(ContractError) as caught:
        call(*args)
    return caught.value


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.DESCRIPTOR.name)
@pytest.mark.parametrize("sparse", [False, True], ids=["full", "sparse"])
def test_writes_what_the_protobuf_library_writes(kind: type[Message], sparse: bool) -> None:
    message = filled(kind, random.Random(kind.DESCRIPTOR.full_name), sparse=sparse)
    reference = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert json.loads(json_out.to_json(json_out.to_dict(message))) == reference


def test_writes_an_empty_message_with_its_defaults() -> None:
    written = json_out.to_dict(types_pb2.Nms())
    assert written == {"kind": "", "explain_suppressed": False}  # unset optional fields are not there


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.DESCRIPTOR.name)
@pytest.mark.parametrize("preserving", [False, True], ids=["camelCase", "snake_case"])
def test_reads_what_the_protobuf_library_writes(kind: type[Message], preserving: bool) -> None:
    message = filled(kind, random.Random(kind.DESCRIPTOR.full_name))
    body = json_format.MessageToJson(message, preserving_proto_field_name=preserving)
    assert read(body, kind) == message


@given(st.binary(min_size=4, max_size=4))
def test_floats_survive_as_short_decimals(raw: bytes) -> None:
    (value,) = struct.unpack("<f", raw)
    text = json_out.to_dict(types_pb2.HeatMap(min_value=value))["min_value"]
    if value != value:
        assert text == "NaN"
    elif abs(value) == float("inf"):
        assert text in ("Infinity", "-Infinity")
    else:
        assert types_pb2.HeatMap(min_value=text).min_value == value
        assert len(repr(text)) <= len(repr(value))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_value_in_any_field_is_read_or_refused(value: Any) -> None:
    for path, _ in leaves(explainer_pb2.ExplainRequest.DESCRIPTOR):
        error = None
        try:
            json_in.read_message(put({}, path, value), explainer_pb2.ExplainRequest())
        except ContractError as raised:
            error = raised
        assert error is None or (error.field.startswith(path) and (error.expected or error.got))


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_every_field_can_stand_in_a_query_string(kind: type[Message]) -> None:
    message = filled(kind, random.Random(7))
    message.ClearField("image")
    tree = json_format.MessageToDict(message, preserving_proto_field_name=True)
    pairs = []
    for path, _ in leaves(kind.DESCRIPTOR):
        value: Any = tree
        for name in path.split("."):
            value = value.get(name, {})
        if isinstance(value, dict):
            pairs += [(f"{path}.{name}", json.dumps(item)) for name, item in value.items()]
        else:
            pairs += [(path, _text(item)) for item in (value if isinstance(value, list) else [value])]
    asked = kind()
    read_query(pairs, asked)
    assert asked == message


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def test_query_parameters_of_no_fixed_type_are_read_as_json_or_text() -> None:
    request = explainer_pb2.ExplainRequest()
    pairs = [
        ("params.a", "1.5"),
        ("params.b", "true"),
        ("params.c", "fast"),
        ("params.d", '"1"'),
        ("params.e", "NaN"),
    ]
    read_query(pairs, request)
    assert dict(request.params) == {"a": 1.5, "b": True, "c": "fast", "d": "1", "e": "NaN"}


MALFORMED = [
    (b"", "line 1, column 1"),
    (b"{", "line 1"),
    (b'{"a":1,}', "line 1, column 8"),
    (b'{"seed":NaN}', "no number"),
    (b"\xff\xfe{}", "UTF-8"),
    (b"[" * 100_000, "too deeply"),
    (b'{"seed":' + b"9" * 5000 + b"}", ""),
    (b'{"seed":1,"seed":2}', "twice"),
]


@pytest.mark.parametrize(("body", "says"), MALFORMED, ids=[str(row[0][:12]) for row in MALFORMED])
def test_malformed_json_is_an_invalid_request(body: bytes, says: str) -> None:
    error = fault(json_in.parse, body)
    assert error.type == "invalid_request"
    assert says in error.message


WRONG: list[tuple[Any, str, str, str]] = [
    # value of the request, field, expected, got
    ([], "", "an object", "a list"),
    ("text", "", "an object", '"text"'),
    (None, "", "an object", "null"),
    ({"select": 3}, "select", "an object", "3"),
    ({"select": {"box": "1,2,3,4"}}, "select.box", "a list", '"1,2,3,4"'),
    ({"select": {"box": [1, 2, "3", 4]}}, "select.box[2]", "a number", '"3"'),
    ({"select": {"box": [1, 2, None, 4]}}, "select.box[2]", "a number", "null"),
    ({"select": {"score_threshold": "0.5"}}, "select.score_threshold", "a number", '"0.5"'),
    ({"select": {"score_threshold": True}}, "select.score_threshold", "a number", "true"),
    ({"select": {"score_threshold": 1e39}}, "select.score_threshold", "a finite number", "1e+39"),
    ({"select": {"max_detections": 2.5}}, "select.max_detections", "an integer from 0 to 4294967295", "2.5"),
    ({"select": {"max_detections": -1}}, "select.max_detections", "an integer from 0 to 4294967295", "-1"),
    (
        {"select": {"max_detections": 1 << 32}},
        "select.max_detections",
        "an integer from 0 to 4294967295",
        "4294967296",
    ),
    ({"seed": "7"}, "seed", "an integer from 0 to 4294967295", '"7"'),
    ({"evaluate": "true"}, "evaluate", "true or false", '"true"'),
    ({"evaluate": 1}, "evaluate", "true or false", "1"),
    ({"targets": "class"}, "targets", "a list", '"class"'),
    ({"targets": [1]}, "targets[0]", "a string", "1"),
    ({"method": {"name": "odam"}}, "method", "a string", "an object"),
    ({"image": "not base64!"}, "image", "bytes in base64", '"not base64!"'),
    ({"image": "a"}, "image", "bytes in base64", '"a"'),
    ({"image": "ä"}, "image", "bytes in base64", '"ä"'),
    ({"image": 7}, "image", "bytes in base64", "7"),
    ({"params": [1]}, "params", "an object", "a list"),
    ({"method": "\ud800"}, "method", "a string without lone surrogates", '"\\\\ud800"'),
]


@pytest.mark.parametrize(
    ("value", "field", "expected", "got"), WRONG, ids=[f"{row[1]}-{row[3]}"[:40] for row in WRONG]
)
def test_a_wrong_value_names_field_expected_and_got(value: Any, field: str, expected: str, got: str) -> None:
    error = fault(json_in.read_message, value, explainer_pb2.ExplainRequest())
    assert (error.type, error.field, error.expected, error.got) == ("invalid_argument", field, expected, got)


@pytest.mark.parametrize(
    ("value", "field", "near"),
    [
        ({"selct": {}}, "selct", "select"),
        ({"select": {"score_treshold": 0.5}}, "select.score_treshold", "score_threshold"),
        ({"output": {"encodings": "u8"}}, "output.encodings", "encoding"),
    ],
)
def test_an_unknown_field_names_its_path_and_the_nearest(value: Any, field: str, near: str) -> None:
    error = fault(json_in.read_message, value, explainer_pb2.ExplainRequest())
    assert (error.type, error.field) == ("unknown_field", field)
    assert f"did you mean {near!r}?" in error.message


@pytest.mark.parametrize(
    ("pairs", "type", "field"),
    [
        ([("select.scor_threshold", "1")], "unknown_field", "select.scor_threshold"),
        ([("select.score_threshold", "high")], "invalid_argument", "select.score_threshold"),
        ([("select.score_threshold", "nan")], "invalid_argument", "select.score_threshold"),
        ([("seed", "1"), ("seed", "2")], "invalid_argument", "seed"),
        ([("seed", "1.5")], "invalid_argument", "seed"),
        ([("seed.x", "1")], "invalid_argument", "seed.x"),
        ([("select", "all")], "invalid_argument", "select"),
        ([("select", "all"), ("select.box", "1")], "invalid_argument", "select.box"),
        ([("evaluate", "1")], "invalid_argument", "evaluate"),
        ([("", "1")], "unknown_field", ""),
        ([("select..box", "1")], "unknown_field", "select."),
        ([("params", "1")], "invalid_argument", "params"),
    ],
)
def test_a_wrong_query_string_names_the_field(pairs: list[tuple[str, str]], type: str, field: str) -> None:
    error = fault(read_query, pairs, explainer_pb2.ExplainRequest())
    assert (error.type, error.field) == (type, field)


def test_null_means_unset_and_both_spellings_of_a_name_are_read_once() -> None:
    request = read('{"select": null, "modelVersion": "2", "select": null}'.replace(', "select": null}', "}"))
    assert request == explainer_pb2.ExplainRequest(model_version="2")
    error = fault(json_in.read_message, {"modelVersion": "2", "model_version": "2"}, request)
    assert (error.type, error.field) == ("invalid_argument", "model_version")


def test_an_empty_object_is_present() -> None:
    assert read('{"select": {"expected": {}}}').select.HasField("expected")


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_read_in_both_alphabets_with_and_without_padding(encode: Any) -> None:
    for size in range(5):
        image = b"\xfb\xff\xfe\x3e"[:size]
        text = encode(image).decode()
        assert read(json.dumps({"image": text})).image == image
        assert read(json.dumps({"image": text.rstrip("=")})).image == image


def test_a_text_of_millions_of_values_is_refused_before_it_is_read() -> None:
    body = b'{"select": {"indices": [' + b"0," * 2_000_000 + b"0]}}"
    with pytest.raises(ContractError) as caught:
        json_in.parse(body)
    assert (caught.value.type, caught.value.got) == ("invalid_request", "2000000 commas")
    assert json_in.parse(b'{"image": "' + b"A" * 10_000_000 + b'"}')
