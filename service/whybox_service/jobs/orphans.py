"""Jobs of replicas that are gone for good: after a while the others take them over, without an operator.

A replica that comes back takes its jobs up itself, so nothing is done while its name is held, nor for a while
after it was. Should one live all the same, cut off from the database, nothing breaks when it is back: DBOS
takes no step from it of a job that is another's by now, and a step's file stays as the first one wrote it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

from whybox_service.jobs.absences import Absences
from whybox_service.jobs.runner import Runner
from whybox_service.jobs.store import name_of

log = logging.getLogger(__name__)

# Looks further apart say nothing of the time between them: this process stood still.
MEMORY_SECONDS = 120.0


class Orphans:
    """Looks for them, again and again.

    Args:
        runner: of this replica.
        own: its name.
        seconds: for which no process has had a replica's name before its jobs are taken over; None: never.
        living: says which names are held by processes that live.
        held: takes a name that nobody has for as long as the block lasts, and says whether that was possible.
    """

    def __init__(
        self,
        runner: Runner,
        own: str,
        seconds: float | None,
        living: Callable[[], set[str]],
        held: Callable[[str], AbstractContextManager[bool]],
    ) -> None:
        self._runner = runner
        self._own = own
        self._seconds = seconds
        self._living = living
        self._held = held
        self._absences = Absences(MEMORY_SECONDS)

    def adopt(self) -> None:
        """Put the jobs of those that have been gone for long enough into the queue, each once.

        Which of several replicas does so is settled by the name, which one of them takes meanwhile; the next
        one to have it finds no job any more.
        """
        if self._seconds is None or not self._runner.runs:
            return
        gone = {executor for _, executor in self._runner.pending()} - {self._own}
        for executor in sorted(gone & self._living()):
            gone.remove(executor)
            self._absences.end(executor)
        for executor in sorted(gone):
            if self._absences.of(executor) < self._seconds:
                continue
            with self._held(executor) as held:
                jobs = (
                    self._runner.requeue([job for job, _ in self._runner.pending(executor)]) if held else []
                )
            if jobs:
                told = ", ".join(map(name_of, jobs))
                log.warning("%s has been gone for %g s; its jobs go on: %s", executor, self._seconds, told)
