"""Tuning the weights themselves: all of them, or some; what is saved is a whole model.

The folder is a checkpoint in the layout of the one that was read, with the tokenizer and
`glmtune.json` beside it, so it is used like any model: `glmtune chat out/my-run`.

Weights are trained in float32. In bfloat16 an update below 1/256 of a weight is lost, and at a
fine-tuning learning rate that is most of them. `training.bf16` computes in bfloat16 all the same.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glmtune.errors import CheckpointError, RecipeError
from glmtune.methods.adapter_folder import write_card
from glmtune.model.layers import decoder_layers
from glmtune.model.load import load_model
from glmtune.recipe.methods import FreezeSection, FullSection
from glmtune.template.base import Template

GIVES = "the model gives"  # other logits, should the file be another


def attach(model: nn.Module, section: FullSection | FreezeSection) -> Any:
    """Choose which weights are trained.

    Raises:
        RecipeError: the model has fewer layers, or no module of a given name.
    """
    model.requires_grad_(isinstance(section, FullSection))
    if isinstance(section, FreezeSection):
        for module in _chosen_modules(model, section):
            module.requires_grad_(True)
    return model


def _chosen_modules(model: nn.Module, section: FreezeSection) -> list[nn.Module]:
    try:
        layers = decoder_layers(model) if section.trainable_layers else nn.ModuleList()
    except CheckpointError as error:
        raise RecipeError(
            f"adapter.trainable_layers cannot be used: {error} Name modules in "
            "adapter.trainable_modules instead."
        ) from error
    if section.trainable_layers > len(layers):
        raise RecipeError(
            f"adapter.trainable_layers is {section.trainable_layers}, but this model has "
            f"{len(layers)} layers. Give at most so many, or adapter.method=full."
        )
    chosen = list(layers[len(layers) - section.trainable_layers :])
    for wanted in section.trainable_modules:
        found = [m for name, m in model.named_modules() if f".{name}".endswith(f".{wanted}")]
        if not found:
            known = sorted({name.rpartition(".")[2] for name, _ in model.named_modules()})
            raise RecipeError(
                f"adapter.trainable_modules names {wanted}, which this model does not have. Its "
                f"modules are {', '.join(n for n in known if n and not n.isdigit())}."
            )
        chosen += found
    return chosen


def save(
    model: Any, folder: Path, template: Template, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write the model, or its tensors as given, and how its prompts were built, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), state_dict=None if state is None else dict(state))
    write_card(folder, template)


def restore(folder: Path, model: Any) -> None:
    """Put the weights of a saved model into the one in memory.

    Raises:
        CheckpointError: a tensor is missing, or of another shape.
    """
    model.zero_grad(set_to_none=True)  # makes room
    model.load_state_dict(load_model(folder, dtype=model.dtype).state_dict())


@contextmanager
def as_saved(model: Any, folder: Path) -> Iterator[Any]:
    """Give the model on disk, held in memory as the trained one is."""
    yield load_model(
        folder,
        dtype=model.dtype,
        device_map={"": model.device} if model.device.type != "cpu" else None,
        attn_implementation=model.config._attn_implementation,
    )
