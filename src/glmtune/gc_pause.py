"""Pause Python's cyclic garbage collector while importing libraries and reading rows.

The collector walks all objects, again and again while their number grows. Importing torch,
transformers and peft creates a million objects that stay alive, and walking them takes a fifth of
the import time. Reading rows creates many objects too, none of them in a cycle.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Pause the collector. Reference counting still frees every object that is in no cycle."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def loading() -> Iterator[None]:
    """Pause the collector while libraries are imported, and exclude their objects from later runs.

    If nothing new was imported, nothing is excluded.
    """
    num_known = len(sys.modules)
    with paused():
        yield
    if len(sys.modules) > num_known:
        gc.freeze()
