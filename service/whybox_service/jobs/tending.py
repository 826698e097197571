"""What is done beside the jobs: ended ones are forgotten in time, and what a crash left is put in order."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence

from whybox_proto.states import ACTIVE
from whybox_proto.v1 import explainer_pb2
from whybox_service.jobs.artifacts import Artifacts
from whybox_service.jobs.runner import UNENDED, Runner
from whybox_service.jobs.store import Store, microseconds, name_of
from whybox_service.metrics import Metrics
from whybox_service.settings import Settings

log = logging.getLogger(__name__)

# At one time, of anything.
BATCH = 500
# DBOS's notes on a job's steps go so long after its end: till then they may help to see what happened.
FORGET_STEPS_SECONDS = 3600.0
# Files without a row may belong to a job that is just being made.
ORPHAN_SECONDS = 3600.0
# A step that was under way when its job was cancelled may write so long after the end.
LATE_SECONDS = 3600.0
_DAY_US = 86_400 * 1_000_000
_STAMP_DIGITS = 12
_ID = re.compile(r"[0-9a-f]{32}")


class Tending:
    """Puts things in order; any number of replicas may do so at one time, each step does no harm twice."""

    def __init__(
        self, store: Store, artifacts: Artifacts, runner: Runner, metrics: Metrics, settings: Settings
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._runner = runner
        self._metrics = metrics
        self._days = settings.jobs_keep_days
        self._keep = settings.jobs_keep_count
        self._suspects: set[str] = set()
        self._tidied = 0

    def mend(self) -> None:
        """See that DBOS and the table of jobs agree on what has ended, and that what runs is being run."""
        for jobs in _batches(self._runner.unended(2 * BATCH)):
            states = self._store.states(jobs)
            for job in jobs:
                if states.get(job) not in ACTIVE:
                    self._runner.cancel(job)
        for jobs in _batches(self._store.active()):
            known = self._runner.statuses(jobs)
            for job in jobs:
                if (status := known.get(job, "no such job")) not in UNENDED:
                    self._fail(job, status)
        strays = set(self._runner.strays())
        if again := sorted(strays & self._suspects):
            log.warning("taking up again: %s", ", ".join(map(name_of, again)))
            self._runner.requeue(again)
        self._suspects = strays

    def forget(self) -> None:
        """Delete what is too old, what is too much, and what belongs to nobody."""
        now = microseconds()
        before = now - round(self._days * _DAY_US) if self._days else None
        while expired := self._store.expired(before, self._keep, BATCH):
            self._store.delete(expired)
            for job in expired:
                self._artifacts.remove(job)
            self._runner.forget(expired)
            log.info("%d inversions were forgotten, as they have been kept long enough", len(expired))
        known = self._runner.ended(BATCH)
        done = self._store.ended_before(now - round(FORGET_STEPS_SECONDS * 1e6), known) if known else []
        if done:
            self._runner.forget(done)
        self._tidy(now)

    def _tidy(self, now: int) -> None:
        """Delete files of jobs that are no more, and more than the picture of those that have ended.

        Of all jobs that have ended, the files are looked through once, at the first time; after that of those
        which have ended since: thousands are kept, and behind a URL each look costs.
        """
        there = self._artifacts.jobs()
        for jobs in _batches(there):
            states = self._store.states(jobs)
            for job in jobs:
                if job not in states and _age(job) > ORPHAN_SECONDS:
                    self._artifacts.remove(job)
        ended = self._store.ended_since(self._tidied)
        for job in there:
            if job in ended and self._artifacts.unsettled(job):
                self._artifacts.settle(job, ended[job])
        self._tidied = now - round(LATE_SECONDS * 1e6)

    def _fail(self, job: str, status: str) -> None:
        error = explainer_pb2.Error(type="internal", message=f"the job's workflow has ended: {status}")
        record = self._store.get(job)
        if record is not None and self._store.end(job, "failed", error=error):
            log.error("%s has failed: its workflow is %s", name_of(job), status)
            self._metrics.inversion_ended(record.model, "failed")
            self._artifacts.settle(job, record.step)


def _batches(jobs: Sequence[str]) -> Iterator[Sequence[str]]:
    return (jobs[start : start + BATCH] for start in range(0, len(jobs), BATCH))


def _age(job: str) -> float:
    """Return the seconds since a job's id was made; 0 for what is no id of ours."""
    if not _ID.fullmatch(job):
        return 0.0
    return time.time() - int(job[:_STAMP_DIGITS], 16) / 1e3
