"""Memory and time of a run, held against a machine; and what would make it fit.

On a CPU, weights that are used as they are stored stay in the file, which is mapped into memory.
Weights that are converted are in memory beside their files while they are loaded.

Not counted are gaps in the heap and the scratch memory of single products.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from glmtune import machine
from glmtune.data.batches import MicroBatch
from glmtune.errors import CheckpointError, DataError, RecipeError
from glmtune.inspect.checkpoint import stored_tensors
from glmtune.model.files import locate, weight_files
from glmtune.model.layers import decoder_layers
from glmtune.model.load import load_config
from glmtune.objective.next_token import next_token_loss
from glmtune.recipe.methods import (
    FreezeSection,
    FullSection,
    LoraSection,
    NoneSection,
    QloraSection,
)
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.plan.simulation import (
    Simulation,
    attach_empty,
    has_unlike_layers,
    make_empty,
    shallow,
    simulate,
)
from glmtune.train.plan.workload import Rows, Workload, describe_workload, encode_rows
from glmtune.train.precision import autocast

CUDA_BYTES = 2**29  # what CUDA itself takes of a GPU; a usual figure, not measured here
SAMPLE_TOKENS = 256  # to time
TIMING_SECONDS = 1.0  # to repeat it for
SHORTEST = 128  # tokens; a max_length below it is not suggested
WORTHWHILE = 0.99  # what a change must leave of the memory at most, to be suggested


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what they are for.

    Attributes:
        base: the process with its libraries, or CUDA itself.
        weights: that stay as they are.
        trained, gradients, optimizer: of what is learned.
        activations: of the heaviest pack at its peak, the logits and their gradient included.
        proof: the same when what was saved is proved at the end.
        loading: of the weights while they are loaded, in the files and converted; 0 when they
            are used as they are stored.
    """

    base: int
    weights: int
    trained: int
    gradients: int
    optimizer: int
    activations: int
    proof: int
    loading: int

    @property
    def required(self) -> int:
        """What has to be there at once; files that are mapped while loading can give way."""
        learned = self.trained + self.gradients + self.optimizer
        without_gradients = self.proof - self.gradients
        held = self.base + self.weights + learned
        return held + max(self.activations, without_gradients)

    @property
    def peak(self) -> int:
        """The most that is in memory at once, while loading or later."""
        return max(self.base + self.loading, self.required)


@dataclass(frozen=True, slots=True)
class Change:
    """Values of the recipe to change, and the bytes required with them and those before."""

    overrides: tuple[str, ...]
    required: int


