"""Replace the linear layers of a model one after the other, as they are read from mapped files.

    file 1  [embedding][layer 0][layer 1]     unmapped once layer 1 has been replaced
    file 2  [layer 2][layer 3][head]          only now its pages come into memory

A weight loaded from safetensors as it is stored is a view of the file: it takes memory when it is
first read, and gives it back when the last view of that file is gone. So at most one file is in
memory beside what has been made of the others.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def replace_linear(model: Any, make: Callable[[nn.Linear], nn.Module], dtype: torch.dtype) -> None:
    """Freeze a model and replace its linear layers, but for the output layer.

    That one decides between neighbours, and is 4 % of the work. What is not replaced becomes a
    copy in `dtype`, for a view would keep its file.

    Args:
        model: of transformers; changed in place. Its adapters are attached afterwards.
        make: what takes the place of a layer; it keeps no view of the layer's weight.
        dtype: of activations and of all that stays floating point and comes from the checkpoint.
    """
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    stored = set(model.state_dict())

    def is_replaced(module: nn.Module) -> bool:
        return type(module) is nn.Linear and module is not head

    def own(module: nn.Module, prefix: str) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype, copy=True)
        for name, buffer in list(module.named_buffers(recurse=False)):
            is_cast = prefix + name in stored and buffer.is_floating_point()
            setattr(module, name, buffer.to(dtype if is_cast else buffer.dtype, copy=True))

    for path, parent in [(n, m) for n, m in model.named_modules() if not is_replaced(m)]:
        prefix = f"{path}." if path else ""
        for name, child in list(parent.named_children()):
            if is_replaced(child):
                made = make(child)
                own(made, f"{prefix}{name}.")
                setattr(parent, name, made)
        own(parent, prefix)
