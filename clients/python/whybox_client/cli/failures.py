"""From exceptions to one line and an exit code."""

from __future__ import annotations

import click


class Failure(click.ClickException):
    """The request, an image or a recipe was refused: one line, exit code 1."""


class Breakdown(Failure):
    """The service could not be reached or broke down: one line, exit code 3."""

    exit_code = 3


def failure_of(error: Exception) -> Failure | None:
    """Say what an exception means at the command line; None where it is a bug, or click's own."""
    from whybox_client import errors

    if isinstance(error, errors.ConnectionFailedError):
        return Breakdown(f"{error.message}; is `whybox serve` running there? (--url, or WHYBOX_URL)")
    if isinstance(error, errors.ServiceError):
        return Breakdown(str(error))
    if isinstance(error, errors.WhyboxError):
        return Failure(str(error))
    return None


def needs_extra(extra: str, why: str) -> Failure:
    """Say which extra a command needs."""
    return Failure(f"this needs more than the client ({why}): pip install 'whybox[{extra}]'")
