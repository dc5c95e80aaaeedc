"""Predict memory and time of a run, compare them with a machine, and find what would make it fit.

On a CPU, weights in the dtype of their files are mapped into memory and not copied. Weights that
are converted take memory in addition to their files while they are loaded.

Heap fragmentation and the workspaces of single products are not counted.
"""

import math
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
from glmtune.model.files import locate, weight_files
from glmtune.model.layers import decoder_layers
from glmtune.model.load import load_config
from glmtune.model.stored import stored_tensors
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
    attach_meta_adapter,
    keep_layers,
    make_meta_model,
    needs_all_layers,
    simulate,
)
from glmtune.train.plan.workload import RowLengths, Workload, describe_workload, encode_row_lengths
from glmtune.train.precision import autocast
from glmtune.units import GIB

CUDA_BYTES = 2**29  # of the CUDA context; a usual figure, not measured here
SAMPLE_TOKENS = 256  # in the step that is timed
TIMING_SECONDS = 1.0  # the step is repeated for so long, and the fastest counts
MIN_MAX_LENGTH = 128  # tokens; no lower data.max_length is suggested
WORTHWHILE_RATIO = 0.99  # a change that leaves more than this share of the memory is not suggested


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a run by purpose, in bytes.

    Attributes:
        base: the process with its libraries, or the CUDA context.
        weights: frozen weights.
        trained, gradients, optimizer: trainable weights, their gradients and optimizer state.
        activations: of the heaviest pack at its peak, including the logits and their gradient.
        proof: the same for the proof of the saved files at the end.
        loading: weights while they are loaded, both in the files and converted; 0 if they are
            used in the dtype they are stored in.
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
        """What must fit at once; pages of mapped files can be dropped and do not count."""
        training = self.trained + self.gradients + self.optimizer
        proof = self.proof - self.gradients  # which are freed before it
        return self.base + self.weights + training + max(self.activations, proof)

    @property
    def peak(self) -> int:
        """The most that is in memory at once, while loading or later."""
        return max(self.base + self.loading, self.required)


@dataclass(frozen=True, slots=True)
class Change:
    """Recipe values to change, and the bytes required with this and all earlier changes."""

    overrides: tuple[str, ...]
    required: int