@dataclass(frozen=True, slots=True)
class Target:
    """A place to run, and whether the run fits into it.

    Attributes:
        name: what it is called.
        capacity: bytes that are free in it.
        memory: that the run would take there.
        changes: one after the other; none when it fits as it is.
    """

    name: str
    capacity: int
    memory: Memory
    changes: tuple[Change, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether what is required is there, without any change."""
        return self.memory.required <= self.capacity

    @property
    def would_fit(self) -> bool:
        """Whether it is, with all changes."""
        return self.fits or (bool(self.changes) and self.changes[-1].required <= self.capacity)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take.

    Attributes:
        workload: what it has to do.
        note: why that is a guess, "" when it is the data's own.
        targets: this machine first, then the sizes that were asked for.
        pack_seconds: of the heaviest pack on this machine, forward and backward; None when the
            run does not fit.
        run_seconds: of all packs; None when the data is not here either.
    """

    workload: Workload
    note: str
    targets: tuple[Target, ...]
    pack_seconds: float | None
    run_seconds: float | None


def make_plan(recipe: Recipe, devices: Sequence[str] = ()) -> Plan:
    """Predict memory and time of a run; no weights are read or downloaded.

    What the process holds already counts as part of what the run would hold, so for exact
    figures call it from a fresh one, as the command does.

    Args:
        recipe: the run.
        devices: GPUs to reckon for beside this machine, by size: "24GB".

    Raises:
        CheckpointError: the model's configuration cannot be read.
        DataError: the data is here, and a row of it cannot be used.
        RecipeError: the adapter does not fit the model, a device is no size, or nothing is
            trained.
    """
    if isinstance(recipe.adapter, NoneSection):
        raise RecipeError("adapter.method=none trains nothing; plan a run that does.")
    if recipe.preference.stage == "dpo" or recipe.training.dealt_out:
        raise RecipeError(
            "a plan reckons with whole weights and with answers that are learned: it knows neither "
            "preference.stage=dpo nor training.sharding or deepspeed yet."
        )
    sizes = {device: parse_size(device) for device in devices}
    # Whatever flash attention a GPU uses, it takes the memory of this one.
    recipe = build_recipe(recipe.model_dump(mode="json"), ["model.attn_implementation=packed"])
    load_config(recipe.model.name_or_path)
    rows, note = encode_rows(recipe)
    workload = describe_workload(recipe, rows)
    has_gpu = torch.cuda.is_available() and not recipe.training.use_cpu
    here = torch.device("cuda" if has_gpu else "cpu")
    take_time(recipe, workload, here, max_tokens=8, seconds=0)  # loads what a first step loads
    base = CUDA_BYTES if has_gpu else machine.resident_bytes()
    free = torch.cuda.mem_get_info()[0] if has_gpu else machine.host_memory().available_bytes + base
    gpu = Place(rows, torch.device("cuda"), CUDA_BYTES)
    targets = [aim("this machine", free, Place(rows, here, base), recipe)]
    targets += [aim(f"a GPU of {name}", size, gpu, recipe) for name, size in sizes.items()]
    per_token = take_time(recipe, workload, here) if targets[0].fits else None
    return Plan(
        workload=workload,
        note=note,
        targets=tuple(targets),
        pack_seconds=per_token and per_token * sum(workload.lengths),
        run_seconds=per_token and workload.num_tokens and per_token * workload.num_tokens,
    )


class Place:
    """Where a run is reckoned for: a CPU or a GPU, and what is taken there beforehand."""

    def __init__(self, rows: Rows | None, device: torch.device, base: int) -> None:
        self.rows, self.device, self.base = rows, device, base

    def memory(self, recipe: Recipe) -> Memory:
        """Add up what a run takes there.

        Raises:
            CheckpointError, DataError, RecipeError: as in training.
        """
        workload = describe_workload(recipe, self.rows)
        packs = (workload.micro_batch(), workload.later_micro_batch(), workload.proof_row())
        parts = simulate(recipe, *packs, self.device)
        weights, loading = parts.frozen, 0
        if self.device.type == "cpu":
            beside = converted_bytes(recipe, parts)
            if beside is not None:
                loading = weights + parts.trained + beside
        return Memory(
            base=self.base,
            weights=weights,
            trained=parts.trained,
            gradients=parts.gradients,
            optimizer=parts.optimizer,
            activations=parts.activations,
            proof=parts.proof,
            loading=loading,
        )


def converted_bytes(recipe: Recipe, parts: Simulation) -> int | None:
    """Give how much of the files is in memory beside the converted weights, None if they are used.

    In int8 and in NF4 each file is let go when its last weight has been read.
    """
    folder = Path(locate(recipe.model.name_or_path))
    stored = stored_tensors(folder) if folder.is_dir() else {}
    expected: Any = load_config(folder).dtype or torch.float32
    dtypes = {tensor.dtype for tensor in stored.values() if tensor.ndim > 1} or {expected}
    section = recipe.adapter
    packs = recipe.model.compute is not None or isinstance(section, QloraSection)
    if not packs and dtypes == {parts.dtype}:
        return None
    if not stored:
        numbers = (parts.frozen + parts.trained) // parts.dtype.itemsize
        return int(numbers * expected.itemsize)
    sizes = [file.stat().st_size for file in weight_files(folder)]
    is_nf4 = isinstance(section, QloraSection) and section.quantization_bit == 4
    return max(sizes) if recipe.model.compute == "int8" or is_nf4 else sum(sizes)


def aim(name: str, capacity: int, place: Place, recipe: Recipe) -> Target:
    """Say whether a run fits, and else which changes make it, one on top of the other."""
    memory = place.memory(recipe)
    required, changes = memory.required, []
    for overrides in knobs(recipe, place.device):
        if required <= capacity:
            break
        try:
            changed = build_recipe(recipe.model_dump(mode="json"), overrides)
            needed = place.memory(changed).required
        except (CheckpointError, DataError, RecipeError):  # it cannot be done here
            continue
        if needed <= WORTHWHILE * required:
            recipe, required = changed, needed
            changes.append(Change(tuple(overrides), required))
    return Target(name, capacity, memory, tuple(changes))


def knobs(recipe: Recipe, device: torch.device) -> Iterator[list[str]]:
    """Give changes that save memory, those first that leave what is learned as it is."""
    training = recipe.training
    batch = training.per_device_train_batch_size
    if batch > 1:
        steps = training.gradient_accumulation_steps * batch
        yield [
            "training.per_device_train_batch_size=1",
            f"training.gradient_accumulation_steps={steps}",
        ]
    if not training.gradient_checkpointing:
        yield ["training.gradient_checkpointing=true"]
    is_frozen = not isinstance(recipe.adapter, FullSection | FreezeSection)
    if is_frozen and recipe.model.dtype in ("auto", "float32"):
        yield ["model.dtype=bfloat16"]
    if is_frozen and device.type == "cpu":
        yield ["model.compute=int8"]
    if is_frozen and device.type != "cpu":
        yield ["adapter.method=qlora"]
    if isinstance(recipe.adapter, FullSection):
        yield ["adapter.method=lora"]
    length = recipe.data.max_length // 2
    while length >= SHORTEST:
        yield [f"data.max_length={length}"]
        length //= 2


def take_time(
    recipe: Recipe,
    workload: Workload,
    device: torch.device,
    *,
    max_tokens: int = SAMPLE_TOKENS,
    seconds: float = TIMING_SECONDS,
) -> float:
    """Give the seconds that a token takes, forward and backward.

    A few tokens go through one and through two layers of zeros. The difference is a layer, and
    what is left is the embedding, the output layer and the loss; the rest is reckoned. Zeros
    that nobody writes to take no memory. Where layers are trained each in its own way, it is the
    time of LoRA.
    """
    if has_unlike_layers(recipe.adapter):
        recipe = recipe.model_copy(update={"adapter": LoraSection()})
    whole = make_empty(recipe, device)
    batch = workload.micro_batch(max_tokens).to(device)
    one, two = (_seconds(shallow(whole, n), recipe, batch, seconds) for n in (1, 2))
    took = one + (len(decoder_layers(whole)) - 1) * max(two - one, 0.0)
    return took / batch.input_ids.numel()


def _seconds(model: Any, recipe: Recipe, batch: MicroBatch, seconds: float) -> float:
    device = batch.input_ids.device
    model = attach_empty(model, recipe).to_empty(device=device)
    model.tie_weights()
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    started, best = time.perf_counter(), float("inf")
    while best == float("inf") or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        with autocast(recipe.training, device):
            loss = next_token_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for a GPU
        best = min(best, time.perf_counter() - begun)
    return best


def parse_size(text: str) -> int:
    """Read "24GB" as bytes.

    Raises:
        RecipeError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB)?", text, re.IGNORECASE)
    if match is None:
        raise RecipeError(f"--device {text!r}: expected a size of memory, such as 24GB.")
    unit = 2**30 if (match[2] or "").lower() == "gib" else 10**9
    return int(float(match[1]) * unit)
