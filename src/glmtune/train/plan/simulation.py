r"""The heaviest pack through the run's own code, in tensors without numbers.

Weights and what comes of them have a shape, a dtype and a lifetime, and nothing in them; token
ids, labels and the borders of examples are real, since they decide shapes. The most bytes alive
at once are what the activations take, whatever the model, the method, the loss or the
checkpointing is:

    weights ..........................................   held all the time
    trained, gradients, optimizer ....................   held from the first step on
    activations         /\          /\                   at their peak
                  _____/  \________/  \____
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glmtune.data.batches import MicroBatch
from glmtune.methods import method
from glmtune.methods.logits import logits_of
from glmtune.model.layers import decoder_layers
from glmtune.objective.next_token import next_token_loss
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

SHALLOW = (2, 3)  # layers


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a run holds, in bytes.

    Attributes:
        frozen: weights that stay as they are.
        trained: weights that are learned.
        gradients, optimizer: of those.
        activations: the most that is alive at once in a step besides all these; what there is
            before the gradients are is less by their bytes.
        proof: the same when the saved files are proved at the end.
        dtype: of the embedding in memory.
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    activations: int
    proof: int
    dtype: torch.dtype


def make_empty(recipe: Recipe, device: torch.device) -> Any:
    """Make the model that a run would load for a device, on the meta device.

    Raises:
        CheckpointError, RecipeError: as in training.
    """
    model = load_base(recipe, device, device_map="meta")
    if recipe.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def attach_empty(model: Any, recipe: Recipe) -> Any:
    """Attach what is trained; nothing is read for its first values.

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
    """Take a step and a proof.

    Layers are alike, so a deep model is reckoned from two shallow ones.

    Args:
        recipe: the run.
        batch: the heaviest pack, as the first of its step; its tensors are real.
        later: the heaviest that finds the gradients of another pack, if there is any.
        proof: the row by which what was saved is proved.
        device: where the run would be; it need not be here.

    Raises:
        CheckpointError, RecipeError: as in training.
    """
    whole = make_empty(recipe, device)
    num_layers = len(decoder_layers(whole))
    few, more = SHALLOW
    if num_layers <= more or has_unlike_layers(recipe.adapter):
        return _simulate(whole, recipe, batch, later, proof)
    one, two = (_simulate(shallow(whole, n), recipe, batch, later, proof) for n in SHALLOW)
    numbers: dict[str, Any] = {}
    for name in one.__slots__:
        a, b = getattr(one, name), getattr(two, name)
        numbers[name] = a if a == b else a + (b - a) * (num_layers - few) // (more - few)
    return Simulation(**numbers)


def shallow(model: Any, num_layers: int) -> Any:
    """Copy a model without its upper layers."""
    model = copy.deepcopy(model)
    del decoder_layers(model)[num_layers:]
    return model


def has_unlike_layers(section: AdapterSection) -> bool:
    """Whether layers are trained each in its own way, or together, so that all must be there."""
    return isinstance(section, FreezeSection | PromptSection | PtuningV2Section) or any(
        getattr(section, name, None)
        for name in ("layers_to_transform", "rank_pattern", "alpha_pattern")
    )


def _simulate(
    base: Any, recipe: Recipe, batch: MicroBatch, later: MicroBatch | None, proof: MicroBatch
) -> Simulation:
    packed, widest = packed_bytes(base, recipe)
    model = attach_empty(base, recipe)
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
    tally = Tally()
    held = [tally.hold(tensors) for tensors in (frozen, trained, gradients, means)]
    del gradients, gradient
    if later is None:
        optimizer.zero_grad()  # or they are there, as after another pack
    with tally:
        for pack in filter(None, (later, batch)):
            with autocast(recipe.training, torch.device("cpu")):
                loss = next_token_loss(model, pack)
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    step = tally.peak - sum(held)
    with tally, torch.no_grad():
        tally.start_anew()
        both = [logits_of(model.eval(), proof) for _ in ("trained", "saved")]
        (both[0] - both[1]).abs().max()
    shown = tally.peak - sum(held)
    if not method.is_adapted(model):  # a second model is read beside the trained one
        shown += held[0] + held[1]
    return Simulation(
        frozen=held[0] - packed,
        trained=held[1],
        gradients=held[2],
        optimizer=held[3],
        activations=max(step, 0) + widest,
        proof=max(shown, 0) + widest,
        dtype=model.get_input_embeddings().weight.dtype,
    )


def _move_to_cpu(model: Any) -> None:
    """Make every tensor anew; `to_empty` refuses those that something has a weak reference to."""
    for module in model.modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors:
            empty = torch.empty_like(tensor, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(
                module, name, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            )
    model.tie_weights()


def packed_bytes(model: Any, recipe: Recipe) -> tuple[int, int]:
    """Give what packing (QLoRA) takes off the weights, and the widest one unpacked for use.

    A weight of 4 bits has a scale of a byte per 64 numbers (of 4 bytes if they are not packed
    too), and one of 8 bits a float32 per row.
    """
    section = recipe.adapter
    if not isinstance(section, QloraSection):
        return 0, 0
    head = model.get_output_embeddings()
    saved, widest = 0.0, 0
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            weight = module.weight
            scales = (1 if section.double_quantization else 4) * weight.numel() / 64
            if section.quantization_bit == 8:
                scales = 4 * weight.size(0)
            saved += weight.nbytes - weight.numel() * section.quantization_bit / 8 - scales
            widest = max(widest, weight.nbytes)
    return round(saved), widest


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive = 0
        self._sizes: dict[int, tuple[StorageWeakRef, int]] = {}

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that are there already, and give their bytes."""
        before = self._alive
        for tensor in tensors:
            self._add(tensor)
        return self._alive - before

    def start_anew(self) -> None:
        """Forget the peak so far."""
        self._forget_dead()
        self.peak = self._alive

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._sizes:  # a weak reference keeps the address from being reused
            return
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._sizes[storage._cdata] = (reference, storage.nbytes())
        self._alive += storage.nbytes()
        if self._alive > self.peak:
            self._forget_dead()
            self.peak = max(self.peak, self._alive)

    def _forget_dead(self) -> None:
        expired: Any = StorageWeakRef.expired
        for key in [key for key, (reference, _) in self._sizes.items() if expired(reference)]:
            self._alive -= self._sizes.pop(key)[1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*_positions_for_masks(args), **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result


def _positions_for_masks(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Index by positions where a mask does, since how many it picks is known of it alone."""
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
