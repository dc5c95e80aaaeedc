"""Process-level memory: large pages, a small oneDNN kernel cache, freed heap pages for the OS.

Packs differ in length, so what one has freed seldom fits the next, and a small tensor that outlives
them keeps the C library from shrinking its heap:

    pack 1    [aaaa][bbbb]g                     g: a gradient, which stays
    pack 2     ..........g[aaaaa][bbbbb]        too long for what is free before it

Without these settings the memory of a run grows every few packs; docs/performance_rules.md has the
measurements.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable

SLOW_SECONDS = 1.0  # a micro-batch that takes longer hides the cost of releasing pages
DEFAULTS = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",  # more than one micro-batch needs
}


def set_defaults() -> None:
    """Set the memory options of PyTorch and oneDNN, where the user has not.

    Both read them once, so this comes before the first tensor. Tensors of 2 MiB or more then use
    transparent huge pages of Linux, of which a product touches fewer. oneDNN compiles a kernel for
    each product and number of rows, and would keep 1,024 of them, half a megabyte each.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def release_freed_pages() -> None:
    """Return freed heap pages to the system, where the C library can (glibc)."""
    if trim := _malloc_trim():
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
