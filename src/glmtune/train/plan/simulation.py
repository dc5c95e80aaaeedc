r"""Simulate a training step on the heaviest pack with fake tensors, to predict its memory.

The run's own code computes with tensors that have a shape, a dtype and a lifetime but no data; only
token ids, labels and segment boundaries are real, since they decide shapes. The peak of live bytes
is what the activations take, for any model, method, loss and checkpointing:

    weights ..........................................   allocated all the time
    trained, gradients, optimizer ....................   allocated from the first step on
    activations         /\          /\                   counted at their peak
                  _____/  \________/  \____
"""

import copy
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glmtune.data.batches import MicroBatch
from glmtune.methods import method
from glmtune.model.layers import decoder_layers
from glmtune.objective.next_token import next_token_loss
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
from glmtune.train.precision import autocast

SHALLOW = (2, 3)  # layers of the two models that are simulated


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


def make_meta_model(recipe: Recipe, device: torch.device) -> Any:
    """Create, on the meta device, the model that a run would load for `device`.

    Raises:
        CheckpointError, RecipeError: as in training.
    """
    model = load_base(recipe, device, device_map="meta")
    if recipe.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def attach_meta_adapter(model: Any, recipe: Recipe) -> Any:
    """Attach the adapter; no file is read to initialize it.

    Raises:
        RecipeError: as in training.
    """
    section = recipe.adapter
    fields = {"name_or_path": None, "init_lora_weights": True}
    known = type(section).model_fields
    section = section.model_copy(update={k: v for k, v in fields.items() if k in known})
    return method.attach(model, section).train()


def simulate(
    recipe: Recipe,
    batch: MicroBatch,
    later: MicroBatch | None,
    proof: MicroBatch,
    device: torch.device,
) -> Simulation:
    """Simulate a step and a proof.

    All layers are alike, so the memory of a deep model is extrapolated from two shallow ones.

    Args:
        recipe: the run.
        batch: the heaviest pack, as the first of its step; its tensors are real.
        later: the heaviest pack that is not the first of its step, if there is any.
        proof: the row that the proof of the saved files uses.
        device: to run on; it need not exist here.

    Raises:
        CheckpointError, RecipeError: as in training.
    """
    model = make_meta_model(recipe, device)
    num_layers = len(decoder_layers(model))
    few, more = SHALLOW
    if num_layers <= more or needs_all_layers(recipe.adapter):
        return _simulate(model, recipe, batch, later, proof)
    small, large = (_simulate(keep_layers(model, n), recipe, batch, later, proof) for n in SHALLOW)
    fields: dict[str, Any] = {}
    for name in small.__slots__:
        a, b = getattr(small, name), getattr(large, name)
        fields[name] = a if a == b else a + (b - a) * (num_layers - few) // (more - few)
    return Simulation(**fields)


def keep_layers(model: Any, num_layers: int) -> Any:
    """Copy a model, keeping only its first layers."""
    model = copy.deepcopy(model)
    del decoder_layers(model)[num_layers:]
    return model


def needs_all_layers(section: AdapterSection) -> bool:
    """Whether the layers differ in what is trained, so that two of them do not represent all."""
    return isinstance(section, FreezeSection | PromptSection | PtuningV2Section) or any(
        getattr(section, name, None)
        for name in ("layers_to_transform", "rank_pattern", "alpha_pattern")
    )


def _simulate(
    base: Any, recipe: Recipe, batch: MicroBatch, later: MicroBatch | None, proof: MicroBatch
) -> Simulation:
    saved, largest = quantization_savings(base, recipe)
    model = attach_meta_adapter(base, recipe)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _move_to_cpu(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(parameter) for parameter in trained]
    optimizer: Any = make_optimizer(model, recipe.training)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    means = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    frozen = [t for t in (*model.parameters(), *model.buffers()) if not t.requires_grad]
    tracker = MemoryTracker()
    allocated = [tracker.track(tensors) for tensors in (frozen, trained, gradients, means)]
    del gradients, gradient
    if later is None:
        optimizer.zero_grad()  # otherwise they exist, as after an earlier pack
    with tracker:
        for pack in filter(None, (later, batch)):
            with autocast(recipe.training, torch.device("cpu")):
                loss = next_token_loss(model, pack)
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    step = tracker.peak - sum(allocated)
    with tracker, torch.no_grad():
        tracker.reset_peak()
        both = [logits_of(model.eval(), proof) for _ in ("trained", "saved")]
        (both[0] - both[1]).abs().max()
    proving = tracker.peak - sum(allocated)
    if not method.is_adapted(model):  # a second model is loaded in addition to the trained one
        proving += allocated[0] + allocated[1]
    return Simulation(
        frozen=allocated[0] - saved,
        trained=allocated[1],
        gradients=allocated[2],
        optimizer=allocated[3],
        activations=max(step, 0) + largest,
        proof=max(proving, 0) + largest,
        dtype=model.get_input_embeddings().weight.dtype,
    )


def _move_to_cpu(model: Any) -> None:
    """Replace every tensor; `to_empty` rejects those that have a weak reference."""
    for module in model.modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors:
            empty = torch.empty_like(tensor, device="cpu")
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, tensor.requires_grad)
            setattr(module, name, empty)
    model.tie_weights()


def quantization_savings(model: Any, recipe: Recipe) -> tuple[int, int]:
    """Return the bytes that quantization (QLoRA) saves, and those of the largest unpacked weight.

    In 4 bits, 64 numbers share a scale of 1 byte (4 bytes without double quantization). In 8 bits,
    a row has a float32 scale.
    """
    section = recipe.adapter
    if not isinstance(section, QloraSection):
        return 0, 0
    head = model.get_output_embeddings()
    saved, largest = 0.0, 0
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            weight = module.weight
            scales = (1 if section.double_quantization else 4) * weight.numel() / 64
            if section.quantization_bit == 8:
                scales = 4 * weight.size(0)
            saved += weight.nbytes - weight.numel() * section.quantization_bit / 8 - scales
            largest = max(largest, weight.nbytes)
    return round(saved), largest


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the bytes of live tensors and their peak.

    torch keeps one Python object for each storage as long as the storage lives, so a weak reference
    to it tells when the memory is freed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive = 0
        self._storages: dict[int, weakref.ref[UntypedStorage]] = {}

    def track(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that exist already, and return their bytes."""
        before = self._alive
        for tensor in tensors:
            self._add(tensor)
        return self._alive - before

    def reset_peak(self) -> None:
        """Set the peak to what is alive now."""
        self.peak = self._alive

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def forget(_: object) -> None:
            self._alive -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, forget)
        self._alive += size
        self.peak = max(self.peak, self._alive)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*_positions_for_masks(args), **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result


def _positions_for_masks(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace a boolean index by positions: only the real mask knows how many it selects."""
    if not args or not isinstance(args[0], FakeTensor):
        return args
    return tuple(
        [
            position
            for index in arg
            for position in (index.nonzero().unbind(1) if _is_mask(index) else (index,))
        ]
        if isinstance(arg, list | tuple) and any(map(_is_mask, arg))
        else arg
        for arg in args
    )


def _is_mask(index: Any) -> bool:
    return (
        isinstance(index, Tensor)
        and index.dtype == torch.bool
        and not isinstance(index, FakeTensor)
    )
