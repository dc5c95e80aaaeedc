r"""Simulate a training step on the heaviest pack with tensors without data, to predict its memory.

The run's own code computes with tensors that have a shape, a dtype and a lifetime but no data; only
token ids, labels and segment boundaries are real, since they decide shapes. The peak of live bytes
is what the activations take, for any model, method, loss and checkpointing:

    weights ..........................................   allocated all the time
    trained, gradients, optimizer ....................   allocated from the first step on
    activations         /\          /\                   counted at their peak
                  _____/  \________/  \____

For a GPU ChatGLM is simulated on `meta`, where it takes the way of a GPU: variable-length
attention, large chunks. Other families read values of `meta` tensors, autocast does not exist
there, and attention in float32 has no kernel; they are simulated as on a CPU (`HostShape`).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from glmtune import machine
from glmtune.data.batches import MicroBatch
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.kernels.half_precision import widen
from glmtune.kernels.int8 import quantize
from glmtune.methods import method
from glmtune.model.layers import decoder_layers
from glmtune.objective.next_token import Objective
from glmtune.prove.saved import logits_of
from glmtune.recipe.methods import (
    AdapterSection,
    FreezeSection,
    PromptSection,
    PtuningV2Section,
    QloraSection,
)
from glmtune.recipe.recipe import Recipe
from glmtune.train.load_model import load_base
from glmtune.train.optimizer import make_optimizer
from glmtune.train.plan.shapes import CPU, META, HostShape, MemoryTracker
from glmtune.train.precision import autocast
from glmtune.train.run import choose_task

SHALLOW = (2, 3)  # layers of the two models that are simulated
CUDA_ROUNDING = 512  # bytes; torch's allocator gives multiples
FP8_COPIES = 1  # of a weight; the backward pass copies one layer's at a time, in another order
ROWS_PER_EXAMPLE = 128  # that the backward pass of flash attention adds to each example


@dataclass(frozen=True, slots=True)
class Simulation:
    """The memory of a run, in bytes.

    Attributes:
        frozen: frozen weights.
        trained: trainable weights.
        gradients, optimizer: of the trainable weights.
        activations: the most that is alive at once in a step in addition to all these. While
            gradients do not exist yet, their bytes are subtracted.
        proof: the same for the proof of the saved files at the end.
        dtype: of the embedding in memory.
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    activations: int
    proof: int
    dtype: torch.dtype


