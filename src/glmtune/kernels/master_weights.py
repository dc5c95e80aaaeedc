"""Float32 master weights for what is trained of a half-precision model itself.

In bfloat16 an update below 1/256 of a weight is rounded away, and at a fine-tuning learning rate
that is most of them. So the optimizer steps a float32 copy, and a layer computes with that copy
rounded to the dtype of the model:

    module.weight          rounded, as anyone computes with it who loads it into the same model
    named_parameters()     the float32 master: what is stepped, and what is saved

The gradient passes through the rounding unchanged. Source: https://arxiv.org/abs/1710.03740.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.kernels.half_precision import HALF


def keep_masters(model: nn.Module) -> None:
    """Give every trained half-precision weight of a model a float32 master, in place.

    Weights that are frozen, and those that are float32 already, stay as they are.
    """
    for module in list(model.modules()):
        names = tuple(
            name
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad and parameter.dtype in HALF
        )
        if not names:
            continue
        dtype = module.get_parameter(names[0]).dtype
        for name in names:
            parameter = module.get_parameter(name)
            parameter.data = parameter.data.float()
        kind: Any = type(module)
        module.__class__ = _rounding(kind, names, dtype)  # as torch's fully_shard does


@cache
def _rounding(kind: Any, names: tuple[str, ...], dtype: torch.dtype) -> Any:
    """Make a class of modules that compute with some of their parameters rounded."""

    def rounded(name: str) -> property:
        def get(module: nn.Module) -> Tensor | None:
            master = module._parameters[name]
            return None if master is None else master.to(dtype)

        return property(get)

    return type(f"{kind.__name__}WithMasters", (kind,), {name: rounded(name) for name in names})
