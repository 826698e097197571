"""A job, followed to its end with a bar that says how far it is."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from whybox_client import errors
from whybox_client.cli.failures import Breakdown, Failure

if TYPE_CHECKING:
    from whybox_client import InversionJob, InversionResult


def finished(job: InversionJob, *, cancel: bool) -> InversionResult:
    """Wait for a job's end, with a bar where somebody looks, and return its result.

    Args:
        job: the job.
        cancel: whether Ctrl-C cancels it.

    Raises:
        Breakdown: if the service is gone; the job goes on when it comes back.
        Failure: if the job's picture is gone.
        WhyboxError: what became of the job instead.
    """
    try:
        from tqdm import tqdm  # within: from the start Ctrl-C is to be heard

        from whybox_client.jobs import advance

        with tqdm(unit="iteration", disable=None) as bar, closing(job.watch()) as events:
            for event in events:
                advance(bar, event)
        result = job.wait()
    except KeyboardInterrupt:
        if cancel:
            click.echo(_cancelled(job), err=True)
        raise
    except errors.ServiceError as error:
        raise Breakdown(
            f"{error}; the job goes on with the service: whybox inversions wait {job.id}"
        ) from error
    if result.source is None:
        raise Failure(f"{job.name} has succeeded, but its picture is not there")
    return result


def _cancelled(job: InversionJob) -> str:
    """Cancel a job, and say so."""
    try:
        job.cancel()
    except errors.InversionEndedError:
        return f"{job.name} has ended already"
    except errors.WhyboxError as error:
        return f"{job.name} goes on, since it could not be cancelled: {error.message}"
    return f"{job.name} is cancelled; its last picture: whybox inversions show {job.id} --out picture.png"
