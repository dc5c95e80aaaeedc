"""Shard weights with FSDP2: each rank keeps a shard and all-gathers one layer at a time.

    a layer's weights      rank 0 [####    ]   forward, backward: all-gather, compute, free
                           rank 1 [    ####]   gradients: reduce-scatter

All processes take part in every forward pass, and in whatever asks for a full tensor. So a
checkpoint is gathered by all and written by rank 0, and what is proved at the end is proved on a
model that rank 0 loads again and gives the trained tensors.

The optimizer's state is gathered here, by position as any optimizer's `state_dict` has it.
`torch.distributed.checkpoint.state_dict` names it by parameter, so `optimizer.pt` would have
another layout than that of every other engine, and it takes an optimizer step to make room for it.

Source: PyTorch, torch.distributed.fsdp.fully_shard. accelerate supports it on accelerators only.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.errors import RecipeError
from glmtune.model.layers import decoder_layers
from glmtune.recipe.sections import TrainingSection
from glmtune.train.engines.engine import Collected
from glmtune.train.engines.plain import PlainEngine
from glmtune.train.precision import dtype_of_autocast
from glmtune.train.processes import Processes


def check_sharding(section: TrainingSection, num_processes: int) -> None:
    """Refuse to shard for one process.

    Raises:
        RecipeError: there is only one.
    """
    if section.sharding and num_processes < 2:
        raise RecipeError(
            "training.sharding=fsdp2 shards weights among processes, and there is only one. Start "
            "more with `glmtune train --nproc 2` or torchrun, or leave it out."
        )


class FsdpEngine(PlainEngine):
    """Implements `Engine` for sharded weights; the arguments are those of `PlainEngine`."""

    can_run_alone = False

    def __init__(
        self,
        model: Any,
        section: TrainingSection,
        processes: Processes,
        num_steps: int,
        loraplus_lr_ratio: float | None = None,
    ) -> None:
        shard(model, processes.device, dtype_of_autocast(section))
        super().__init__(model, section, processes, num_steps, loraplus_lr_ratio)

    def _wrap(self, model: Any) -> Any:
        return model  # `shard` has changed it in place

    def autocast(self) -> AbstractContextManager[Any]:
        """Change nothing: FSDP2 casts by itself (`MixedPrecisionPolicy`)."""
        return nullcontext()

    def accumulate(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Reduce gradients after every micro-batch: unsharded ones would take too much memory."""
        return nullcontext()

    def clip(self, max_grad_norm: float | None) -> Tensor | None:
        """Clip by the norm over all shards."""
        norm: Any = super().clip(max_grad_norm)
        full: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return full

    def collect(self, output: Path) -> Collected:
        """Gather the trained tensors and the optimizer's state."""
        return Collected(self.gather_trained(), gather_optimizer(self.optimizer))

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        load_optimizer(self.optimizer, state)

    def gather_trained(self) -> Mapping[str, Tensor]:
        """Gather the trained tensors on the CPU of rank 0; the other ranks get none."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        gathered: dict[str, Any] = get_model_state_dict(self.model, options=options)
        return gathered


def shard(model: Any, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Shard the weights of a model layer by layer, in place, and move each shard to `device`.

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


def gather_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Gather the state of an optimizer, as one over the full model would have it."""
    state = optimizer.state_dict()
    full = {
        index: {name: _full_tensor(value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": full}


def _full_tensor(value: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load what `gather_optimizer` gave; each process keeps its shard."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sharded = {}
    for index, values in state["state"].items():
        like = parameters[index]
        sharded[index] = {
            name: distribute_tensor(
                value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
            )
            if isinstance(like, DTensor) and value.shape == like.shape
            else value
            for name, value in values.items()
        }
    optimizer.load_state_dict({**state, "state": sharded})
