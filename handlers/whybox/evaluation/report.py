"""Tables in Markdown, and their place in a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from whybox.evaluation.order import Finding
from whybox.evaluation.randomise import Sanity
from whybox.evaluation.table import Results
from whybox.methods.base import SIDES
from whybox.metrics.measures import MEASURES

_ARROWS = {"higher": "↑", "lower": "↓"}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def table(results: Results) -> str:
    """Write one detector's table: a row for each measure, a column for each variant, the best in bold."""
    variants = list(results.values)
    rows = []
    for measure in results.measures():
        estimates = {variant: results.estimate(variant, measure) for variant in variants}
        better = MEASURES[measure].better if measure in MEASURES else ""
        sign = -1 if better == "lower" else 1
        known = [e.mean for e in estimates.values() if e.count]
        best = max(known, key=lambda mean: sign * mean) if better and len(known) > 1 else None
        cells = [
            f"**{e}**" if best is not None and e.count and e.mean == best else str(e)
            for e in estimates.values()
        ]
        rows.append([f"{measure} {_ARROWS.get(better, '')}".strip(), *cells])
    forward = float(np.median(results.forward_seconds)) if results.forward_seconds else 0.0
    cost = {variant: float(np.median(seconds)) for variant, seconds in results.seconds.items()}
    rows.append(["samples", *(str(results.samples.get(v) or "–") for v in variants)])
    rows.append(["ms a map", *(f"{1000 * cost[v]:.1f}" if v in cost else "–" for v in variants)])
    rows.append(
        [
            "over a forward pass",
            *(f"{cost[v] / forward:.2f}" if v in cost and forward else "–" for v in variants),
        ]
    )
    text = markdown(["measure", *variants], rows)
    if results.unmarked:
        left = results.unmarked_estimate()
        text += f"\nScore with the mark removed, over the score with it: {left}.\n"
    return text


def sides(results: Results) -> str:
    """Write how often most of a side's map, in the box, lies in its own half; empty where none was taken."""
    rows = []
    for side in SIDES:
        cells = []
        for taken in results.values.values():
            shares = [share for key, share in taken.get("own_half", {}).items() if key[2] == side]
            cells.append(f"{np.mean(np.array(shares) > 0.5):.0%}" if shares else "–")
        rows.append([side, *cells])
    known = any("own_half" in taken for taken in results.values.values())
    return markdown(["most of it in its own half", *results.values], rows) if known else ""


def order(found: Sequence[tuple[str, Finding]]) -> str:
    """Write what became of the papers' order.

    Args:
        found: pairs of a detector's name and a finding.
    """
    rows = [[detector, f.claim, f.figure, f.verdict] for detector, f in found]
    return markdown(["detector", "claim", "found", "holds"], rows)


def sanity_table(sanity: Sanity) -> str:
    """Write one detector's rank correlations (and structural similarities) as its weights become random."""
    variants = sanity.variants()
    rows = []
    for count, group in enumerate(["nothing, but of another object", *sanity.groups]):
        cells = [_alike(sanity, variant, count) for variant in variants]
        rows.append([f"{'+ ' if count > 1 else ''}{group}", *cells])
    return markdown(["randomised, from the top", *variants], rows)


def _alike(sanity: Sanity, variant: str, count: int) -> str:
    ranks, structures = sanity.rank(variant, count), sanity.structure(variant, count)
    return f"{ranks.mean:.2f} ({structures.mean:.2f})" if ranks.count else "–"


def write(page: Path, name: str, text: str) -> None:
    """Put a text between a page's markers, in the place of what was there.

    Args:
        page: with ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` on lines of their own; where it has
            none, they are added at its end.
        name: of the markers.
        text: Markdown.

    Raises:
        ValueError: if one marker is there and the other is not, or they are there twice.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    block = f"{begin}\n\n{text.strip()}\n\n{end}\n"
    counts = old.count(begin), old.count(end)
    if counts == (0, 0):
        new = f"{old.rstrip()}\n\n{block}" if old.strip() else block
    elif counts == (1, 1) and old.index(begin) < old.index(end):
        before, _, rest = old.partition(begin)
        after = rest.partition(end)[2].lstrip("\n")
        new = before + block + (f"\n{after}" if after else "")
    else:
        raise ValueError(f"{page}: expected {begin} and {end} once each, in this order")
    page.write_text(new, encoding="utf-8")
