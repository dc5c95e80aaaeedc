import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from glmtune.train import process_memory
from glmtune.train.process_memory import release_freed_pages

MIB = 2**20
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COUNT_LARGE = """
import os, pathlib, re
from glmtune.train import process_memory
process_memory.set_defaults()
import torch
large = torch.ones(2**24)
pages = pathlib.Path("/proc/self/smaps_rollup").read_text()
print(re.search(r"AnonHugePages: +(\\d+) kB", pages)[1], os.environ["THP_MEM_ALLOC_ENABLE"])
"""


def resident() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    [kib] = re.findall(r"RssAnon:\s+(\d+)", status)
    return int(kib) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives memory back when asked")
def test_heap_pages_freed_below_a_live_tensor_are_returned_to_the_system() -> None:
    release_freed_pages()  # or pages that other tests have freed would be used again
    before = resident()
    freed = [torch.ones(2**14) for _ in range(2000)]  # 64 KiB each, too small to be mapped alone
    stays = [torch.ones(2**14) for _ in range(10)]
    assert resident() - before > 100 * MIB
    freed.clear()

    release_freed_pages()

    assert resident() - before < 30 * MIB
    assert all(tensor.eq(1).all() for tensor in stays)


def count_large(environment: Mapping[str, str]) -> tuple[int, str]:
    """KiB in large pages of a process that has made a tensor of 64 MiB, and what was set."""
    command = [sys.executable, "-c", COUNT_LARGE]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    kib, chosen = done.stdout.split()
    return int(kib), chosen


@pytest.mark.skipif(
    not LARGE_PAGES.is_file() or "[never]" in LARGE_PAGES.read_text(),
    reason="this system gives no large pages to those who ask",
)
def test_a_large_tensor_uses_huge_pages_unless_the_user_turns_them_off() -> None:
    without = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}

    kib, chosen = count_large(without)

    assert chosen == "1"
    assert kib > 32 * 1024
    assert count_large(without | {"THP_MEM_ALLOC_ENABLE": "0"})[1] == "0"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_wait_shortly_for_each_other_unless_the_user_says_how_long(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name in process_memory.DEFAULTS:
        monkeypatch.setenv(name, process_memory.DEFAULTS[name])
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    before = dict(os.environ)
    process_memory.set_defaults()
    found = os.environ.get("GOMP_SPINCOUNT")
    os.environ.clear()
    os.environ.update(before)

    assert found == spins
