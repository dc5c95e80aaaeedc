"""Weights dealt out among processes (FSDP2): each holds a part, and borrows a layer to compute it.

    a layer's weights      rank 0 [####    ]   forward, backward: all gather it, use it, let it go
                           rank 1 [    ####]   gradients: summed, and each keeps its part's

All processes must meet in every forward pass, and in whatever asks for a whole tensor. So a
checkpoint is gathered by all and written by rank 0, and what is proved at the end is proved on a
model that rank 0 loads anew and gives the trained tensors.

Source: PyTorch, torch.distributed.fsdp.fully_shard. accelerate has it for accelerators alone.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import RecipeError
from glmtune.model.layers import decoder_layers


def check_sharding(num_processes: int) -> None:
    """Refuse to shard for one process.

    Raises:
        RecipeError: says how to start more.
    """
    if num_processes < 2:
        raise RecipeError(
            "training.sharding=fsdp2 deals weights out among processes, and this is one. Start "
            "more, by `glmtune train --nproc 2` or torchrun, or leave it out."
        )


def shard(model: Any, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Deal the weights of a model out, layer by layer; it is moved to `device` as it goes.

    Args:
        model: the same on every process.
        device: of this process.
        dtype: to compute in, with float32 weights; None is that of the weights.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(dtype, torch.float32 if dtype else None)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of a model are dealt out."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def gather(model: nn.Module) -> dict[str, Tensor]:
    """Put together, on every process, whatever of a model's state is trained.

    Frozen weights are left out; buffers and what is not dealt out is as it is.
    """
    from torch.distributed.tensor import DTensor

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        name: _whole(tensor)
        for name, tensor in model.state_dict().items()
        if name in trained or not isinstance(tensor, DTensor)
    }


def gather_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the state of an optimizer together, as one over the whole model would have it."""
    state = optimizer.state_dict()
    whole = {
        index: {name: _whole(value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": whole}


def _whole(value: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put the state that `gather_optimizer` gave back, each process its part."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    dealt = {}
    for index, values in state["state"].items():
        like = parameters[index]
        dealt[index] = {
            name: distribute_tensor(
                value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
            )
            if isinstance(like, DTensor) and value.shape == like.shape
            else value
            for name, value in values.items()
        }
    optimizer.load_state_dict({**state, "state": dealt})
