"""Whether weights are those that a recipe is for."""

from __future__ import annotations

import hashlib
from pathlib import Path

from whybox.recipe import Recipe, RecipeError


def digest(path: Path, kind: str = "sha256") -> str:
    """Compute a file's digest, in hexadecimal.

    Args:
        path: the file.
        kind: ``sha256`` or ``md5``.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        made = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
        return made.hexdigest()


def check_weights(recipe: Recipe, weights: Path) -> None:
    """Compare weights with a recipe's checksum; nothing of them is read in any other way.

    Args:
        recipe: whose `checksum` counts; where it has none, all weights pass.
        weights: file or folder.

    Raises:
        RecipeError: if they are others, telling what was expected and what came.
    """
    for path, checksum in _expected(recipe, weights).items():
        kind, _, wanted = checksum.partition(":")
        if not path.is_file():
            raise RecipeError(_refusal(recipe, f"expected the file {path}, which is not there"))
        try:
            got = digest(path, kind)
        except OSError as error:
            raise RecipeError(f"{recipe.name}: checksum: {path} cannot be read: {error}") from error
        if not got.startswith(wanted):
            more = " at its beginning" if len(wanted) < len(got) else ""
            raise RecipeError(
                _refusal(recipe, f"expected {path} to have the {kind} {wanted}{more}; got {got}")
            )


def _expected(recipe: Recipe, weights: Path) -> dict[Path, str]:
    """What is to be looked at, and the checksum of each."""
    checksum = recipe.checksum
    if isinstance(checksum, str):
        if checksum and not weights.is_file():
            raise RecipeError(
                _refusal(recipe, f"expected a file, of {checksum}; got {weights}, which is none")
            )
        return {weights: checksum} if checksum else {}
    if weights.is_dir():
        return {weights / name: text for name, text in checksum.items()}
    if checksum and weights.name not in checksum:
        raise RecipeError(_refusal(recipe, f"expected {' or '.join(checksum)}; got {weights.name}"))
    return {weights.parent / name: text for name, text in checksum.items()}


def _refusal(recipe: Recipe, what: str) -> str:
    where = f"Download it again from {recipe.source}; or, " if recipe.source else ""
    own = "if these are meant to be other weights than the recipe's, build with --no-checksum"
    return f"{recipe.name}: checksum: {what}. {where}{own if where else own.capitalize()}."
