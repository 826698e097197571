"""A study's page: Markdown, and pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image


class Page:
    """One page of `docs/studies`.

    Args:
        folder: where it is written; pictures go into its folder `images`.
        name: of the file, without suffix.
        title: its heading.
        command: that makes it again.
    """

    def __init__(self, folder: Path, name: str, title: str, command: str) -> None:
        self._folder, self._name = folder, name
        self._parts = [f"# {title}", f"Made by `{command}`."]
        self._pictures = 0

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(text)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table."""
        lines = [head, ["---"] * len(head), *rows]
        self._parts.append("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))

    def picture(self, image: Image.Image, caption: str) -> None:
        """Add a picture, with what it shows."""
        self._pictures += 1
        path = self._folder / "images" / f"{self._name}-{self._pictures}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        self._parts.append(f"![{caption}](images/{path.name})\n\n*{caption}*")

    def write(self) -> Path:
        """Write the page; returns where."""
        path = self._folder / f"{self._name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(self._parts) + "\n", encoding="utf-8")
        return path
