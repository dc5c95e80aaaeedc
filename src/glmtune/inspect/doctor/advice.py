"""Advise on a machine: what will not work on it, what is slow on it, and what to do."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from glmtune.inspect.doctor.machine import Machine
from glmtune.units import GIB

WEIGHTS_OF_6B = 2 * 6_243_584_000  # bytes in 16 bit


@dataclass(frozen=True, slots=True)
class Advice:
    """A problem and its remedy.

    Attributes:
        problem, remedy: one sentence each.
        stops: True if something will not work, False if it is only good to know.
    """

    problem: str
    remedy: str
    stops: bool


def advise(machine: Machine) -> list[Advice]:
    """Return what will not work on a machine, then what is good to know, each with its remedy."""
    advice = [*_about_packages(machine), *_about_space(machine), *_about_speed(machine)]
    return sorted(advice, key=lambda one: not one.stops)


def _about_packages(machine: Machine) -> Iterator[Advice]:
    for version in machine.versions:
        if not version.fits:
            found = version.found or "not installed"
            what = f"{version.name} is {found}, expected {version.wanted or 'any version'}"
            remedy = "Install glmtune into a new environment: pip install glmtune."
            if version.name == "python":
                remedy = "Create an environment with a newer Python."
            yield Advice(what + ".", remedy, stops=True)
    if machine.torch_problem:
        yield Advice(
            f"torch cannot be imported: {machine.torch_problem}.",
            "Install it again, in a new environment.",
            stops=True,
        )
    if not machine.is_installed:
        yield Advice(
            "glmtune runs from a source tree that is not installed, so the versions it requires "
            "are not known and were not checked.",
            "Install it: pip install -e . in the source tree.",
            stops=False,
        )


def _about_space(machine: Machine) -> Iterator[Advice]:
    free = machine.disk_free_bytes
    if free["working directory"] < GIB:
        yield Advice(
            "less than 1 GiB is free on the disk of the working directory, so a run may fail to "
            "save.",
            "Free some space, or set output.dir to another disk.",
            stops=True,
        )
    if not machine.models and free["hub cache"] < WEIGHTS_OF_6B:
        yield Advice(
            f"the disk of the hub cache has {free['hub cache'] / GIB:.1f} GiB free, and "
            f"ChatGLM3-6B takes {WEIGHTS_OF_6B / GIB:.1f}.",
            "Set HF_HOME to a larger disk.",
            stops=True,
        )
    largest = max((gpu.free_bytes for gpu in machine.gpus), default=machine.available_bytes)
    if largest < WEIGHTS_OF_6B:
        yield Advice(
            f"ChatGLM3-6B does not fit: its weights take {WEIGHTS_OF_6B / GIB:.1f} GiB in 16 bit, "
            f"and {largest / GIB:.1f} GiB are free.",
            "Use a machine with more memory, a smaller model, or adapter.method=qlora.",
            stops=True,
        )
    for model in machine.models:
        if model.problem:
            yield Advice(
                f"{model.name} in the hub cache cannot be loaded: {model.problem}.",
                f"Download it again: hf download {model.name}.",
                stops=True,
            )
    offline = [n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if n in machine.environment]
    if offline and not machine.models:
        yield Advice(
            f"{offline[0]} is set and there is no ChatGLM in the hub cache, so hub ids will not "
            "load.",
            f"Give the folder of a model, or unset {offline[0]}.",
            stops=False,
        )


def _about_speed(machine: Machine) -> Iterator[Advice]:
    if not machine.gpus and not machine.torch_problem:
        if shutil.which("nvidia-smi"):
            yield Advice(
                "there is an NVIDIA driver, but torch sees no GPU.",
                "Install a CUDA build of torch, and check CUDA_VISIBLE_DEVICES.",
                stops=False,
            )
        else:
            yield Advice(
                "there is no GPU: ChatGLM3-6B trains far more slowly on a CPU.",
                "`glmtune plan` estimates how long a run takes here.",
                stops=False,
            )
        if "bfloat16" not in machine.native_dtypes:
            yield Advice(
                "this CPU does not multiply bfloat16 natively, so layers with 16-bit weights are "
                "computed in float32.",
                "Nothing needs to be done; for a small model, model.dtype=float32 is faster.",
                stops=False,
            )
    for gpu in machine.gpus:
        if not gpu.has_bfloat16:
            yield Advice(
                f"{gpu.name} does not support bfloat16.",
                "Set model.dtype=float16; to train the weights themselves, training.fp16=true.",
                stops=False,
            )
    threads = machine.environment.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) != machine.num_cores and not machine.gpus:
        yield Advice(
            f"OMP_NUM_THREADS is {threads}, but this process may use {machine.num_cores} cores.",
            "Unset it, unless several runs share this machine.",
            stops=False,
        )
