"""What the .proto files say about each message, field and rpc: the comments that descriptors leave out."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_SOURCES = ("types.proto", "explainer.proto")
_BLOCK = re.compile(r"(?:message|service) (\w+) \{")
_MEMBER = re.compile(r"  (?:rpc (\w+)\(|(?:optional |repeated )?[\w.]+(?:<[^>]*>)? (\w+) = \d+;)")


@cache
def comments() -> dict[str, str]:
    """Return the comments by name: ``Message`` or ``Message.field``."""
    found: dict[str, str] = {}
    for source in _SOURCES:
        block = ""
        pending: list[str] = []
        for line in files("whybox_proto.v1").joinpath(source).read_text("utf-8").splitlines():
            if line.strip().startswith("//"):
                pending.append(line.strip().removeprefix("//").strip())
                continue
            if match := _BLOCK.match(line):
                block = name = match[1]
            elif match := _MEMBER.match(line):
                name = f"{block}.{match[1] or match[2]}"
            else:
                name = ""
            if name and pending:
                found[name] = " ".join(pending)
            pending = []
    return found
