import re
import sys
from pathlib import Path

import pytest
import torch

from glmtune.train.heap import give_back

MIB = 2**20


def resident() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    [kib] = re.findall(r"RssAnon:\s+(\d+)", status)
    return int(kib) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives memory back when asked")
def test_what_is_freed_below_a_tensor_that_stays_is_given_back() -> None:
    give_back()  # or what other tests have freed would be used again, and nothing would grow
    before = resident()
    freed = [torch.ones(2**14) for _ in range(2000)]  # 64 KiB each, too small to be mapped alone
    stays = [torch.ones(2**14) for _ in range(10)]
    assert resident() - before > 100 * MIB
    freed.clear()

    give_back()

    assert resident() - before < 30 * MIB
    assert all(tensor.eq(1).all() for tensor in stays)
