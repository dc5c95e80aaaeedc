"""One model under training, whatever the method: which weights are trained, and how they are kept.

    lora, ...       a small difference, in peft's format       adapter.py
    full, freeze    the model's own weights, a whole model     whole.py

What must hold for both: `save` and `restore` keep every trained number exactly, `check_saved`
shows that a fresh reader of the folder gets the trained model's logits, and what is trained
learns (alive.py). A loop and its checkpoints need to know no more.
"""

from pathlib import Path
from typing import Any

from torch import nn

from glmtune import adapter, whole
from glmtune.data.batches import MicroBatch
from glmtune.recipe import AdapterSection, FreezeSection, FullSection, NoneSection
from glmtune.template import Template


def attach(model: nn.Module, section: AdapterSection) -> Any:
    """Make a model ready to be tuned by a method: what is trained requires a gradient.

    Raises:
        RecipeError: the section does not fit the model.
    """
    if isinstance(section, FullSection | FreezeSection):
        return whole.attach(model, section)
    if isinstance(section, NoneSection):
        return model.requires_grad_(False)
    return adapter.attach(model, section)


def is_adapted(model: Any) -> bool:
    """Whether what is trained is a small difference, not the model itself."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def save(model: Any, folder: Path, template: Template) -> None:
    """Write what was trained, and how its prompts were built, into a folder."""
    if is_adapted(model):
        adapter.save(model, folder, template)
    else:
        whole.save(model, folder, template)


def restore(folder: Path, model: Any) -> None:
    """Put what `save` wrote back into the model that it was taken from.

    Raises:
        CheckpointError: a tensor is missing or was not expected.
    """
    if is_adapted(model):
        adapter.restore(folder, model)
    else:
        whole.restore(folder, model)


def check_saved(model: Any, folder: Path, probe: MicroBatch) -> float:
    """Prove that what is on disk is what is in memory, by the logits of a probe.

    Returns:
        The largest difference between two logits; 0.0 is expected.

    Raises:
        TrainingError: the logits differ.
    """
    if is_adapted(model):
        return adapter.check_saved(model, folder, probe)
    return whole.check_saved(model, folder, probe)


def count_parameters(model: Any) -> tuple[int, int]:
    """Count the trained numbers, and all."""
    if is_adapted(model):
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    numbers = [(parameter.requires_grad, parameter.numel()) for parameter in model.parameters()]
    return sum(n for trained, n in numbers if trained), sum(n for _, n in numbers)
