"""Bytes, seconds and measured numbers are written for people."""

import pytest

from glmtune.units import duration, number, readable


def test_sizes_are_in_the_unit_that_fits() -> None:
    assert readable(512) == "0.5 KiB"
    assert readable(3 * 2**20) == "3.00 MiB"
    assert readable(6 * 2**30) == "6.00 GiB"


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.4, "42 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_a_duration_is_written_in_readable_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0001, "0.0001"), (1.23456, "1.235"), (12345.6, "12,346"), (0.0, "0"), (2.5e-05, "2.5e-05")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
