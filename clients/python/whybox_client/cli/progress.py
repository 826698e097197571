"""Many images, each told of as it is answered: a bad one is reported and the others go on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from whybox_client import errors
from whybox_client.cli.failures import Breakdown, Failure
from whybox_client.folders import image_files

if TYPE_CHECKING:
    from whybox_client import Explanation
    from whybox_client.batches import ImageError

T = TypeVar("T")

# What will not be different with the next image. An error that blames the image is of that image alone.
_OF_EVERY_IMAGE = (
    errors.ConnectionFailedError,
    errors.InvalidAnswerError,
    errors.InvalidArgumentError,
    errors.InvalidRequestError,
    errors.NotFoundError,
    errors.NotServedError,
    errors.UnauthenticatedError,
    errors.UnknownNameError,
)


def files_of(named: Sequence[str], recursive: bool, *, leave_out: Path | None = None) -> list[str]:
    """Put the images of a folder in its place, but for those in the folder `leave_out`."""
    files: list[str] = []
    for name in named:
        if not os.path.isdir(name):
            files.append(name)
            continue
        below = [
            file
            for file in image_files(name, recursive=recursive)
            if leave_out is None or not file.resolve().is_relative_to(leave_out.resolve())
        ]
        if not below:
            raise click.UsageError(
                f"there are no images in {name}" + ("" if recursive else "; see --recursive")
            )
        files += map(str, below)
    return files


def for_each(
    files: Sequence[str],
    answers: Generator[T | ImageError, None, None],
    tell: Callable[[str, T], str],
    *,
    continue_on_error: bool,
) -> None:
    """Print what is to be told of each answer, with a progress bar where somebody looks.

    Args:
        files: the images.
        answers: to each of them, or what went wrong.
        tell: does with an answer what the command is for, and says so in a line or more.
        continue_on_error: whether the others go on when one of many fails.

    Raises:
        Failure: if the only image failed, or the first that did where none go on; at the end, if one of many
            did.
        WhyboxError: at once, if every image would fail alike.
    """
    from tqdm import tqdm

    failed: list[Exception] = []
    with (
        closing(answers),
        tqdm(total=len(files), unit="image", disable=None if len(files) > 1 else True) as bar,
    ):
        for file, answer in zip(files, answers, strict=True):
            try:
                if isinstance(answer, Exception):
                    raise answer
                bar.write(tell(file, answer), file=sys.stdout)
            except (OSError, ValueError, errors.WhyboxError) as error:
                if isinstance(error, _OF_EVERY_IMAGE) and error.field != "image":
                    raise
                if len(files) == 1 or not continue_on_error:
                    raise _failure([error])(f"{file}: {_reason(error)}") from error
                failed.append(error)
                bar.write(f"{file}: {_reason(error)}", file=sys.stderr)
                bar.set_postfix(failed=len(failed))
            bar.update()
    if failed:
        raise _failure(failed)(f"{len(failed)} of {len(files)} images failed")


def grown(
    stream: Generator[Explanation, None, None], samples: int | None
) -> Generator[Explanation | ImageError, None, None]:
    """Yield the last result of a stream, or what went wrong; where somebody looks, a bar says how far it is.

    Args:
        stream: of explanations that grow.
        samples: how many are asked for; None: as many as the time allows.
    """
    from tqdm import tqdm

    result: Explanation | ImageError | None = None
    with closing(stream), tqdm(total=samples, unit="sample", disable=None) as bar:
        try:
            for explanation in stream:
                result = explanation
                bar.n = explanation.samples or 0
                error = explanation.standard_error
                bar.set_postfix_str("" if error is None else f"standard error {error:.2g}")
        except (OSError, ValueError, errors.WhyboxError) as failure:
            result = failure
    if result is not None:
        yield result


def _failure(failed: Sequence[Exception]) -> type[Failure]:
    """A breakdown where nothing but the service was at fault."""
    return Breakdown if all(isinstance(error, errors.ServiceError) for error in failed) else Failure


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
