"""Plain text in columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whybox_client import SuppressedDetection


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Set rows under their heads, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[c], int | float) for row in rows) for c in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (head, *cells)
    )


def suppressed_table(suppressed: Sequence[SuppressedDetection]) -> str:
    """Set what was suppressed, and why, under its heads."""
    if not suppressed:
        return "nothing was suppressed"
    rows = [
        (
            one.label,
            round(one.score, 3),
            "-" if one.by is None else f"{one.by.index} ({one.by})",
            round(one.iou, 2),
            "-" if one.correlation is None else f"{one.correlation:.2f}",
            one.rule,
        )
        for one in suppressed
    ]
    return table(("SUPPRESSED", "SCORE", "BY", "IOU", "CORRELATION", "RULE"), rows)
