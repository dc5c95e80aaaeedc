"""The optimizer with its parameter groups, and the learning-rate schedule."""

import math
from typing import Any

import torch
from torch import nn

from glmtune.errors import RecipeError
from glmtune.recipe.sections import TrainingSection


def make_optimizer(
    model: nn.Module, section: TrainingSection, loraplus_lr_ratio: float | None = None
) -> torch.optim.Optimizer:
    """AdamW (https://arxiv.org/abs/1711.05101) over what is trainable.

    Weight decay shrinks matrices; biases and norm weights, which are vectors, are left alone.

    Args:
        model: its parameters that require a gradient are optimized.
        section: learning rate, decay and the rest.
        loraplus_lr_ratio: the learning rate of LoRA's B, in multiples of that of A
            (https://arxiv.org/abs/2402.12354).
    """
    settings: dict[str, Any] = {
        "lr": section.learning_rate,
        "betas": (section.adam_beta1, section.adam_beta2),
        "eps": section.adam_epsilon,
    }
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings |= on_device_settings(section, {parameter.device for parameter in trainable})
    if loraplus_lr_ratio is not None:
        from peft.optimizers import create_loraplus_optimizer

        return create_loraplus_optimizer(
            model,  # type: ignore[arg-type]
            optimizer_class(section),
            loraplus_lr_ratio=loraplus_lr_ratio,
            loraplus_weight_decay=section.weight_decay,
            **settings,
        )
    groups = [
        {
            "params": [p for p in trainable if p.ndim >= 2],
            "weight_decay": section.weight_decay,
        },
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return optimizer_class(section)([group for group in groups if group["params"]], **settings)


def on_device_settings(section: TrainingSection, devices: set[torch.device]) -> dict[str, Any]:
    """Return the arguments of AdamW that depend on the device: one kernel for all on a GPU."""
    is_on_gpu = {device.type for device in devices} == {"cuda"}
    return {"fused": True} if is_on_gpu and section.optim == "adamw_torch" else {}


def optimizer_class(section: TrainingSection) -> type[torch.optim.Optimizer]:
    """Choose AdamW by torch, with moments in float32, or by bitsandbytes, with moments in 8 bits.

    bitsandbytes keeps those of tensors below 4,096 elements in float32 as well.

    Raises:
        RecipeError: bitsandbytes is not installed.
    """
    if section.optim == "adamw_torch":
        return torch.optim.AdamW
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"training.optim={section.optim} is bitsandbytes', which is not installed. "
            "`pip install 'glmtune[qlora]'`, or use adamw_torch."
        )
    import bitsandbytes

    chosen: type[torch.optim.Optimizer] = bitsandbytes.optim.AdamW8bit  # type: ignore[attr-defined]
    return chosen


def make_scheduler(
    optimizer: torch.optim.Optimizer, section: TrainingSection, num_steps: int
) -> Any:
    """Make the learning-rate schedule, by transformers."""
    from transformers import get_scheduler

    return get_scheduler(
        section.lr_scheduler_type,
        optimizer,
        num_warmup_steps=count_warmup_steps(section, num_steps),
        num_training_steps=num_steps,
    )


def count_warmup_steps(section: TrainingSection, num_steps: int) -> int:
    """Count the steps of the warm-up; a fraction of all steps is rounded up, as in transformers."""
    warmup = section.warmup_steps
    return math.ceil(warmup * num_steps) if warmup < 1 else int(warmup)
