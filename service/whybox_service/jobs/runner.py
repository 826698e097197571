"""DBOS: each job is a workflow, each of its steps a durable step."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer, WorkflowStatus
from dbos import error as dbos_error

from whybox_service.jobs.steps import Steps

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from whybox_service.settings import Settings

log = logging.getLogger(__name__)

APPLICATION = "whybox"
QUEUE = "inversions"
WORKFLOW = "invert"
# Of the workflow, not of whybox: another one where jobs under way could not go on with changed steps.
VERSION = "1"
# The queue is looked at so often; also the time between the end of a job and the begin of the next one.
POLL_SECONDS = 0.25
# DBOS's states of what it has not done with.
UNENDED = ("PENDING", "ENQUEUED", "DELAYED")
# DBOS's lowest number goes first, ours is the highest.
_FIRST_PRIORITY, _HIGHEST = 1, 9
_MOST_PENDING = 100_000
# Starts and dead processes that a job outlives.
_MAX_RECOVERIES = 1000
# What DBOS warns of where a job was cancelled, deleted or handed over while one of its steps ran.
_EXPECTED = ("is no longer owned by this execution", "was cancelled during execution")
# Lines of the log that begin alike are the same one, of which one in a while is enough.
_ALIKE, _SILENCE_SECONDS, _MOST_TOLD = 60, 30.0, 1000
_told: dict[str, float] = {}


class Runner:
    """Runs the jobs of this replica.

    Args:
        settings: of the gateway.
        url: of the database.
        engine: for what is done in transactions of ours.
    """

    def __init__(self, settings: Settings, url: str, engine: Engine) -> None:
        self._settings = settings
        self._url = url
        self._engine = engine
        self._client: DBOSClient | None = None
        self._runs = False
        # How often: DBOS runs a job that is taken up again beside what is left of it here.
        self._active: Counter[str] = Counter()
        self._changed = threading.Condition()

    @property
    def runs(self) -> bool:
        """Whether this replica runs jobs."""
        return self._runs

    def start(self, steps: Steps) -> None:
        """Take up the jobs that this replica had, and those that are queued; also again, after `rest`."""
        _quiet()
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": self._url,
            "application_version": VERSION,
            "executor_id": self._settings.jobs_executor,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "WARNING",
            # Nothing here waits for messages of DBOS's, and poolers of connections do not pass them on.
            "use_listen_notify": False,
            "sys_db_pool_size": 5 + self._settings.jobs_running,
        }
        DBOS(config=config)

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=_MAX_RECOVERIES)
        def invert(job: str) -> None:
            with self._running(job):
                step, outcome = 0, {"state": "running"}
                while outcome["state"] == "running":
                    step += 1
                    outcome = DBOS.run_step({"name": "advance"}, steps.advance, job, step)
                DBOS.run_step({"name": "finish"}, steps.finish, job, step, outcome)

        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            worker_concurrency=self._settings.jobs_running,
            polling_interval_sec=POLL_SECONDS,
            on_conflict="always_update",
        )
        if self._client is None:
            self._client = client_for(self._engine)
        self._runs = True

    def wait(self, seconds: float) -> bool:
        """Wait until no job is in hand any more; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._active, seconds)

    def rest(self) -> None:
        """Run nothing any more; what is known of the jobs can still be looked at and changed."""
        self._runs = False
        DBOS.destroy(destroy_registry=True)

    def stop(self) -> None:
        """End DBOS in this process; what ran is taken up at the next start."""
        if self._client is not None:
            self._client.destroy()
            self._client = None
        self.rest()

    @property
    def client(self) -> DBOSClient:
        """What DBOS's tables are changed with."""
        assert self._client is not None, "not started"
        return self._client

    def enqueue(self, connection: Connection, job: str, priority: int) -> None:
        """Queue a job in the transaction of a connection."""
        self.client.enqueue_in_transaction(
            connection,
            {
                "workflow_name": WORKFLOW,
                "queue_name": QUEUE,
                "workflow_id": job,
                "app_version": VERSION,
                "priority": _FIRST_PRIORITY + _HIGHEST - priority,
            },
            job,
        )

    def cancel(self, job: str) -> None:
        """Let no further step of a job begin."""
        self.client.cancel_workflow(job)

    def forget(self, jobs: Sequence[str]) -> None:
        """Delete what DBOS knows of jobs that have ended."""
        self.client.delete_workflows(list(jobs))

    def strays(self) -> list[str]:
        """Return the jobs that this replica should be running and is not; none where it shall run nothing."""
        if not self._runs:
            return []
        found = self.pending(self._settings.jobs_executor)
        with self._changed:
            return [job for job, _ in found if job not in self._active]

    def pending(self, executor: str | None = None) -> list[tuple[str, str]]:
        """Return the jobs that run, of one replica or of all, each with its replica."""
        return pending(self.client, executor)

    def requeue(self, jobs: Sequence[str]) -> list[str]:
        """Put jobs back into the queue; they go on with the step after their last one.

        Returns:
            The jobs, but for those that are no more.
        """
        return requeue(self.client, jobs)

    def statuses(self, jobs: Sequence[str]) -> dict[str, str]:
        """Return DBOS's status of those jobs that it knows."""
        found = self._workflows(workflow_ids=list(jobs))
        return {each.workflow_id: each.status for each in found}

    def ended(self, limit: int) -> list[str]:
        """Return jobs that DBOS has done with and still knows, the oldest first."""
        found = self._workflows(status=["SUCCESS", "ERROR", "CANCELLED"], limit=limit)
        return [each.workflow_id for each in found]

    def unended(self, limit: int) -> list[str]:
        """Return jobs that DBOS has not done with."""
        found = self._workflows(status=list(UNENDED), limit=limit)
        return [each.workflow_id for each in found]

    def _workflows(self, **asked: Any) -> list[WorkflowStatus]:
        """Return workflows of ours: others may live in the same database."""
        return _workflows(self.client, **asked)

    def _running(self, job: str) -> _InHand:
        return _InHand(job, self._active, self._changed)