class Simulator:
    """Simulates steps and proofs of one run.

    All layers are alike, so the memory of a deep model is extrapolated from two shallow ones. What
    a pack takes is remembered.

    Args:
        recipe: the run.
        device: to run on; it need not exist here.

    Raises:
        CheckpointError, RecipeError: as in training.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        model = make_meta_model(recipe, device)
        self._num_layers = len(decoder_layers(model))
        self._is_whole = self._num_layers <= SHALLOW[1] or needs_all_layers(recipe.adapter)
        if self._is_whole:
            self._models = [ShallowModel(model, recipe, device)]
        else:
            self._models = [ShallowModel(keep_layers(model, n), recipe, device) for n in SHALLOW]
        self._known: dict[tuple[Any, ...], Simulation] = {}

    def simulate(
        self, batch: MicroBatch, later: MicroBatch | None, proof: MicroBatch
    ) -> Simulation:
        """Simulate a step and a proof.

        Args:
            batch: the heaviest pack, as the first of its step; its tensors are real.
            later: the heaviest pack that is not the first of its step, if there is any.
            proof: the row that the proof of the saved files uses.
        """
        key = tuple(map(_shape_of, (batch, later, proof)))
        if key not in self._known:
            found = [model.simulate(batch, later, proof) for model in self._models]
            self._known[key] = found[0] if self._is_whole else self._extrapolate(*found)
        return self._known[key]

    def _extrapolate(self, small: Simulation, large: Simulation) -> Simulation:
        few, more = SHALLOW
        fields: dict[str, Any] = {}
        for name in small.__slots__:
            a, b = getattr(small, name), getattr(large, name)
            fields[name] = a if a == b else a + (b - a) * (self._num_layers - few) // (more - few)
        return Simulation(**fields)


def simulate(
    recipe: Recipe,
    batch: MicroBatch,
    later: MicroBatch | None,
    proof: MicroBatch,
    device: torch.device,
) -> Simulation:
    """Simulate a step and a proof of a run; see `Simulator`."""
    return Simulator(recipe, device).simulate(batch, later, proof)


def _shape_of(part: MicroBatch | None) -> tuple[Any, ...] | None:
    """Return what decides the memory of a pack: its rows, and which tokens are learned."""
    if part is None:
        return None
    ends = () if part.cu_seq_lens is None else tuple(part.cu_seq_lens.tolist())
    return (ends, hash(part.labels.numpy().tobytes()))


def make_meta_model(recipe: Recipe, device: torch.device) -> Any:
    """Create, on the meta device, the model that a run would load for `device`.

    model.compute is left out: `attach_meta_adapter` quantizes the layers that are kept.

    Raises:
        CheckpointError, RecipeError: as in training.
    """
    section = recipe.model.model_copy(update={"compute": None})
    training = recipe.training
    if recipe.model.compute is not None:  # or layers would be replaced already
        training = training.model_copy(update={"fp16": True})
    plain = recipe.model_copy(update={"model": section, "training": training})
    return load_base(plain, device, device_map="meta")


def attach_meta_adapter(model: Any, recipe: Recipe, device: torch.device) -> Any:
    """Quantize the layers for a CPU, and attach the adapter; no file is read to initialize it.

    For a GPU `quantization_savings` counts what quantization saves.

    Raises:
        RecipeError: as in training.
    """
    section = recipe.adapter
    fields = {"name_or_path": None, "init_lora_weights": True}
    known = type(section).model_fields
    section = section.model_copy(update={k: v for k, v in fields.items() if k in known})
    if recipe.model.compute == "int8" and device.type == "cpu":
        dtype = model.get_input_embeddings().weight.dtype
        quantize(model, dtype)
        if dtype not in machine.fast_cpu_dtypes():
            widen(model)
    model = method.attach(model, section).train()
    if recipe.training.gradient_checkpointing:  # after the adapter, as in training
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def keep_layers(model: Any, num_layers: int) -> Any:
    """Copy a model, keeping only its first layers."""
    layers = decoder_layers(model)
    left_out = layers[num_layers:]
    del layers[num_layers:]
    copied = copy.deepcopy(model)
    layers.extend(left_out)
    return copied


def needs_all_layers(section: AdapterSection) -> bool:
    """Whether the layers differ in what is trained, so that two of them do not represent all."""
    return isinstance(section, FreezeSection | PromptSection | PtuningV2Section) or any(
        getattr(section, name, None)
        for name in ("layers_to_transform", "rank_pattern", "alpha_pattern")
    )


class ShallowModel:
    """A model without data, and what a step of it takes.

    Args:
        base: on the meta device; it is changed.
        recipe: of the run.
        device: to run on; it need not exist here.
    """

    def __init__(self, base: Any, recipe: Recipe, device: torch.device) -> None:
        self._recipe = recipe
        self._objective: Objective = choose_task(recipe, cross_entropy_sum).objective
        self._is_on_gpu = device.type != "cpu"
        self._saved, self._largest = quantization_savings(base, recipe, device)
        self._model = attach_meta_adapter(base, recipe, device)
        self._device = META if self._is_on_gpu and runs_on_meta(base, recipe) else CPU
        if self._device == CPU:
            _pretend_on_cpu(self._model)
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        section = recipe.training.model_copy(update={"optim": "adamw_torch"})
        self._optimizer: Any = make_optimizer(self._model, section)
        self._make_gradients()
        self._optimizer.step()
        rounding = CUDA_ROUNDING if self._is_on_gpu else 1
        self._tracker = MemoryTracker(rounding, hidden_bytes if self._is_on_gpu else None)
        both = (*self._model.parameters(), *self._model.buffers())
        frozen = [tensor for tensor in both if not tensor.requires_grad]
        states = self._optimizer.state.values()
        means = [tensor for state in states for tensor in state.values() if tensor.ndim]
        gradients = [parameter.grad for parameter in self._trained]
        kinds: list[Any] = [frozen, self._trained, gradients, means]
        self._allocated = [self._tracker.track(kind) for kind in kinds]
        del gradients, kinds
        self._optimizer.zero_grad()

    def _make_gradients(self) -> None:
        for parameter in self._trained:
            parameter.grad = torch.zeros_like(parameter)

    def simulate(
        self, batch: MicroBatch, later: MicroBatch | None, proof: MicroBatch
    ) -> Simulation:
        """Simulate a step and a proof, as `Simulator.simulate`."""
        tracker, held = self._tracker, sum(self._allocated)
        with tracker:
            tracker.reset_peak()
            if later is not None:
                self._make_gradients()
                self._learn(later)
            if later is None or _shape_of(later) != _shape_of(batch):
                self._learn(batch)
            step = tracker.peak - held
        with tracker, torch.no_grad():
            tracker.reset_peak()
            self._model.eval()
            row = proof.to(self._device)
            both = [logits_of(self._model, row) for _ in ("trained", "saved")]
            (both[0] - both[1]).abs().max()
            del both
            self._model.train()
        proving = tracker.peak - held
        if not method.is_adapted(self._model):  # a second model is loaded besides the trained one
            proving += self._allocated[0] + self._allocated[1]
        frozen, trained, gradients, means = self._allocated
        return Simulation(
            frozen=frozen - self._saved,
            trained=trained,
            gradients=gradients,
            optimizer=optimizer_bytes(means, self._recipe.training.optim),
            activations=max(step, 0) + self._largest,
            proof=max(proving, 0) + self._largest,
            dtype=self._model.get_input_embeddings().weight.dtype,
        )

    def _learn(self, pack: MicroBatch) -> None:
        """Take a step on one pack."""
        if self._recipe.has_labels and pack.cu_seq_lens is not None:
            number = pack.cu_seq_lens.numel() - 1
            pack = replace(pack, is_good=torch.ones(number, dtype=torch.bool))
        with autocast(self._recipe.training, self._device):
            loss = self._objective.loss(self._model, pack.to(self._device))
        loss.backward()  # type: ignore[no-untyped-call]
        del loss
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        if not self._is_on_gpu:  # where one kernel takes the step, without intermediate tensors
            self._optimizer.step()
        self._optimizer.zero_grad()


def optimizer_bytes(float32_bytes: int, optim: str) -> int:
    """Count the state of an optimizer, from that of AdamW in float32.

    In 8 bits, 256 numbers share a float32 scale. That small tensors stay in float32 is left out.
    """
    return float32_bytes if optim == "adamw_torch" else round(float32_bytes / 4 * (1 + 4 / 256))


def runs_on_meta(model: Any, recipe: Recipe) -> bool:
    """Whether a model takes the way of a GPU with tensors on `meta`, without reading a value."""
    dtype = model.get_input_embeddings().weight.dtype
    is_chatglm = getattr(model.config, "model_type", "") == "chatglm"
    return is_chatglm and dtype.itemsize == 2 and recipe.training.autocast is None


def hidden_bytes(function: Any, arguments: tuple[Any, ...]) -> int:
    """Count what flash attention's backward pass allocates within.

    Gradients of keys and values for every query head, those of the queries in float32, with up to
    128 rows more for each example (aten's flash_api.cpp).
    """
    if "_varlen_attn_backward" not in str(function):
        return 0
    query: Tensor = arguments[1]
    key: Tensor = arguments[2]
    tokens, heads, head_dim = query.shape
    ends = next((a for a in arguments if isinstance(a, Tensor) and a.dtype == torch.int32), None)
    examples = 0 if ends is None else ends.numel() - 1
    width = heads * head_dim
    expanded = 2 * key.size(0) * width * query.element_size() if key.size(1) != heads else 0
    return expanded + 4 * (tokens + ROWS_PER_EXAMPLE * examples) * width


def _pretend_on_cpu(model: Any) -> None:
    """Replace every tensor by one that has the device "cpu" and no data."""
    made: dict[int, Any] = {}  # shared tensors stay shared
    for module in model.modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors:
            if id(tensor) not in made:
                empty: Any = HostShape(torch.empty_like(tensor, device=META))
                if isinstance(tensor, nn.Parameter):
                    empty = nn.Parameter(empty, tensor.requires_grad)
                made[id(tensor)] = (tensor, empty)
            setattr(module, name, made[id(tensor)][1])
    model.tie_weights()


def quantization_savings(model: Any, recipe: Recipe, device: torch.device) -> tuple[int, int]:
    """Return the bytes that quantization saves, and those of the largest copy of a weight.

    In 4 bits, 64 numbers share a scale of 1 byte (4 bytes without double quantization). In 8 bits,
    a row has a float32 scale. NF4 unpacks a weight for its product, and 8 bits are copied in
    another order for the backward pass. On a CPU model.compute has changed the model already.
    """
    section, compute = recipe.adapter, recipe.model.compute
    if device.type == "cpu":
        compute = None
    if compute is None and not isinstance(section, QloraSection):
        return 0, 0
    saved, largest = 0, 0
    for linear in _frozen_linear_layers(model):
        weight = linear.weight
        saved += weight.nbytes - round(_packed_bytes(weight, section, compute))
        largest = max(largest, weight.nbytes if compute is None else weight.numel())
    return saved, largest


def _frozen_linear_layers(model: Any) -> Iterator[nn.Linear]:
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield module


def _packed_bytes(weight: Tensor, section: AdapterSection, compute: str | None) -> float:
    """Count the bytes of a quantized weight with its scales."""
    in_8_bits = weight.numel() + 4 * weight.size(0)
    if compute is not None:
        return in_8_bits * (FP8_COPIES if compute == "fp8" else 1)
    assert isinstance(section, QloraSection)
    if section.quantization_bit == 8:
        return in_8_bits
    return weight.numel() / 2 + (1 if section.double_quantization else 4) * weight.numel() / 64
