"""Describe this machine: cores, memory, GPUs, dtypes, and the versions of the libraries.

Whatever differs between Linux, macOS and Windows is in this file, so that every other module
imports on all three. psutil answers most questions; two are answered here. A container limits
memory through its cgroup, which psutil does not read, and the peak of a process is `ru_maxrss`
on POSIX systems and `peak_wset` on Windows.

Importing this module is cheap: torch and psutil are imported by the functions that need them.
"""

import functools
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import glmtune

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "sentencepiece")
VARIABLES = (
    # caches and hubs
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_TOKEN",
    "TRANSFORMERS_OFFLINE",
    "MODELSCOPE_CACHE",
    "GLMTUNE_CACHE",
    "XDG_CACHE_HOME",
    # GPUs and threads
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "KMP_DUPLICATE_LIB_OK",
    # network
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    # processes that train together
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NPROC_PER_NODE",
    # trackers
    "WANDB_API_KEY",
    "WANDB_MODE",
    "SWANLAB_API_KEY",
)


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The memory of the machine, or of the container that this process runs in, in bytes.

    Attributes:
        total_bytes: what is installed, or the container's limit if that is lower.
        available_bytes: what processes can still allocate without swapping.
    """

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that torch can use; memory in bytes."""

    name: str
    memory_bytes: int
    free_bytes: int
    has_bfloat16: bool


@dataclass(frozen=True, slots=True)
class Version:
    """The version of Python or of a package.

    Attributes:
        name: of the package.
        found: the installed version, None if the package is not installed.
        wanted: the range that glmtune's metadata requires, "" for any version.
        fits: whether the installed version is in that range.
    """

    name: str
    found: str | None
    wanted: str
    fits: bool


# ---- processor ---------------------------------------------------------------------------


def cpu_name() -> str:
    """Return the name of the processor, as the system reports it."""
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        match = re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8"))
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # much faster than psutil, and called for every text
        return len(os.sched_getaffinity(0))
    import psutil

    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # on Windows; macOS has no affinity
        return len(process.cpu_affinity() or ())
    return os.cpu_count() or 1


def describe_load(load: float | None = None, cores: int | None = None) -> str:
    """Say that other processes want the cores of this machine; "" if they do not.

    Args:
        load: how many processes wanted a core, on average of the last minute; None asks the system.
        cores: of this process; None asks the system.
    """
    if load is None:
        import psutil

        load = psutil.getloadavg()[0]
    cores = num_cores() if cores is None else cores
    if load < cores + 1:
        return ""
    return (
        f"this machine is busy: {load:.0f} processes wanted its {cores} cores in the last minute, "
        "so steps take longer than they would alone"
    )


def fast_cpu_dtypes() -> "set[torch.dtype]":
    """Return the dtypes that this CPU multiplies natively; only x86 is known to lack some."""
    import torch

    able = torch.cpu.get_capabilities()
    half = {
        torch.bfloat16: able.get("avx512_bf16") or able.get("amx_bf16"),
        torch.float16: able.get("avx512_fp16") or able.get("amx_fp16"),
    }
    is_x86 = able.get("architecture") == "x86_64"
    return {torch.float32, torch.float64} | {d for d, has in half.items() if has or not is_x86}


@functools.cache
def has_int8_products() -> bool:
    """Whether torch multiplies int8 matrices correctly here; without VNNI its sums overflow."""
    import torch

    largest = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.T) == 64 * 127**2).all())


# ---- memory ------------------------------------------------------------------------------


def host_memory(cgroup: Path = CGROUP) -> HostMemory:
    """Return the memory of this machine; a container's limit counts.

    Args:
        cgroup: the folder with the limits of this process's cgroup (version 2).
    """
    import psutil

    host = psutil.virtual_memory()
    total, available = host.total, host.available
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and used.is_file():
        text = limit.read_text(encoding="ascii").strip()
        if text.isdecimal() and int(text) < total:  # "max" means no limit
            total = int(text)
            available = min(available, total - int(used.read_text(encoding="ascii")))
    return HostMemory(total, available)


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Return the largest resident memory this process has had, in bytes."""
    try:
        import resource
    except ImportError:  # on Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: on the GPU if there is one, else on the host."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def gpus() -> tuple[Gpu, ...]:
    """List the GPUs that torch can use."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major = torch.cuda.get_device_capability(index)[0]
        found.append(Gpu(torch.cuda.get_device_name(index), total, free, major >= 8))
    return tuple(found)


# ---- software ----------------------------------------------------------------------------


def system_name() -> str:
    """Return the operating system, its release and the architecture."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def is_installed() -> bool:
    """Whether glmtune is an installed package; a source tree on PYTHONPATH has no metadata."""
    try:
        metadata.metadata("glmtune")
    except metadata.PackageNotFoundError:
        return False
    return True


def versions() -> tuple[Version, ...]:
    """Return the versions of Python, glmtune and the libraries that decide a run.

    The ranges come from glmtune's metadata. Where it is not installed, every version fits.
    """
    return tuple(_versions())


def _versions() -> Iterator[Version]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    ranges, required, wanted_python = {}, set(PACKAGES), ""
    if is_installed():
        requirements = [Requirement(text) for text in metadata.requires("glmtune") or ()]
        ranges = {each.name: each.specifier for each in requirements}
        required = {each.name for each in requirements if each.marker is None}  # not by an extra
        wanted_python = metadata.metadata("glmtune")["Requires-Python"]
    python = platform.python_version()
    yield Version("python", python, wanted_python, SpecifierSet(wanted_python).contains(python))
    source = "" if is_installed() else " (source tree, not installed)"
    yield Version("glmtune", f"{glmtune.__version__}{source}", "", fits=True)
    for name in PACKAGES:
        wanted = ranges.get(name, SpecifierSet())
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Version(name, None, str(wanted), fits=name not in required)
            continue
        yield Version(name, found, str(wanted), wanted.contains(found, prereleases=True))


def environment_variables(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that change what the libraries do, without secrets.

    The value of a key or a token is replaced, and so are user and password in the URL of a proxy.
    """
    shown = {}
    for name in VARIABLES:
        if value := variables.get(name):
            is_secret = name.endswith(("TOKEN", "KEY"))
            shown[name] = "set, not shown" if is_secret else re.sub(r"//[^/@]*@", "//***@", value)
    return shown
