"""Parameter groups and the learning-rate curve."""

from typing import Any

import torch
from torch import nn

from glmtune.recipe import TrainingSection


def make_optimizer(
    model: nn.Module, section: TrainingSection, loraplus_lr_ratio: float | None = None
) -> torch.optim.Optimizer:
    """AdamW (https://arxiv.org/abs/1711.05101) over what is trainable.

    Weight decay shrinks matrices; biases and norm weights, which are vectors, are left alone.

    Args:
        model: says what is trainable.
        section: learning rate, decay and the rest.
        loraplus_lr_ratio: LoRA's B learns so many times faster than A
            (https://arxiv.org/abs/2402.12354).
    """
    settings: dict[str, Any] = {
        "lr": section.learning_rate,
        "betas": (section.adam_beta1, section.adam_beta2),
        "eps": section.adam_epsilon,
    }
    if loraplus_lr_ratio is not None:
        from peft.optimizers import create_loraplus_optimizer

        return create_loraplus_optimizer(
            model,  # type: ignore[arg-type]
            torch.optim.AdamW,
            loraplus_lr_ratio=loraplus_lr_ratio,
            loraplus_weight_decay=section.weight_decay,
            **settings,
        )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for p in trainable if p.ndim >= 2],
            "weight_decay": section.weight_decay,
        },
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], **settings)


def make_scheduler(
    optimizer: torch.optim.Optimizer, section: TrainingSection, num_steps: int
) -> Any:
    """The learning rate of each step, by transformers' curves.

    `warmup_steps` below 1 is a share of all steps, as in transformers.
    """
    from transformers import get_scheduler

    warmup = section.warmup_steps
    num_warmup_steps = round(warmup * num_steps) if warmup < 1 else int(warmup)
    return get_scheduler(
        section.lr_scheduler_type,
        optimizer,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_steps,
    )
