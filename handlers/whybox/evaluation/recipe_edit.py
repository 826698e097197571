"""Change fields of a recipe file, and leave the rest of it as its author wrote it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from whybox.recipe import read_recipe


def edit_recipe(path: Path, changes: Mapping[str, Any]) -> None:
    """Write fields into a recipe file; comments and order of all others stay.

    Args:
        path: of the YAML file.
        changes: field → new value; a mapping is merged into the mapping that is there.

    Raises:
        RecipeError: if the file is not a recipe before, or would not be one after; it is left as it was.
    """
    read_recipe(path)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000
    before = path.read_text(encoding="utf-8")
    tree = yaml.load(before)
    _merge(tree, changes)
    written = io.StringIO()
    yaml.dump(tree, written)
    path.write_text(written.getvalue(), encoding="utf-8")
    try:
        read_recipe(path)
    except ValueError:
        path.write_text(before, encoding="utf-8")
        raise


def _merge(tree: Any, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(name), Mapping):
            _merge(tree[name], value)
        else:
            tree[name] = value
