"""The memory of tensors: in large pages, given back to the system, and not filled by kernels.

Packs differ in length, so what one has freed seldom fits the next, and a small tensor that lives on
keeps the C library from shrinking its heap:

    pack 1    [aaaa][bbbb]g                     g: a gradient, which stays
    pack 2     ..........g[aaaaa][bbbbb]        too long for what is free before it

Without this a run holds more after every few packs; docs/performance.md has what was measured.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable

SLOW = 1.0  # seconds of a micro-batch from which on asking costs nothing to speak of
DEFAULTS = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",  # more than one micro-batch needs
}


def set_defaults() -> None:
    """Choose how PyTorch and oneDNN use memory, where the user has not.

    Both read it once, so this comes before the first tensor. Tensors of 2 MiB or more ask Linux
    for pages of that size, of which a product needs fewer. oneDNN compiles each product anew for
    every number of rows, and would keep 1,024 of them, half a megabyte each.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def give_back() -> None:
    """Let the C library return the pages that nothing is on, where it knows how to (glibc)."""
    if trim := _trim():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
