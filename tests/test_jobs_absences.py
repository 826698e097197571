"""Since when a model has not been there: one wait for all jobs that want it."""

from __future__ import annotations

from whybox_service.jobs.absences import Absences


def test_all_jobs_share_one_wait() -> None:
    now = 1000.0
    absences = Absences(120, lambda: now)
    assert absences.of("signs", "1.0") == 0
    now = 1100.0
    assert absences.of("signs", "1.0") == 100
    assert absences.of("signs", "2.0") == 0
    now = 1190.0
    assert absences.of("signs", "1.0") == 190


def test_what_has_been_there_since_is_waited_for_anew() -> None:
    now = 0.0
    absences = Absences(120, lambda: now)
    absences.of("signs", "1.0")
    absences.end("signs", "1.0")
    now = 60.0
    assert absences.of("signs", "1.0") == 0


def test_an_absence_that_nobody_met_for_long_is_forgotten() -> None:
    now = 0.0
    absences = Absences(120, lambda: now)
    absences.of("signs", "1.0")
    now = 121.0
    assert absences.of("signs", "1.0") == 0
