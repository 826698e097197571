"""What a process runs, as it knows it itself."""

from __future__ import annotations

import threading
from collections import Counter

from whybox_service.jobs.runner import _InHand


def test_a_job_that_is_taken_up_beside_what_is_left_of_it_stays_in_hand() -> None:
    active: Counter[str] = Counter()
    changed = threading.Condition()
    with _InHand("job", active, changed):
        with _InHand("job", active, changed):
            assert "job" in active
        assert "job" in active
    assert not active
