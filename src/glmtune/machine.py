"""What this machine is: cores, memory, GPUs and dtypes."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def fast_cpu_dtypes() -> "set[torch.dtype]":
    """Give the dtypes that this CPU multiplies natively; only x86 is known to lack some."""
    import torch

    able = torch.cpu.get_capabilities()
    half = {
        torch.bfloat16: able.get("avx512_bf16") or able.get("amx_bf16"),
        torch.float16: able.get("avx512_fp16") or able.get("amx_fp16"),
    }
    is_x86 = able.get("architecture") == "x86_64"
    return {torch.float32, torch.float64} | {d for d, has in half.items() if has or not is_x86}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that torch can use; memory in bytes."""

    name: str
    memory_bytes: int
    free_bytes: int
    has_bfloat16: bool


def memory() -> tuple[int, int]:
    """Give the memory of the machine and what is free of it, in bytes; a container's limit counts.

    Where the system does not say what is free, all of it is taken to be.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    if (meminfo := Path("/proc/meminfo")).is_file():
        match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"))
        available = int(match[1]) * 1024 if match else total
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file():
        text = limit.read_text(encoding="ascii").strip()
        if text.isdecimal() and int(text) < total:
            total = int(text)
            available = min(available, total - int(used.read_text(encoding="ascii")))
    return total, available


def cpu_name() -> str:
    """Give the name of the processor, as the system reports it."""
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        match = re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8"))
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> tuple[Gpu, ...]:
    """List the GPUs that torch can use."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major = torch.cuda.get_device_capability(index)[0]
        found.append(Gpu(torch.cuda.get_device_name(index), total, free, major >= 8))
    return tuple(found)
