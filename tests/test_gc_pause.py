import gc
import subprocess
import sys

import pytest

from glmtune.gc_pause import loading, no_search


def test_the_search_goes_on_afterwards_and_after_a_failure_too() -> None:
    with pytest.raises(ZeroDivisionError), no_search():
        1 / gc.isenabled()  # off is 0

    assert gc.isenabled()


def test_a_search_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with no_search():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_imported_is_left_out_of_later_searches_once() -> None:
    """In a process of its own, for here everything has been imported."""
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


def test_nothing_is_left_out_where_nothing_was_imported() -> None:
    before = gc.get_freeze_count()

    with loading():
        import json  # noqa: F401

    assert gc.get_freeze_count() == before
