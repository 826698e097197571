"""What the commands that measure a detector without a service have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from whybox_client.cli.failures import Failure


@contextmanager
def failures_told() -> Iterator[None]:
    """Tell in a line what is wrong with the recipe, the pictures or the question."""
    from whybox_proto.errors import ContractError

    try:
        yield
    except ContractError as error:
        raise Failure(
            f"{error.message}; expected {error.expected}" if error.expected else error.message
        ) from error
    except (OSError, ValueError) as error:
        raise Failure(str(error)) from error


def own_pictures(recipe: Path, images: Path | None) -> list[Path]:
    """Return the pictures of a folder; none where scenes are to be rendered, whose labels RECIPE must know.

    Raises:
        ValueError: if the recipe does not know them.
        click.UsageError: if there are no pictures in the folder.
    """
    from whybox.evaluation.command import recipes_of
    from whybox_client.folders import image_files

    if images is None:
        recipes_of(recipe.parent, [str(recipe)])
        return []
    pictures = list(image_files(str(images), recursive=False))
    if not pictures:
        raise click.UsageError(f"there are no images in {images}")
    return pictures
