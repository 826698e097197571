"""What a worker logs: whole lines on stdout, which TorchServe copies to its log.

TorchServe reads the worker's stdout line by line, and some lines mean something to it (metrics, the worker's
process id). So control characters are escaped: no request can begin a line of its own.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

FORMAT = "WHYBOX_LOG_FORMAT"
"""Environment variable; with ``json`` a traceback stays in its message's line, since TorchServe's log then
holds a JSON object for each line."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BAR = "  | "
_at_hand: tuple[str, ...] = ()


def configure(name: str = "whybox") -> None:
    """Have a logger and those below it write to stdout in this form; again changes nothing."""
    logger = logging.getLogger(name)
    if any(isinstance(handler.formatter, Formatter) for handler in logger.handlers):
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Formatter(one_line=os.environ.get(FORMAT) == "json"))
    logger.addHandler(handler)
    logger.propagate = False


class Formatter(logging.Formatter):
    """Level, logger, ids of the requests at hand, message; then a traceback.

    Args:
        one_line: keep the traceback in the same line, its line ends escaped.
    """

    def __init__(self, *, one_line: bool) -> None:
        super().__init__()
        self._one_line = one_line

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines."""
        ids = f" [{' '.join(_at_hand)}]" if _at_hand else ""
        lines = [_escape(f"{record.levelname} {record.name}{ids}: {record.getMessage()}")]
        if record.exc_info and record.exc_info[0]:
            lines += [_BAR + _escape(line) for line in self.formatException(record.exc_info).split("\n")]
        return ("\\n" if self._one_line else "\n").join(lines)


@contextmanager
def at_hand(request_ids: Iterable[str]) -> Iterator[None]:
    """Have every line that is logged inside name these requests; a worker has one batch at a time."""
    global _at_hand
    _at_hand = tuple(request_id for request_id in request_ids if request_id)
    try:
        yield
    finally:
        _at_hand = ()


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
