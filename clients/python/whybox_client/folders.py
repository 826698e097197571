"""The images in a folder."""

from __future__ import annotations

import os
from pathlib import Path

#: Endings of the formats that the service decodes, in lower case.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def image_files(folder: str | os.PathLike[str], *, recursive: bool = False) -> list[Path]:
    """List the images in a folder, sorted by path; what is hidden is left out.

    Args:
        folder: where to look.
        recursive: whether the folders below count too; links to folders are not followed.

    Raises:
        OSError: if the folder, or one below it, cannot be read.
    """
    found = []
    for root, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        found += [
            Path(root, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error
