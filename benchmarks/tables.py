"""Tables of Markdown, as the docs have them, printed row by row as they are measured."""

from __future__ import annotations


def print_titles(*titles: str) -> None:
    """Begin a table."""
    print_row(*titles)
    print("|" + "---|" * len(titles), flush=True)


def print_row(*cells: object) -> None:
    """Print a row, at once."""
    print("|" + "".join(f" {cell} |" for cell in cells), flush=True)
