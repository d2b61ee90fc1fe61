"""Marks grow, are multiples of a block, and depend on nothing but the schedule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.schedule import Schedule

SCHEDULES = st.builds(Schedule, st.integers(1, 300), st.floats(1, 3), st.integers(1, 64), st.integers(1, 64))


def test_marks_grow() -> None:
    schedule, marks = Schedule(), [0]

    while marks[-1] < 600:
        marks.append(schedule.next_mark(marks[-1]))

    assert marks == [0, 32, 64, 96, 128, 160, 224, 288, 384, 480, 608]


@given(SCHEDULES, st.integers(0, 5000))
def test_next_mark_is_the_first_one_behind(schedule: Schedule, tokens: int) -> None:
    mark = schedule.next_mark(tokens)

    assert mark > tokens
    assert mark % schedule.block_tokens == 0
    assert schedule.next_mark(mark - 1) == mark
    assert schedule.next_mark(mark) > mark


@given(SCHEDULES)
def test_json_round_trip(schedule: Schedule) -> None:
    assert Schedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize("text", ["every 128", '{"growth": 0.5}', '{"every": 3}'])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(CalibrationError, match="the schedule"):
        Schedule.from_json(text)
