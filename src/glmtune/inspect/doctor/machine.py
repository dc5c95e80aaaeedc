"""Everything that `glmtune doctor` looks at."""

import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from glmtune.inspect.doctor.cached_models import CachedModel, cached_models, hub_cache
from glmtune.machine import Gpu, cpu_name, fast_cpu_dtypes, gpus, memory, num_cores

# ---- this machine ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Version:
    """A package that matters.

    Attributes:
        name: of the package.
        found: its version, None when it is not there.
        wanted: the range of the package's metadata, "" for any.
        fits: whether the version is in it; an optional package may also be missing.
    """

    name: str
    found: str | None
    wanted: str
    fits: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """What is here.

    Attributes:
        system, cpu: what they call themselves.
        num_cores: that this process may use.
        memory_bytes, available_bytes: of the host, or of the container's limit.
        disk_free_bytes: by place.
        native_dtypes: what the CPU multiplies at full speed.
        gpus: what torch can use.
        versions: of Python and the packages.
        models: ChatGLM in the hub cache.
        environment: the variables that matter and are set; secrets are not shown.
        torch_problem: why torch cannot be imported, "" if it can.
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


PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "sentencepiece")
VARIABLES = (
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    *("HF_TOKEN", "TRANSFORMERS_OFFLINE", "MODELSCOPE_CACHE", "GLMTUNE_CACHE", "XDG_CACHE_HOME"),
    *("CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "KMP_DUPLICATE_LIB_OK"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC_PER_NODE"),
    *("WANDB_API_KEY", "WANDB_MODE", "SWANLAB_API_KEY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)


def describe_machine() -> Machine:
    """Look at the machine, the packages, the cache and the environment."""
    problem = ""
    native: tuple[str, ...] = ()
    found: tuple[Gpu, ...] = ()
    try:
        native, found = _native_dtypes(), gpus()
    except (ImportError, OSError) as error:  # told as a problem, with its remedy
        problem = " ".join(str(error).split()) or type(error).__name__
    total, available = memory()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        num_cores=num_cores(),
        memory_bytes=total,
        available_bytes=available,
        disk_free_bytes={
            "working directory": shutil.disk_usage(Path.cwd()).free,
            "hub cache": shutil.disk_usage(_existing(hub_cache())).free,
        },
        native_dtypes=native,
        gpus=found,
        versions=tuple(_versions()),
        models=() if problem else tuple(cached_models(hub_cache())),
        environment=_environment(os.environ),
        torch_problem=problem,
    )


def _native_dtypes() -> tuple[str, ...]:
    return tuple(sorted(str(dtype).removeprefix("torch.") for dtype in fast_cpu_dtypes()))


def _versions() -> Iterator[Version]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    about = metadata.metadata("glmtune")
    python = platform.python_version()
    wanted = about["Requires-Python"]
    yield Version("python", python, wanted, SpecifierSet(wanted).contains(python))
    yield Version("glmtune", about["Version"], "", True)
    required = {r.name: r for r in map(Requirement, metadata.requires("glmtune") or ())}
    for name in PACKAGES:
        requirement = required.get(name, Requirement(name))
        specifier = requirement.specifier
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            is_extra = requirement.marker is not None  # fine without it
            yield Version(name, None, str(specifier), fits=is_extra)
            continue
        yield Version(name, found, str(specifier), specifier.contains(found, prereleases=True))


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Give the variables that matter; keys, tokens and passwords are not shown."""
    shown = {}
    for name in VARIABLES:
        if value := variables.get(name):
            is_secret = name.endswith(("TOKEN", "KEY"))
            shown[name] = "set, not shown" if is_secret else re.sub(r"//[^/@]*@", "//***@", value)
    return shown
