"""The log of the gateway's process: one line an event, each with the request that it belongs to.

Whatever a client sends stays inside its line: control characters are escaped, and the further lines of a
traceback begin with a bar.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

from whybox_proto.errors import ERRORS, shorten
from whybox_service.metrics import PROBES, Observation

Format = Literal["text", "json"]

_access = logging.getLogger("whybox_service.access")
_context: ContextVar[Mapping[str, str]] = ContextVar("whybox_log_context", default=MappingProxyType({}))
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BAR = "  | "


def configure(level: str, format: Format) -> None:
    """Have every logger of the process write to stderr.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        format: ``text`` for people, ``json`` for machines.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    # No line tells its thread, process or place in the code, so none need be looked up: the how-to's own way.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    # They tell every byte that goes to TorchServe.
    logging.getLogger("httpcore").setLevel(logging.INFO)


@contextmanager
def context(**fields: str) -> Iterator[None]:
    """Have every line that is logged inside carry these fields, in other tasks and threads as well.

    A field that is set twice has its inner value; an empty one is left out.
    """
    before = _context.get()
    _context.set({**before, **fields})
    try:
        yield
    finally:
        _context.set(before)


def access(observation: Observation, request_id: str, seconds: float) -> None:
    """Log a request that has ended: a warning where the fault is ours, probes only for debugging.

    Args:
        observation: what became of it.
        request_id: the id that the client sees.
        seconds: from its first byte to its answer.
    """
    code = observation.code
    row = ERRORS.get(code)
    if observation.operation in PROBES and code != "internal":
        level = logging.DEBUG
    elif row is not None and row.http_status >= 500 and code != "not_implemented":
        level = logging.WARNING
    else:
        level = logging.INFO
    if not _access.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "request_id": request_id,
        "transport": observation.transport,
        "operation": observation.operation,
        "model": shorten(observation.model),
        "key": observation.key,
        "code": code,
        "seconds": round(seconds, 6),
        "trace_id": observation.trace_id,
    }
    if observation.error is not None:
        fields["field"], fields["error"] = observation.error.field, observation.error.message
    _access.log(
        level, "%s %s: %s", observation.transport, observation.operation, code, extra={"fields": fields}
    )


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, the fields, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if trace := _traceback(self, record):
            line["exception"] = trace
        # In ASCII, so that no reader sees a line's end where there is none.
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """A line to read: time, level, logger, message, and the fields as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; the lines of a traceback follow, each behind a bar."""
        parts = [_time(record), record.levelname, f"{record.name}:", _escape(record.getMessage())]
        parts += [f"{name}={_quoted(value)}" for name, value in _fields(record).items()]
        lines = [" ".join(parts)]
        lines += [_BAR + _escape(line) for line in _traceback(self, record).split("\n") if line]
        return "\n".join(lines)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of the context and of the line itself, without those that say nothing."""
    fields = {**_context.get(), **getattr(record, "fields", {})}
    return {name: value for name, value in fields.items() if value != ""}


def _time(record: logging.LogRecord) -> str:
    """Return the moment in ISO 8601, in UTC, to the millisecond."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def _quoted(value: object) -> str:
    """Write a value so that it ends where it ends: in quotes where it holds more than a word."""
    text = str(value)
    return text if re.fullmatch(r"[!#-<>-~]+", text) else json.dumps(text)
