"""When a model's workers count as hung."""

from __future__ import annotations

import pytest

from whybox_service.pulse import Pulse


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_answer_in_time_is_no_silence(clock: Clock) -> None:
    pulse = Pulse(clock)
    token = pulse.sent(110)
    assert pulse.busy
    clock.now = 109
    assert not pulse.silent_for()
    pulse.ended(token, heard=True)
    clock.now = 500
    assert not pulse.silent_for()
    assert not pulse.busy


def test_an_answer_that_is_overdue_is_silence_until_a_worker_is_heard(clock: Clock) -> None:
    pulse = Pulse(clock)
    overdue = pulse.sent(110)
    clock.now = 112
    assert pulse.silent_for() == 12
    pulse.ended(overdue, heard=False)  # given up: that heals nothing
    assert pulse.silent_for() == 12
    probe = pulse.sent(115)
    pulse.ended(probe, heard=True)
    assert not pulse.silent_for()


def test_a_worker_that_is_heard_after_another_hung_is_no_silence(clock: Clock) -> None:
    pulse = Pulse(clock)
    pulse.sent(110)
    other = pulse.sent(130)
    clock.now = 120
    pulse.ended(other, heard=True)
    assert not pulse.silent_for()


def test_a_new_request_does_not_hide_that_all_others_are_overdue(clock: Clock) -> None:
    pulse = Pulse(clock)
    given_up = []
    pulse.sent(110, lambda: given_up.append("lost"))
    clock.now = 120
    later = pulse.sent(125)
    pulse.ended(later, heard=True)
    assert given_up == ["lost"]


def test_a_short_deadline_behind_a_long_one_is_no_silence(clock: Clock) -> None:
    """A worker may be busy with what has more time; it hangs when that is overdue too."""
    pulse = Pulse(clock)
    pulse.sent(220)
    pulse.sent(111)
    clock.now = 150
    assert not pulse.silent_for()
    assert pulse.busy
    clock.now = 221
    assert pulse.silent_for() == 121
    assert not pulse.busy, "nothing that is out will tell"


def test_lost_answers_are_given_up_when_a_worker_is_heard_again(clock: Clock) -> None:
    pulse = Pulse(clock)
    given_up: list[str] = []
    pulse.sent(110, lambda: given_up.append("lost"))
    clock.now = 120
    assert pulse.silent_for()
    pulse.sent(160, lambda: given_up.append("on its way"))
    pulse.ended(pulse.sent(125), heard=True)
    assert given_up == ["lost"]


def test_an_answer_that_is_merely_late_is_waited_for(clock: Clock) -> None:
    pulse = Pulse(clock)
    given_up: list[str] = []
    pulse.sent(110, lambda: given_up.append("late"))
    other = pulse.sent(200)
    clock.now = 150
    pulse.ended(other, heard=True)
    assert not given_up


def test_other_workers_end_the_silence(clock: Clock) -> None:
    pulse = Pulse(clock)
    pulse.sent(110)
    clock.now = 120
    assert pulse.silent_for()
    pulse.renew()
    assert not pulse.silent_for()


def test_silence_is_noticed_even_when_nobody_looks_before_the_call_is_given_up(clock: Clock) -> None:
    pulse = Pulse(clock)
    overdue = pulse.sent(110)
    clock.now = 400
    pulse.ended(overdue, heard=False)
    assert pulse.silent_for() == 300


def test_a_call_that_fails_in_time_is_no_silence(clock: Clock) -> None:
    pulse = Pulse(clock)
    lost = pulse.sent(110)
    clock.now = 105
    pulse.ended(lost, heard=False)
    clock.now = 200
    assert not pulse.silent_for()
