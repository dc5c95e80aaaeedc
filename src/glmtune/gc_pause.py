"""Python's search for reference cycles, put off where it finds nothing and takes long.

It walks every object there is, again and again while their number grows. Importing torch,
transformers and peft makes a million objects that stay, and searching them takes a fifth of the
time; so it does where rows are read.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_search() -> Iterator[None]:
    """Put the search off meanwhile. What is in no cycle is freed at once all the same."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def loading() -> Iterator[None]:
    """Import libraries meanwhile, without a search, and leave them out of all later ones."""
    known = len(sys.modules)
    with no_search():
        yield
    if len(sys.modules) > known:
        gc.freeze()
