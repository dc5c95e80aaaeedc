"""Describe a machine: hardware, disks, library versions, cached models and environment."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glmtune import machine
from glmtune.files import nearest_folder
from glmtune.inspect.doctor.cached_models import CachedModel, cached_models, hub_cache
from glmtune.machine import Gpu, Version


@dataclass(frozen=True, slots=True)
class Machine:
    """A description of the machine and of what is installed on it.

    Attributes:
        system, cpu: names, as the system reports them.
        num_cores: cores that this process may use.
        memory_bytes, available_bytes: of the host, or of the container's limit.
        disk_free_bytes: free space, by what is stored there.
        native_dtypes: dtypes that the CPU multiplies natively.
        gpus: GPUs that torch can use.
        versions: of Python and the packages.
        models: ChatGLM checkpoints in the hub cache.
        environment: variables that matter and are set; the values of secrets are not shown.
        torch_problem: why torch cannot be imported, "" if it can.
        is_installed: False for a source tree, where the required versions are not known.
    """

    system: str
    cpu: str
    num_cores: int
    memory_bytes: int
    available_bytes: int
    disk_free_bytes: Mapping[str, int]
    native_dtypes: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    versions: tuple[Version, ...]
    models: tuple[CachedModel, ...]
    environment: Mapping[str, str]
    torch_problem: str
    is_installed: bool = True


def describe_machine() -> Machine:
    """Describe this machine, its packages, the hub cache and the environment."""
    problem = ""
    native: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    try:
        native, gpus = _native_dtypes(), machine.gpus()
    except (ImportError, OSError) as error:  # becomes an advice
        problem = " ".join(str(error).split()) or type(error).__name__
    memory = machine.host_memory()
    return Machine(
        system=machine.system_name(),
        cpu=machine.cpu_name(),
        num_cores=machine.num_cores(),
        memory_bytes=memory.total_bytes,
        available_bytes=memory.available_bytes,
        disk_free_bytes={
            "working directory": shutil.disk_usage(Path.cwd()).free,
            "hub cache": shutil.disk_usage(nearest_folder(hub_cache())).free,
        },
        native_dtypes=native,
        gpus=gpus,
        versions=machine.versions(),
        models=() if problem else tuple(cached_models(hub_cache())),
        environment=machine.environment_variables(os.environ),
        torch_problem=problem,
        is_installed=machine.is_installed(),
    )


def _native_dtypes() -> tuple[str, ...]:
    return tuple(sorted(str(dtype).removeprefix("torch.") for dtype in machine.fast_cpu_dtypes()))
