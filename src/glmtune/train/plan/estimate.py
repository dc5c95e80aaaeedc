"""Predict the memory of a run on a CPU, or on a GPU with the packs that the run would choose.

On a CPU, weights in the dtype of their files are mapped into memory and not copied. Weights that
are converted take memory in addition to their files while they are loaded.

Heap fragmentation and the workspaces of single products are not counted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmtune.model.files import locate, weight_files
from glmtune.model.load import load_config
from glmtune.model.stored import stored_tensors
from glmtune.recipe.methods import QloraSection
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.pack_size import LARGEST_PACK, choose_tokens
from glmtune.train.plan.simulation import Simulation, Simulator
from glmtune.train.plan.workload import RowLengths, Workload, describe_workload

CUDA_CONTEXT = 2**29  # bytes; a usual figure, not measured here
CUBLAS_WORKSPACE = 2**26  # of cuBLAS and cuBLASLt on Hopper, 32 MiB each; 9 MiB on other cards
RECOMPUTE = "training.gradient_checkpointing=true"
CUDA_BYTES = CUDA_CONTEXT + CUBLAS_WORKSPACE


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
class Estimate:
    """What a run takes, and how it packs its rows.

    Attributes:
        memory: of the run.
        workload: in packs of the length that was chosen.
        recomputes: whether activations are recomputed in the backward pass, be it because the
            recipe says so or because not even its smallest packs fit otherwise.
    """

    memory: Memory
    workload: Workload
    recomputes: bool


class MemoryEstimator:
    """Predicts the memory of a recipe on a CPU or a GPU.

    Args:
        rows: the lengths of the data, None if it is not available.
        device: to run on; it need not exist here.
        base: bytes that are taken before the run starts.
    """

    def __init__(self, rows: RowLengths | None, device: torch.device, base: int) -> None:
        self.rows, self.device, self.base = rows, device, base
        self._simulators: dict[str, Simulator] = {}

    def estimate(self, recipe: Recipe, capacity: int | None = None) -> Estimate:
        """Add up what a run takes on the device.

        Args:
            recipe: the run.
            capacity: free bytes of a GPU, by which the run chooses its packs; None takes those of
                the recipe.

        Raises:
            CheckpointError, DataError, RecipeError: as in training.
        """
        workload = describe_workload(recipe, self.rows)
        may_choose = self.device.type != "cpu" and recipe.training.average == "tokens"
        if capacity is not None and may_choose:
            return self._choose(recipe, workload, capacity)
        memory = self._memory(recipe, self._simulate(recipe, workload))
        return Estimate(memory, workload, bool(recipe.training.gradient_checkpointing))

    def _choose(self, recipe: Recipe, least: Workload, capacity: int) -> Estimate:
        """Choose the packs as `pack_size.fit_packs` does, by simulated memory."""
        used = [recipe]
        workloads = {least.max_tokens: least}

        def bytes_taken(tokens: int) -> int | None:
            if tokens not in workloads:
                workloads[tokens] = describe_workload(recipe, self.rows, tokens)
            found = self._simulate(used[-1], workloads[tokens])
            taken = found.activations + found.gradients
            return taken if taken <= free_bytes() else None

        def free_bytes() -> int:
            found = self._simulate(used[-1], least)
            return capacity - self.base - found.frozen - found.trained - found.optimizer

        def recompute() -> None:
            used.append(build_recipe(recipe.model_dump(mode="json"), [RECOMPUTE]))

        chosen = choose_tokens(
            least.max_tokens,
            min(least.step_tokens, LARGEST_PACK),
            free_bytes=free_bytes,
            bytes_taken=bytes_taken,
            recompute=recompute,
        )
        if chosen not in workloads:
            workloads[chosen] = describe_workload(recipe, self.rows, chosen)
        memory = self._memory(used[-1], self._simulate(used[-1], workloads[chosen]))
        return Estimate(memory, workloads[chosen], bool(used[-1].training.gradient_checkpointing))

    def _simulate(self, recipe: Recipe, workload: Workload) -> Simulation:
        key = recipe.model_dump_json(include={"model", "adapter", "training", "preference"})
        if key not in self._simulators:
            self._simulators[key] = Simulator(recipe, self.device)
        return self._simulators[key].simulate(
            batch=workload.micro_batch(),
            later=workload.later_micro_batch(),
            proof=workload.proof_row(),
        )

    def _memory(self, recipe: Recipe, parts: Simulation) -> Memory:
        loading = 0
        if self.device.type == "cpu":
            files = converted_bytes(recipe, parts)
            if files is not None:
                loading = parts.frozen + parts.trained + files
        return Memory(
            base=self.base,
            weights=parts.frozen,
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
    return max(sizes) if recipe.model.compute is not None or is_nf4 else sum(sizes)