class _InHand:
    """A job while this process runs it."""

    def __init__(self, job: str, active: Counter[str], changed: threading.Condition) -> None:
        self._job, self._active, self._changed = job, active, changed

    def __enter__(self) -> None:
        with self._changed:
            self._active[self._job] += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._active[self._job] -= 1
            if not self._active[self._job]:
                del self._active[self._job]
            self._changed.notify_all()


def client_for(engine: Engine) -> DBOSClient:
    """Return what changes DBOS's tables from outside of a job."""
    _quiet()
    return DBOSClient(
        system_database_engine=engine,
        serializer=DBOSPortableJSONSerializer(),
        application_name=APPLICATION,
        # Who asks is told, instead of waiting for ever.
        retry_connection_errors=False,
        lazy=True,
    )


def pending(client: DBOSClient, executor: str | None = None) -> list[tuple[str, str]]:
    """Return the jobs that run, of one replica or of all, each with its replica."""
    found = _workflows(client, status="PENDING", executor_id=executor, limit=_MOST_PENDING)
    return [(each.workflow_id, each.executor_id or "") for each in found]


def requeue(client: DBOSClient, jobs: Sequence[str]) -> list[str]:
    """Put jobs back into the queue; they go on with the step after their last one.

    Returns:
        The jobs, but for those that are no more.
    """
    done = []
    for job in jobs:
        with contextlib.suppress(dbos_error.DBOSNonExistentWorkflowError):
            client.resume_workflow(job, queue_name=QUEUE)
            done.append(job)
    return done


def _workflows(client: DBOSClient, **asked: Any) -> list[WorkflowStatus]:
    """Return workflows of ours: others may live in the same database."""
    return client.list_workflows(name=WORKFLOW, load_input=False, load_output=False, **asked)


def _quiet() -> None:
    """Have what DBOS logs go our way, and leave out what it warns of in vain."""
    logger = logging.getLogger("dbos")
    if not logger.handlers:  # else it makes one of its own
        logger.addHandler(logging.NullHandler())
        logger.addFilter(_is_news)
    logger.setLevel(logging.WARNING)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of DBOS's is worth reading: expected ones are not, nor is one that was just there.

    A database that is gone makes many a second, each with the text of its error behind what was tried.
    """
    text = record.getMessage()
    if any(part in text for part in _EXPECTED):
        return False
    now, begin = time.monotonic(), text[:_ALIKE]
    if now - _told.get(begin, -math.inf) < _SILENCE_SECONDS:
        return False
    if len(_told) > _MOST_TOLD:
        _told.clear()
    _told[begin] = now
    return True
