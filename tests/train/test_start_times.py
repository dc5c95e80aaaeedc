"""A run says what its start took."""

import time

from glmtune.train.start_times import StartTimes


def test_the_parts_of_a_start_add_up_and_short_ones_are_left_out() -> None:
    times = StartTimes(time.time() - 12.5)
    times.lap("program")
    times.lap("rows")

    assert times.describe() == "the first step begins after 12.5 s: program 12.5"


def test_a_start_begins_with_its_process() -> None:
    times = StartTimes()
    times.lap("program")

    assert "begins after -" not in times.describe()
