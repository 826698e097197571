"""JSON to messages: the proto3 mapping, read so that an error names the field, what it takes and what came.

Stricter than `google.protobuf.json_format` where leniency hides mistakes: a number in quotes is no number
(64-bit integers, which the mapping itself writes in quotes, may come either way).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from functools import cache
from typing import Any

from google.protobuf import json_format, struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from whybox_proto.errors import ContractError, shorten, unknown_name

_INTEGERS: dict[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_WIDE = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_FLOAT32_MAX = 3.4028234663852886e38
_INTEGER = re.compile(r"[+-]?\d{1,20}")


MAX_VALUES = 100_000
"""Of one JSON text. Millions would keep every other request waiting while they are read."""


class Text(str):
    """A value from a query string: text that shall be read as whatever the field takes."""


def parse(body: bytes, field: str = "") -> Any:
    """Parse a JSON text, and say where it is wrong; `field` is the part that it came in, if any."""
    if (commas := body.count(b",")) > MAX_VALUES:  # a picture in base64 has none
        raise ContractError(
            "invalid_request",
            "the JSON holds too many values",
            field=field,
            expected=f"at most {MAX_VALUES}",
            got=f"{commas} commas",
        )
    try:
        return json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ContractError(
            "invalid_request", f"the JSON is malformed at {where}: {error.msg}", field=field, expected="JSON"
        ) from None
    except UnicodeDecodeError:
        raise ContractError(
            "invalid_request", "the JSON is not UTF-8", field=field, expected="JSON in UTF-8"
        ) from None
    except RecursionError:
        raise ContractError("invalid_request", "the JSON is nested too deeply", field=field) from None
    except ValueError as error:  # a number with thousands of digits
        raise ContractError("invalid_request", shorten(error), field=field, expected="JSON") from None


def read_message(value: Any, message: Message, path: str = "") -> None:
    """Fill a message from what `parse` (or a query string) gave.

    Args:
        value: a JSON value.
        message: to fill.
        path: where `value` stands in the request; empty for the whole of it.

    Raises:
        ContractError: `unknown_field` or `invalid_argument`, with the path of the field.
    """
    if not isinstance(value, dict):
        raise _mismatch(path, "an object", value)
    names = _names(message.DESCRIPTOR)
    seen: dict[str, str] = {}
    for name, item in value.items():
        where = f"{path}.{name}" if path else name
        field = names.get(name)
        if field is None:
            known = [f.name for f in message.DESCRIPTOR.fields]
            raise unknown_name("unknown_field", "field", name, known, field=shorten(where))
        if field.name in seen:
            raise ContractError(
                "invalid_argument", "a field is given twice", field=where, got=f"{seen[field.name]}, {name}"
            )
        seen[field.name] = name
        if item is not None:  # null: as if it were not there
            _read_field(item, field, message, where)


def _read_field(item: Any, field: FieldDescriptor, message: Message, path: str) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if not isinstance(item, dict):
            raise _mismatch(path, "an object", item)
        entry = field.message_type.fields_by_name["value"]
        target = getattr(message, field.name)
        for key, value in item.items():
            target[key] = _scalar(value, entry, f"{path}.{key}")
    elif field.is_repeated:
        if not isinstance(item, list):
            raise _mismatch(path, "a list", item)
        target = getattr(message, field.name)
        for i, value in enumerate(item):
            if field.message_type is None:
                target.append(_scalar(value, field, f"{path}[{i}]"))
            else:
                _read_submessage(value, target.add(), f"{path}[{i}]")
    elif field.message_type is not None:
        submessage = getattr(message, field.name)
        submessage.SetInParent()
        _read_submessage(item, submessage, path)
    else:
        setattr(message, field.name, _scalar(item, field, path))


def _read_submessage(item: Any, message: Message, path: str) -> None:
    if not message.DESCRIPTOR.full_name.startswith("google.protobuf."):
        read_message(item, message, path)
        return
    if isinstance(message, struct_pb2.Struct) and not isinstance(item, dict):
        raise _mismatch(path, "an object", item)
    try:
        json_format.ParseDict(_plain(item), message)
    except (json_format.ParseError, ValueError, OverflowError, RecursionError) as error:
        raise ContractError(
            "invalid_argument", "the value cannot be read", field=path, got=shorten(error)
        ) from None


def _scalar(item: Any, field: FieldDescriptor, path: str) -> Any:
    """Return a JSON value as the Python value of a scalar field."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes(item, path)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if not isinstance(item, str):
            raise _mismatch(path, "a string", item)
        try:
            item.encode()
        except UnicodeEncodeError:
            raise _mismatch(path, "a string without lone surrogates", ascii(item)[1:-1]) from None
        return str(item)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if isinstance(item, Text) and item in ("true", "false"):
            return item == "true"
        if not isinstance(item, bool):
            raise _mismatch(path, "true or false", item)
        return item
    if field.cpp_type in _INTEGERS:
        return _integer(item, field, path)
    return _number(item, field, path)


