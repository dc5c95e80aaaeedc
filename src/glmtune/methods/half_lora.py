"""LoRA layers of peft that compute their update in the dtype of 16-bit activations.

peft computes it in float32. On a CPU that stays so. On an accelerator a plain update is computed as
`glmtune.kernels.lora_product` describes, where

    the activations are 16 bits, and autocast is off      otherwise peft's way
    A and B are plain linear layers without bias          DoRA, PiSSA and other variants: peft's way
    nothing watches or wraps A, B                         hooks see what peft computes

If the layer itself is plain, too, its product is a part of the same function; the output of any
other (quantized, watched by a hook) is added to.

A layer gets a class of our own that is a subclass of its class, as `fully_shard` of torch does it,
so peft still saves, merges, disables, adds and deletes adapters.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.kernels.half_precision import HALF, HalfInputLinear
from glmtune.kernels.lora_product import add_update, lora_linear

# Classes of peft, by name: their modules import what quantizes.
KINDS = ("Linear", "Linear4bit", "Linear8bitLt", "TorchaoLoraLinear")
LEFT_TO_PEFT: tuple[str, ...] = ("cpu",)  # types of devices whose numbers are those of float32


def use_half_updates(layer: Any) -> None:
    """Let a LoRA layer of peft choose the faster way, in place; a second time changes nothing."""
    kind: Any = type(layer)
    if kind.__name__ in KINDS:
        layer.__class__ = _with_half_updates(kind)


class _HalfUpdates(nn.Module):
    """The part of such a class that is our own."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the layer and the active adapters."""
        layer: Any = self
        names = [] if x.device.type in LEFT_TO_PEFT else _plain_updates(layer, x)
        if not names or args or kwargs:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        base, dropouts = layer.base_layer, layer.lora_dropout
        if len(names) == 1 and _is_plain_linear(base, x) and not _drops(dropouts[names[0]]):
            return lora_linear(x, base.weight, base.bias, *_update(layer, names[0]))
        y: Tensor = base(x)
        for name in names:
            dropped = dropouts[name](x) if _drops(dropouts[name]) else x
            y = add_update(y, dropped, *_update(layer, name))
        return y


@cache
def _with_half_updates(kind: Any) -> Any:
    """Make the class of LoRA layers of a kind."""
    return type(f"Half{kind.__name__}", (_HalfUpdates, kind), {})


def _plain_updates(layer: Any, x: Tensor) -> list[str]:
    """Name the active adapters, if all of them are plain and 16 bits are what they get."""
    device = x.device.type
    if x.dtype not in HALF or layer.disable_adapters or layer.merged:
        return []
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return []
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    return names if all(_is_plain_update(layer, name) for name in names) else []


def _is_plain_update(layer: Any, name: str) -> bool:
    a, b = layer.lora_A[name], layer.lora_B[name]
    is_plain = type(a) in (nn.Linear, HalfInputLinear) and type(b) is nn.Linear and b.bias is None
    return is_plain and name not in layer.lora_variant and not (_is_wrapped(a) or _is_wrapped(b))


def _is_plain_linear(base: Any, x: Tensor) -> bool:
    """Whether a layer is a frozen product with a weight of the dtype of x, and nothing more."""
    if type(base) is not nn.Linear or type(base.weight) is not nn.Parameter or _is_wrapped(base):
        return False
    tensors = [base.weight] if base.bias is None else [base.weight, base.bias]
    return all(each.dtype == x.dtype and not each.requires_grad for each in tensors)


def _is_wrapped(module: nn.Module) -> bool:
    """Whether hooks, or a `forward` of the instance as accelerate sets it, change or watch it."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return bool(hooks) or "forward" in module.__dict__


def _drops(dropout: nn.Module) -> bool:
    return isinstance(dropout, nn.Dropout) and dropout.p > 0 and dropout.training


def _update(layer: Any, name: str) -> tuple[Tensor, Tensor, float]:
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
