"""Query strings to the tree that `json_in` reads: dotted names, repeated lists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from whybox_proto.errors import ContractError, shorten
from whybox_service.rest.json_in import Text, read_message

MAX_DOTS = 16


def read_query(pairs: Iterable[tuple[str, str]], message: Message) -> None:
    """Fill a message from the pairs of a query string, such as ``select.score_threshold=0.5``.

    Raises:
        ContractError: as `json_in.read_message`, or for a field that cannot stand in a query string.
    """
    tree: dict[str, Any] = {}
    for name, value in pairs:
        if name.count(".") > MAX_DOTS:
            raise ContractError(
                "unknown_field",
                "no field lies so deep",
                field=shorten(name),
                expected=f"at most {MAX_DOTS} dots",
                got=f"{name.count('.')} dots",
            )
        _put(tree, message.DESCRIPTOR, name.split("."), Text(value), name)
    read_message(tree, message)


def _put(tree: dict[str, Any], descriptor: Any, parts: list[str], value: Text, path: str) -> None:
    """Hang one value into the tree; below a Struct or an unknown field there is no descriptor."""
    head, *rest = parts
    field: FieldDescriptor | None = None
    if descriptor is not None and not descriptor.full_name.startswith("google.protobuf."):
        field = descriptor.fields_by_name.get(head) or descriptor.fields_by_camelcase_name.get(head)
    if field is not None and field.is_repeated and not rest and field.message_type is None:
        tree.setdefault(head, []).append(value)
    elif rest and (field is None or (field.message_type is not None and not field.is_repeated)):
        branch = tree.setdefault(head, {})
        if not isinstance(branch, dict):
            raise _twice(path)
        _put(branch, field.message_type if field is not None else None, rest, value, path)
    elif rest:
        raise ContractError(
            "invalid_argument",
            f"{shorten(head)} has no fields of its own",
            field=shorten(path),
            expected=shorten(path.removesuffix("." + ".".join(rest))),
            got=shorten(path),
        )
    elif head in tree:
        raise _twice(path)
    else:
        tree[head] = value


def _twice(path: str) -> ContractError:
    return ContractError(
        "invalid_argument", "a field is given twice", field=shorten(path), expected="each once", got="twice"
    )
