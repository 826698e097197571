"""Showing what grows: one place in a notebook's output that is drawn anew, or lines in a terminal."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whybox_client.inversions import InversionEvent
    from whybox_client.results import Explanation


class Screen:
    """Where the results of one stream are shown, each in place of the one before."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, result: Explanation | InversionEvent) -> None:
        """Show a result: in a notebook its picture; elsewhere a line of text."""
        if not _in_a_notebook():
            print(result)
        elif self._handle is None:
            self._handle = import_module("IPython.display").display(result, display_id=True)
        else:
            self._handle.update(result)


def _in_a_notebook() -> bool:
    """Whether IPython runs this code and its front end shows pictures."""
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
