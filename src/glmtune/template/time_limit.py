"""Limit how long Python code of others may run, such as a chat template with endless loops."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise an error in the Python code of this block, at the next line, after some seconds.

    Functions that are called in the block are traced, as by a debugger, which makes them slower.
    Unlike an alarm of the system this works in all threads and on Windows.

    Raises:
        TimeoutError: the time is over.
    """
    end = time.monotonic() + seconds

    def check(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"it does not end within {seconds:g} seconds")
        return check

    before = sys.gettrace()
    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(before)
