"""Settings of the process: large pages, a small oneDNN kernel cache, freed heap pages, waits.

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


SPINS = {"GOMP_SPINCOUNT": "10000"}  # 10 to 30 microseconds; the default is milliseconds


def set_defaults() -> None:
    """Set options of PyTorch, oneDNN and OpenMP, where the user has not.

    Both read them once, so this comes before the first tensor. Tensors of 2 MiB or more then use
    transparent huge pages of Linux, of which a product touches fewer. oneDNN compiles a kernel for
    each product and number of rows, and would keep 1,024 of them, half a megabyte each.

    Threads of GNU OpenMP that are done wait in a loop, and take the core that the other ones need
    where other processes have the rest: on two cores that 12 processes wanted, a pack of the nano
    model took 6 s instead of 0.5. So they sleep sooner. The number of threads stays, and with it
    every bit of the result.
    """
    defaults = DEFAULTS if "OMP_WAIT_POLICY" in os.environ else DEFAULTS | SPINS
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def release_freed_pages() -> None:
    """Return freed heap pages to the system, where the C library can (glibc)."""
    if trim := _malloc_trim():
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
