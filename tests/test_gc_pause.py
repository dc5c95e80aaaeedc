"""The cyclic garbage collector is paused, and resumes in every case."""

import gc
import subprocess
import sys

import pytest

from glmtune.gc_pause import loading, paused


def test_the_collector_runs_again_afterwards_and_after_a_failure_too() -> None:
    with pytest.raises(ZeroDivisionError), paused():
        1 / gc.isenabled()  # off is 0

    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_imported_is_excluded_from_later_collections_once() -> None:
    """In another process, since everything is imported here already."""
    script = """
import gc
from glmtune.gc_pause import loading
counts = [gc.get_freeze_count()]
for _ in "12":
    with loading():
        import http.server
    counts.append(gc.get_freeze_count())
    kept = [[] for _ in range(1000)]
print(*counts, gc.isenabled())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    before, once, twice, is_enabled = done.stdout.split()

    assert int(before) == 0
    assert int(once) > 1000
    assert int(twice) <= int(once)  # the second time nothing is new
    assert is_enabled == "True"


def test_nothing_is_excluded_where_nothing_was_imported() -> None:
    before = gc.get_freeze_count()

    with loading():
        import json  # noqa: F401

    assert gc.get_freeze_count() == before
