"""One model under training, whatever the method: which weights are trained, and how they are kept.

    lora, ...       a small difference, in peft's format       adapter.py
    prompt_tuning,  virtual tokens, in peft's format           prompts.py
    p_tuning, prefix_tuning
    ptuning_v2      a prefix, in the original's format         ptuning.py
    full, freeze    the model's own weights, a whole model     whole.py

What must hold for all: `save` and `restore` keep every trained number exactly, `check_saved`
shows that a fresh reader of the folder gets the trained model's logits, and what is trained
learns (alive.py). A loop and its checkpoints need to know no more.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.data.batches import MicroBatch
from glmtune.methods import adapter_folder, full, lora, ptuning_v2
from glmtune.methods.logits import compare_logits, logits_of
from glmtune.model.load import load_config
from glmtune.recipe.methods import (
    AdapterSection,
    FreezeSection,
    FullSection,
    NoneSection,
    PromptSection,
    PtuningV2Section,
)
from glmtune.template.base import Template


def check_fits(section: AdapterSection, name: str) -> None:
    """Refuse a method that is not for a kind of model, before any weight is read.

    Raises:
        RecipeError: says which method to take instead.
    """
    if isinstance(section, PtuningV2Section):
        ptuning_v2.check_fits(load_config(name))
    if isinstance(section, PromptSection):
        from glmtune.methods import virtual_tokens  # peft loads here

        virtual_tokens.check_fits(section, load_config(name))


def attach(model: nn.Module, section: AdapterSection) -> Any:
    """Make a model ready to be tuned by a method: what is trained requires a gradient.

    Raises:
        RecipeError: the section does not fit the model.
    """
    if isinstance(section, FullSection | FreezeSection):
        return full.attach(model, section)
    if isinstance(section, NoneSection):
        return model.requires_grad_(False)
    if isinstance(section, PtuningV2Section):
        return ptuning_v2.attach(model, section)
    if isinstance(section, PromptSection):
        from glmtune.methods import virtual_tokens

        return virtual_tokens.attach(model, section)
    return lora.attach(model, section)


def is_adapted(model: Any) -> bool:
    """Whether what is trained is a small difference, not the model itself."""
    return _keeper(model) is not full


def _keeper(model: Any) -> Any:
    """Give the module that knows how what is trained is kept."""
    from peft import PeftModel

    from glmtune.methods import virtual_tokens

    if isinstance(model, PeftModel):
        return virtual_tokens if isinstance(model, virtual_tokens.PromptModel) else lora
    return ptuning_v2 if ptuning_v2.is_trained(model) else full


def save(
    model: Any, folder: Path, template: Template, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write what was trained, and how its prompts were built, into a folder.

    Args:
        model: says what was trained.
        folder: is made.
        template: of the prompts.
        state: the model's tensors, where it holds but a part of them itself.
    """
    given = () if state is None else (state,)  # only adapter.py and whole.py are ever dealt out
    _keeper(model).save(model, folder, template, *given)


def restore(folder: Path, model: Any) -> None:
    """Put what `save` wrote back into the model that it was taken from.

    Raises:
        CheckpointError: a tensor is missing or was not expected.
    """
    _keeper(model).restore(folder, model)


@torch.no_grad()
def check_saved(model: Any, folder: Path, probe: MicroBatch) -> float:
    """Prove that what is on disk is what is in memory, by the logits of a probe.

    Returns:
        The largest difference between two logits; 0.0 is expected.

    Raises:
        TrainingError: the logits differ.
    """
    keeper = _keeper(model)
    if keeper is lora:  # which compares its tensors too, and knows of beginnings
        return lora.check_saved(model, folder, probe)
    model.eval()
    model.zero_grad(set_to_none=True)  # makes room
    trained = logits_of(model, probe)
    with keeper.as_saved(model, folder) as saved:
        return compare_logits(folder, keeper.GIVES, trained, logits_of(saved, probe))


def as_saved(model: Any, folder: Path) -> AbstractContextManager[Any]:
    """Give, for a while, a model that answers with what is on disk."""
    saved: AbstractContextManager[Any] = _keeper(model).as_saved(model, folder)
    return saved


def count_parameters(model: Any) -> tuple[int, int]:
    """Count the trained numbers, and all."""
    if hasattr(model, "get_nb_trainable_parameters"):  # which knows of packed weights
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    numbers = [(parameter.requires_grad, parameter.numel()) for parameter in model.parameters()]
    return sum(n for trained, n in numbers if trained), sum(n for _, n in numbers)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a small difference and no whole model."""
    return adapter_folder.is_adapter(folder) or ptuning_v2.is_folder(folder)


def check_folder(folder: Path) -> None:
    """Refuse what is no adapter folder, or one that was half written.

    Raises:
        CheckpointError: says what is missing or damaged.
    """
    if not ptuning_v2.is_folder(folder):
        adapter_folder.check_folder(folder)


def base_name(folder: Path) -> str:
    """Give the model that an adapter says it was trained on; "" where it does not say."""
    if ptuning_v2.is_folder(folder):
        return ptuning_v2.base_name(folder)
    return str(adapter_folder.read_config(folder).get("base_model_name_or_path") or "")


def load(model: nn.Module, folder: Path) -> Any:
    """Put a saved adapter over its base model, to use it.

    Raises:
        CheckpointError: the folder is no adapter, is damaged, or belongs to another model.
    """
    if ptuning_v2.is_folder(folder):
        return ptuning_v2.load(model, folder)
    from glmtune.methods import virtual_tokens

    adapter_folder.check_folder(folder)
    return (virtual_tokens if virtual_tokens.is_folder(folder) else lora).load(model, folder)
