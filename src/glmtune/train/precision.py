"""Mixed precision: autocast to half precision, and loss scaling for float16.

bfloat16 has the range of float32. float16 overflows above 65,504 and underflows below 6e-8, where
most gradients of a mean loss are. So the loss is multiplied before the backward pass and the
gradients of the trained weights, which are float32, are divided after it:

    scale   65536   32768   32768   ...    halved where a gradient overflowed, and that step is
    step    skipped taken   taken   ...    skipped; doubled after 2,000 steps without

As in transformers' Trainer a skipped step counts as a step and its rows as learned, and the
learning rate stays where it is. accelerate has no scaler and no float16 on a CPU, so both
precisions are implemented here, with torch.

Source: https://arxiv.org/abs/1710.03740; torch.amp.GradScaler.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from glmtune import machine
from glmtune.errors import RecipeError
from glmtune.kernels.half_precision import activation_dtype
from glmtune.model.load import load_config
from glmtune.recipe.methods import FreezeSection, FullSection
from glmtune.recipe.recipe import RunRecipe
from glmtune.recipe.sections import TrainingSection

logger = logging.getLogger(__name__)


def dtype_of_autocast(section: TrainingSection) -> torch.dtype | None:
    """Return the dtype of autocast; None where products are computed in that of the weights."""
    return getattr(torch, section.autocast) if section.autocast is not None else None


def check_base(recipe: RunRecipe) -> None:
    """Refuse autocast over a base in the other half precision, before it is loaded.

    Raises:
        RecipeError: the two differ.
    """
    section = recipe.training
    dtype: str = recipe.model.dtype
    if section.autocast is None or isinstance(recipe.adapter, FullSection | FreezeSection):
        return  # what is trained itself is float32
    if dtype == "auto":
        dtype = str(load_config(recipe.model.name_or_path).dtype).removeprefix("torch.")
    if dtype in ("float16", "bfloat16") and dtype != section.autocast:
        key = "bf16" if section.bf16 else "fp16"
        raise RecipeError(
            f"training.{key}=true computes in {section.autocast}, and the frozen base is in "
            f"{dtype}. Leave training.{key} out, or set model.dtype={section.autocast}."
        )


def autocast(section: TrainingSection, device: torch.device) -> AbstractContextManager[Any]:
    """Compute products in half precision within a block, if the section asks for it."""
    dtype = dtype_of_autocast(section)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def make_scaler(section: TrainingSection, model: Any, device: torch.device) -> torch.amp.GradScaler:
    """Make a scaler of the loss, enabled only where gradients pass through float16.

    Args:
        section: has the precision of products.
        model: has the dtype of activations.
        device: where it runs.
    """
    is_slow = device.type == "cpu" and torch.float16 not in machine.fast_cpu_dtypes()
    if section.fp16 and is_slow:
        logger.warning(
            "this CPU has no arithmetic for float16 and emulates it, many times slower than "
            "float32; training.bf16=true, or neither, is faster"
        )
    is_float16 = section.fp16 or activation_dtype(model) == torch.float16
    return torch.amp.GradScaler(device.type, enabled=is_float16)