@dataclass(frozen=True, slots=True)
class Target:
    """A device to run on, and whether the run fits into its memory.

    Attributes:
        name: of the device.
        capacity: free bytes.
        memory: what the run would take.
        changes: to apply one after the other; empty if the run fits as it is.
    """

    name: str
    capacity: int
    memory: Memory
    changes: tuple[Change, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the run fits without any change."""
        return self.memory.required <= self.capacity

    @property
    def would_fit(self) -> bool:
        """Whether the run fits with all changes."""
        return self.fits or (bool(self.changes) and self.changes[-1].required <= self.capacity)


@dataclass(frozen=True, slots=True)
class Plan:
    """The predicted memory and time of a run.

    Attributes:
        workload: what the run has to do.
        note: why the workload is an upper bound, "" if it comes from the data.
        targets: this machine first, then the sizes that were asked for.
        pack_seconds: of the heaviest pack on this machine, forward and backward; None if the
            run does not fit.
        run_seconds: of all packs; None also if the data is not available.
    """

    workload: Workload
    note: str
    targets: tuple[Target, ...]
    pack_seconds: float | None
    run_seconds: float | None


def make_plan(recipe: Recipe, devices: Sequence[str] = ()) -> Plan:
    """Predict memory and time of a run; no weights are read or downloaded.

    The memory that this process already has counts as part of the run, so call it from a new
    process for exact figures, as the command does.

    Args:
        recipe: the run.
        devices: GPUs to predict for in addition to this machine, by memory size: "24GB".

    Raises:
        CheckpointError: the model's configuration cannot be read.
        DataError: the data is available, but a row of it cannot be used.
        RecipeError: the adapter does not fit the model, a device is not a size, or nothing is
            trained.
    """
    if isinstance(recipe.adapter, NoneSection):
        raise RecipeError("adapter.method=none trains nothing; plan a run that does.")
    if recipe.preference.stage != "sft" or recipe.training.sharded_by:
        raise RecipeError(
            "glmtune plan does not support preference.stage=dpo and kto, training.sharding "
            "and training.deepspeed yet. Plan the run without them."
        )
    sizes = {device: parse_size(device) for device in devices}
    # Flash attention takes as much memory as packed attention, which runs on every device.
    recipe = build_recipe(recipe.model_dump(mode="json"), ["model.attn_implementation=packed"])
    load_config(recipe.model.name_or_path)
    rows, note = encode_row_lengths(recipe)
    workload = describe_workload(recipe, rows)
    has_gpu = torch.cuda.is_available() and not recipe.training.use_cpu
    here = torch.device("cuda" if has_gpu else "cpu")
    # The libraries that a first step loads belong to the base.
    measure_seconds_per_token(recipe, workload, here, max_tokens=8, seconds=0)
    base = CUDA_BYTES if has_gpu else machine.resident_bytes()
    free = torch.cuda.mem_get_info()[0] if has_gpu else machine.host_memory().available_bytes + base
    on_gpu = MemoryEstimator(rows, torch.device("cuda"), CUDA_BYTES)
    targets = [make_target("this machine", free, MemoryEstimator(rows, here, base), recipe)]
    for name, size in sizes.items():
        targets.append(make_target(f"a GPU of {name}", size, on_gpu, recipe))
    per_token = measure_seconds_per_token(recipe, workload, here) if targets[0].fits else None
    return Plan(
        workload=workload,
        note=note,
        targets=tuple(targets),
        pack_seconds=per_token and per_token * sum(workload.lengths),
        run_seconds=per_token and workload.num_tokens and per_token * workload.num_tokens,
    )


class MemoryEstimator:
    """Predicts the memory of a recipe on a CPU or a GPU.

    Args:
        rows: the lengths of the data, None if it is not available.
        device: to run on; it need not exist here.
        base: bytes that are taken before the run starts.
    """

    def __init__(self, rows: RowLengths | None, device: torch.device, base: int) -> None:
        self.rows, self.device, self.base = rows, device, base

    def estimate(self, recipe: Recipe) -> Memory:
        """Add up what a run takes on the device.

        Raises:
            CheckpointError, DataError, RecipeError: as in training.
        """
        workload = describe_workload(recipe, self.rows)
        parts = simulate(
            recipe,
            batch=workload.micro_batch(),
            later=workload.later_micro_batch(),
            proof=workload.proof_row(),
            device=self.device,
        )
        weights, loading = parts.frozen, 0
        if self.device.type == "cpu":
            files = converted_bytes(recipe, parts)
            if files is not None:
                loading = weights + parts.trained + files
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
    """Return the bytes of files in memory while weights are converted, None if none is converted.

    For int8 and NF4 each file is closed when its last weight has been read.
    """
    folder = Path(locate(recipe.model.name_or_path))
    stored = stored_tensors(folder) if folder.is_dir() else {}
    expected: Any = load_config(folder).dtype or torch.float32
    matrices = [tensor for tensor in stored.values() if len(tensor.shape) > 1]
    dtypes = {getattr(torch, tensor.dtype) for tensor in matrices} or {expected}
    section = recipe.adapter
    is_quantized = recipe.model.compute is not None or isinstance(section, QloraSection)
    if not is_quantized and dtypes == {parts.dtype}:
        return None
    if not stored:
        numbers = (parts.frozen + parts.trained) // parts.dtype.itemsize
        return int(numbers * expected.itemsize)
    sizes = [file.stat().st_size for file in weight_files(folder)]
    is_nf4 = isinstance(section, QloraSection) and section.quantization_bit == 4
    return max(sizes) if recipe.model.compute == "int8" or is_nf4 else sum(sizes)


def make_target(name: str, capacity: int, estimator: MemoryEstimator, recipe: Recipe) -> Target:
    """Compare a run with a capacity; if it does not fit, collect changes until it does."""
    memory = estimator.estimate(recipe)
    required, changes = memory.required, []
    for overrides in memory_saving_changes(recipe, estimator.device):
        if required <= capacity:
            break
        try:
            changed = build_recipe(recipe.model_dump(mode="json"), overrides)
            needed = estimator.estimate(changed).required
        except (CheckpointError, DataError, RecipeError):  # not possible for this recipe or machine
            continue
        if needed <= WORTHWHILE_RATIO * required:
            recipe, required = changed, needed
            changes.append(Change(tuple(overrides), required))
    return Target(name, capacity, memory, tuple(changes))


def memory_saving_changes(recipe: Recipe, device: torch.device) -> Iterator[list[str]]:
    """Yield changes that save memory; those that do not affect the result come first."""
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
    while length >= MIN_MAX_LENGTH:
        yield [f"data.max_length={length}"]
        length //= 2


def measure_seconds_per_token(
    recipe: Recipe,
    workload: Workload,
    device: torch.device,
    *,
    max_tokens: int = SAMPLE_TOKENS,
    seconds: float = TIMING_SECONDS,
) -> float:
    """Measure the seconds per token of a forward and backward pass.

    A few tokens go through one and through two layers of zeros. The difference is the time of a
    layer, and the remainder that of the embedding, the output layer and the loss; the time of the
    full depth is extrapolated. Pages of zeros that are never written take no memory. If layers
    are trained in different ways, the time is that of LoRA.
    """
    if needs_all_layers(recipe.adapter):
        recipe = recipe.model_copy(update={"adapter": LoraSection()})
    model = make_meta_model(recipe, device)
    batch = workload.micro_batch(max_tokens).to(device)
    one, two = (_seconds(keep_layers(model, n), recipe, batch, seconds) for n in (1, 2))
    took = one + (len(decoder_layers(model)) - 1) * max(two - one, 0.0)
    return took / batch.input_ids.numel()


def _seconds(model: Any, recipe: Recipe, batch: MicroBatch, seconds: float) -> float:
    """Repeat a forward and backward pass of zeros for some seconds, and return the fastest."""
    device = batch.input_ids.device
    model = attach_meta_adapter(model, recipe, device).to_empty(device=device)
    model.tie_weights()
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    end, fastest = time.perf_counter() + seconds, math.inf
    while fastest == math.inf or time.perf_counter() < end:
        began = time.perf_counter()
        with autocast(recipe.training, device):
            loss = next_token_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for the GPU
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


def parse_size(text: str) -> int:
    """Convert a size such as "24GB" to bytes.

    Raises:
        RecipeError: the text is not a size.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(GB|GiB)?", text, re.IGNORECASE)
    if match is None:
        raise RecipeError(f"--device {text!r}: expected a size of memory, such as 24GB.")
    unit = GIB if (match[2] or "").lower() == "gib" else 10**9
    return int(float(match[1]) * unit)
