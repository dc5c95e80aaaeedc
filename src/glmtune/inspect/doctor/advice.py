"""Say what will not work on this machine, and what to do about it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from glmtune.inspect.doctor.machine import Machine


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that will not work (`stops`) or that is good to know, and what to do."""

    problem: str
    remedy: str
    stops: bool


GIB = 2**30
WEIGHTS_OF_6B = 2 * 6_243_584_000  # bytes in 16 bit


def advise(machine: Machine) -> list[Advice]:
    """Say what will not work on a machine, then what is good to know, each with its remedy."""
    advice = [*_about_packages(machine), *_about_room(machine), *_about_speed(machine)]
    return sorted(advice, key=lambda one: not one.stops)


def _about_packages(machine: Machine) -> Iterator[Advice]:
    for version in machine.versions:
        if not version.fits:
            found = version.found or "not installed"
            what = f"{version.name} is {found}, expected {version.wanted or 'any version'}"
            remedy = "Install glmtune into a fresh environment: pip install glmtune."
            if version.name == "python":
                remedy = "Make an environment with a newer Python."
            yield Advice(what + ".", remedy, stops=True)
    if machine.torch_problem:
        yield Advice(
            f"torch cannot be imported: {machine.torch_problem}.",
            "Install it again, in a fresh environment.",
            stops=True,
        )


def _about_room(machine: Machine) -> Iterator[Advice]:
    room = machine.disk_free_bytes
    if room["working directory"] < GIB:
        yield Advice(
            "less than 1 GiB is free on the disk of the working directory, so a run may fail to "
            "save.",
            "Free some room, or set output.dir to another disk.",
            stops=True,
        )
    if not machine.models and room["hub cache"] < WEIGHTS_OF_6B:
        yield Advice(
            f"the hub cache has {room['hub cache'] / GIB:.1f} GiB of room, and ChatGLM3-6B takes "
            f"{WEIGHTS_OF_6B / GIB:.1f}.",
            "Set HF_HOME to a larger disk.",
            stops=True,
        )
    largest = max((gpu.free_bytes for gpu in machine.gpus), default=machine.available_bytes)
    if largest < WEIGHTS_OF_6B:
        yield Advice(
            f"ChatGLM3-6B does not fit: its weights take {WEIGHTS_OF_6B / GIB:.1f} GiB in 16 bit, "
            f"and {largest / GIB:.1f} are free.",
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
            f"{offline[0]} is set and no ChatGLM is in the hub cache, so hub ids will not load.",
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
                "there is no GPU: ChatGLM3-6B trains very much slower than on one.",
                "`glmtune train` says before the first step how long all of them will take.",
                stops=False,
            )
        if "bfloat16" not in machine.native_dtypes:
            yield Advice(
                "this CPU does not multiply bfloat16, so 16-bit weights are computed with in "
                "float32.",
                "Nothing needs to be done; for a small model, model.dtype=float32 is faster.",
                stops=False,
            )
    for gpu in machine.gpus:
        if not gpu.has_bfloat16:
            yield Advice(
                f"{gpu.name} has no bfloat16.",
                "Set model.dtype=float16; to train the weights themselves, training.fp16=true.",
                stops=False,
            )
    threads = machine.environment.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) != machine.num_cores and not machine.gpus:
        yield Advice(
            f"OMP_NUM_THREADS={threads}, and {machine.num_cores} cores may be used.",
            "Unset it, unless several runs share this machine.",
            stops=False,
        )
