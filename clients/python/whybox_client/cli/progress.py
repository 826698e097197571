"""One image after another: a bad one is reported and the others go on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from whybox_client import errors
from whybox_client.cli.failures import Breakdown, Failure

# What will not be different with the next image. An error that blames the image is of that image alone.
_OF_EVERY_IMAGE = (
    errors.ConnectionFailedError,
    errors.InvalidAnswerError,
    errors.InvalidArgumentError,
    errors.InvalidRequestError,
    errors.NotFoundError,
    errors.NotServedError,
    errors.UnknownNameError,
)


def for_each(images: Sequence[str], work: Callable[[str], str]) -> None:
    """Do the work for each image and print what it returns, with a progress bar where somebody looks.

    Raises:
        Failure: if the only image failed; at the end, if one of many did.
        WhyboxError: at once, if every image would fail alike.
    """
    from tqdm import tqdm

    failed = 0
    bar = tqdm(images, unit="image", disable=None if len(images) > 1 else True)
    for image in bar:
        try:
            bar.write(work(image), file=sys.stdout)
        except (OSError, ValueError, errors.WhyboxError) as error:
            if isinstance(error, _OF_EVERY_IMAGE) and error.field != "image":
                raise
            if len(images) == 1:
                raise _failure(error)(f"{image}: {_reason(error)}") from error
            failed += 1
            bar.write(f"{image}: {_reason(error)}", file=sys.stderr)
    if failed:
        raise Failure(f"{failed} of {len(images)} images failed")


def _failure(error: Exception) -> type[Failure]:
    return Breakdown if isinstance(error, errors.ServiceError) else Failure


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
