"""Proof that everything that is trained learns: after the first step, and at the end of a run.

Trained parameters are grouped into parts: an adapted layer with its few small matrices, or a single
tensor of the model itself. A part that gets no gradient, or ends unchanged, is an error that names
it, since the loss curve of a run looks healthy even if half of the parts are dead.

    lora_A, lora_B of one layer    B is zero initially, so at first only B gets a gradient
    a scale, a prefix, a weight    gets a gradient from the first step
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glmtune.errors import TrainingError, some

Parts = dict[str, dict[str, nn.Parameter]]


@dataclass(frozen=True, slots=True)
class Start:
    """A trained tensor before the first step.

    Attributes:
        digest: SHA-256 of its bytes.
        is_zero: whether it was all zeros.
    """

    digest: str
    is_zero: bool


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
        name: Start(digest(parameter), not bool(parameter.any()))
        for part in trained_parts(model).values()
        for name, parameter in part.items()
    }


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


def check_changed(model: nn.Module, start: Mapping[str, Start]) -> None:
    """Check, after training, that every part has changed and is finite.

    A tensor that was zero must not be zero; in a part without such tensors, every one must differ.

    Raises:
        TrainingError: names the parts that did not learn.
    """
    dead = [part for part, tensors in trained_parts(model).items() if not _learned(tensors, start)]
    if dead:
        raise TrainingError(
            f"the update of {some(dead)} is zero or not finite, so it did not learn. "
            "A learning rate of 0, an adam_epsilon far above the gradients, or float16 weights "
            "do this."
        )


def _learned(tensors: Mapping[str, nn.Parameter], start: Mapping[str, Start]) -> bool:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        return False
    from_zero = [tensor for name, tensor in tensors.items() if start[name].is_zero]
    if from_zero:
        return all(bool(tensor.any()) for tensor in from_zero)
    return all(digest(tensor) != start[name].digest for name, tensor in tensors.items())
