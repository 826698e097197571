"""A dead replica's jobs to the others: what `whybox jobs` does, with the database alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from dbos import DBOSClient
from sqlalchemy.exc import SQLAlchemyError

from whybox_proto.errors import shorten
from whybox_service.jobs.database import JobsError, engine_for, url_of
from whybox_service.jobs.runner import client_for, pending, requeue
from whybox_service.settings import Settings


def executors(settings: Settings) -> dict[str, int]:
    """Return how many running jobs each replica has, by its executor id.

    Raises:
        JobsError: where there is no database, or it cannot be used.
    """
    with _client(settings) as client:
        return dict(sorted(Counter(executor for _, executor in pending(client)).items()))


def adopt(settings: Settings, executor: str) -> list[str]:
    """Put the jobs of a replica that will not come back into the queue, where the others find them.

    They go on with the step after their last one. Should the replica live after all, the step that it is at
    is lost, and nothing else.

    Returns:
        The ids of the jobs; one that is deleted meanwhile is left out.

    Raises:
        JobsError: as `executors`.
    """
    with _client(settings) as client:
        return requeue(client, [job for job, _ in pending(client, executor)])


@contextmanager
def _client(settings: Settings) -> Iterator[DBOSClient]:
    engine = engine_for(url_of(settings))
    try:
        client = client_for(engine)
        try:
            yield client
        finally:
            client.destroy()
    except SQLAlchemyError as error:
        raise JobsError(f"the database of jobs cannot be used: {shorten(error, 300)}") from error
    finally:
        engine.dispose()
