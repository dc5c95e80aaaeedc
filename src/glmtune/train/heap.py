"""Memory that tensors freed, given back to the system.

Packs differ in length, so what one has freed seldom fits the next, and a small tensor that lives on
keeps the C library from shrinking its heap:

    pack 1    [aaaa][bbbb]g                     g: a gradient, which stays
    pack 2     ..........g[aaaaa][bbbbb]        too long for what is free before it

Without this a run holds more after every few packs; docs/performance.md has what was measured.
"""

import ctypes
import functools
import sys
from collections.abc import Callable

SLOW = 1.0  # seconds of a micro-batch from which on asking costs nothing to speak of


def give_back() -> None:
    """Let the C library return the pages that nothing is on, where it knows how to (glibc)."""
    if trim := _trim():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
