"""Replace the linear layers of a model in order, while their weights are memory-mapped files.

    file 1  [embedding][layer 0][layer 1]     unmapped once layer 1 has been replaced
    file 2  [layer 2][layer 3][head]          its pages are read only now

A weight loaded from safetensors in its stored dtype is a view of the mapped file: its pages enter
memory when it is first read, and are released with the last view of that file. So at most one file
is in memory besides the layers already replaced.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from glmtune.kernels.finite import check_finite


def replace_linear(
    model: Any,
    make: Callable[[nn.Linear], nn.Module],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> None:
    """Freeze a model and replace its linear layers, except for the output layer.

    The output layer stays exact, since near-equal logits decide which token is chosen, and it is
    4 % of the work. Everything else is copied to `dtype`, since a view would keep its file mapped.

    Args:
        model: a model of transformers; changed in place. Adapters are attached afterwards.
        make: makes the replacement of a layer, which keeps no view of the layer's weight.
        dtype: of activations, and of all floating-point tensors of the checkpoint that remain.
        device: where everything goes; None leaves it where it is. A layer is replaced there, so
            that only one at a time is there in its stored dtype.

    Raises:
        CheckpointError: a weight is not finite; names it.
    """
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    stored = set(model.state_dict())

    def is_replaced(module: nn.Module) -> bool:
        return type(module) is nn.Linear and module is not head

    def check(module: nn.Module, prefix: str) -> None:
        own = dict(module.named_parameters(recurse=False))
        check_finite(model.name_or_path, {prefix + name: each for name, each in own.items()})

    def copy_tensors(module: nn.Module, prefix: str) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(device, dtype, copy=True)
        for name, buffer in list(module.named_buffers(recurse=False)):
            is_cast = prefix + name in stored and buffer.is_floating_point()
            setattr(module, name, buffer.to(device, dtype if is_cast else buffer.dtype, copy=True))

    parents = [(path, m) for path, m in model.named_modules() if not is_replaced(m)]
    for path, parent in parents:
        prefix = f"{path}." if path else ""
        for name, child in list(parent.named_children()):
            if is_replaced(child):
                child.to(device)
                check(child, f"{prefix}{name}.")
                made = make(child)
                copy_tensors(made, f"{prefix}{name}.")
                setattr(parent, name, made)
        check(parent, prefix)
        copy_tensors(parent, prefix)