def _integer(item: Any, field: FieldDescriptor, path: str) -> int:
    low, high = _INTEGERS[field.cpp_type]
    if isinstance(item, Text) or (isinstance(item, str) and field.cpp_type in _WIDE):
        number = int(item) if _INTEGER.fullmatch(item) else None
    elif isinstance(item, float) and item.is_integer():
        number = int(item)
    else:
        number = item if isinstance(item, int) and not isinstance(item, bool) else None
    if number is None or not low <= number <= high:
        raise _mismatch(path, f"an integer from {low} to {high}", item)
    return number


def _number(item: Any, field: FieldDescriptor, path: str) -> float:
    number = math.nan
    if isinstance(item, Text):
        try:
            number = float(item)
        except ValueError:
            raise _mismatch(path, "a number", item) from None
    elif isinstance(item, int | float) and not isinstance(item, bool):
        try:
            number = float(item)
        except OverflowError:
            number = math.inf
    else:
        raise _mismatch(path, "a number", item)
    limit = _FLOAT32_MAX if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT else math.inf
    if not math.isfinite(number) or abs(number) > limit:
        raise _mismatch(path, "a finite number", item)
    return number


def _bytes(item: Any, path: str) -> bytes:
    expected = "bytes in base64"
    if not isinstance(item, str):
        raise _mismatch(path, expected, item)
    try:
        plain = item.encode("ascii")
        if b"-" in plain or b"_" in plain:
            plain = plain.replace(b"-", b"+").replace(b"_", b"/")
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise _mismatch(path, expected, item) from None


def _plain(item: Any) -> Any:
    """Read the texts in a value of no fixed type as JSON where they are, and as strings where not."""
    if isinstance(item, dict):
        return {key: _plain(value) for key, value in item.items()}
    if isinstance(item, Text):
        try:
            return json.loads(item, parse_constant=_no_constant)
        except (ContractError, ValueError, RecursionError):
            return str(item)
    return item


@cache
def _names(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """Return the fields by both names that the mapping gives them: snake_case and lowerCamelCase."""
    return {**descriptor.fields_by_camelcase_name, **descriptor.fields_by_name}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ContractError(
            "invalid_request", "a name stands twice in one object", field=shorten(twice), expected="each once"
        )
    return unique


def _no_constant(name: str) -> float:
    raise ContractError("invalid_request", "the JSON holds what is no number", expected="JSON", got=name)


def _mismatch(path: str, expected: str, item: Any) -> ContractError:
    if isinstance(item, str):
        got = shorten(json.dumps(item, ensure_ascii=False))
    elif isinstance(item, dict):
        got = "an object"
    elif isinstance(item, list):
        got = "a list"
    else:
        got = shorten(json.dumps(item)) if isinstance(item, bool | float) or item is None else _digits(item)
    return ContractError(
        "invalid_argument",
        f"{path or 'the request'} is not {expected}",
        field=path,
        expected=expected,
        got=got,
    )


def _digits(number: int) -> str:
    """Show an integer; one of thousands of digits cannot be printed."""
    return str(number) if abs(number) < 10**30 else f"an integer of {number.bit_length()} bits"
