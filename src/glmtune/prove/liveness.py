"""Proof that everything that is trained learns: after the first step, and at the end of a run.

Trained parameters are grouped into parts: an adapted layer with its few small matrices, or a single
tensor of the model itself. A part that gets no gradient, or ends unchanged, is an error that names
it, since the loss curve of a run looks healthy even if half of the parts are dead.

    lora_A, lora_B of one layer    B is zero initially, so at first only B gets a gradient
    a scale, a prefix, a weight    gets a gradient from the first step

A bit that changed is not enough: Adam moves a number by about the learning rate in a step, in
random directions by its square root in many. A part that moved by less than a hundredth of that
was held back by something, such as clipping or a warm-up longer than the run.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import TrainingError, some
from glmtune.methods.layers import adapted_layers

SAMPLE = 2**16  # numbers of a tensor that are compared
LEAST_MOVE = 0.01  # of what Adam moves a number by in as many steps
LEAST_SCALE = 1e-4  # of the update of a LoRA layer

Parts = dict[str, dict[str, nn.Parameter]]


@dataclass(frozen=True, slots=True)
class Start:
    """A trained tensor before the first step.

    Attributes:
        digest: SHA-256 of its bytes.
        is_zero: whether it was all zeros.
        sample: numbers of it, evenly spaced, float32 on the CPU.
    """

    digest: str
    is_zero: bool
    sample: Tensor


def trained_parts(model: nn.Module) -> Parts:
    """Group trained parameters into parts, by their names in the base model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    parts: Parts = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = next((layer for layer in layers if name.startswith(f"{layer}.")), name)
            parts.setdefault(_plain(owner), {})[name] = parameter
    return parts


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


def remember(model: nn.Module) -> dict[str, Start]:
    """Record every trained tensor before the first step."""
    return {
        name: Start(digest(parameter), not bool(parameter.any()), _sample(parameter))
        for part in trained_parts(model).values()
        for name, parameter in part.items()
    }


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    step = -(-flat.numel() // SAMPLE) or 1
    return flat[::step].to("cpu", torch.float32, copy=True)


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu()
    return hashlib.sha256(flat.numpy().data).hexdigest()


def check_gradients(model: nn.Module) -> None:
    """Check, after the first backward pass, that every part has a gradient.

    Raises:
        TrainingError: names the parts that would never learn.
    """
    dead = [
        part
        for part, tensors in trained_parts(model).items()
        if not any(p.grad is not None and bool(p.grad.any()) for p in tensors.values())
    ]
    if dead:
        raise TrainingError(
            f"{some(dead)} got no gradient in the first step and would never learn. "
            "The layer may be unused by the model, or detached by a frozen or quantized part."
        )


def check_changed(
    model: nn.Module, start: Mapping[str, Start], steps: int = 0, learning_rate: float = 0.0
) -> None:
    """Check, after training, that every part has changed, is finite, and moved far enough.

    A tensor that was zero must not be zero; in a part without such tensors, every one must differ.

    Args:
        model: after training.
        start: what `remember` returned.
        steps: optimizer steps that were taken.
        learning_rate: the highest of the run.

    Raises:
        TrainingError: names the parts that did not learn.
    """
    parts = trained_parts(model)
    dead = [part for part, tensors in parts.items() if not _learned(tensors, start)]
    if dead:
        raise TrainingError(
            f"the update of {some(dead)} is zero or not finite, so it did not learn. "
            "A learning rate of 0, an adam_epsilon far above the gradients, or float16 weights "
            "do this."
        )
    expected = learning_rate * steps**0.5
    moved = {part: _moved(tensors, start) for part, tensors in parts.items()}
    slow = [part for part, distance in moved.items() if distance < LEAST_MOVE * expected]
    if slow:
        raise TrainingError(
            f"{some(slow)} moved by {min(moved.values()):.2g}, where {steps} steps at a learning "
            f"rate of {learning_rate:g} move a number by about {expected:.2g}, so next to nothing "
            "was learned. A max_grad_norm or an adam_epsilon that outweighs the gradients, or a "
            "warm-up much longer than the run, does this."
        )
    weak = [name for name, layer in adapted_layers(model) if _scale(layer) < LEAST_SCALE]
    if weak:
        raise TrainingError(
            f"the update of {some(weak)} is multiplied by lora_alpha / r, less than "
            f"{LEAST_SCALE:g}, so next to nothing of it is left. Set adapter.lora_alpha to twice "
            "adapter.r."
        )


def _moved(tensors: Mapping[str, nn.Parameter], start: Mapping[str, Start]) -> float:
    """Return how far a part moved: the root mean square over its numbers that did.

    Of an embedding only the rows that occur move. Where none of the sampled numbers did, nothing
    is known.
    """
    from_zero = [name for name in tensors if start[name].is_zero]
    distances = []
    for name in from_zero or tensors:
        change = _sample(tensors[name]) - start[name].sample
        if change.any():
            distances.append(change[change != 0].square().mean().sqrt().item())
    return min(distances, default=float("inf"))


def _scale(layer: Any) -> float:
    """Return what the update of a LoRA layer is multiplied by."""
    return abs(float(layer.scaling["default"]))


def _learned(tensors: Mapping[str, nn.Parameter], start: Mapping[str, Start]) -> bool:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        return False
    from_zero = [tensor for name, tensor in tensors.items() if start[name].is_zero]
    if from_zero:
        return all(bool(tensor.any()) for tensor in from_zero)
    return all(digest(tensor) != start[name].digest for name, tensor in tensors.items())
