"""What a recipe asks to train, compared with what a model trains.

The names follow from the recipe and the modules of the base alone, not from what peft attached: a
layer that was left out, or frozen afterwards, is missing here.

    lora, ia3, vera, oft   every layer that target_modules names, in layers_to_transform;
                           modules_to_save and biases where asked for
    virtual tokens         something
    full, freeze           every tensor, or those of the chosen layers and modules
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from glmtune.errors import TrainingError, some
from glmtune.methods.peft_config import own_defaults
from glmtune.model.layers import decoder_layers
from glmtune.recipe.methods import (
    AdapterSection,
    FreezeSection,
    FullSection,
    LoraSection,
    PeftSection,
)

PREFIX = "base_model.model."  # of peft


def check_trained(model: Any, section: AdapterSection, num_added_tokens: int = 0) -> None:
    """Check that everything that a recipe asks for is trained, in float32.

    Args:
        model: with what is trained.
        section: of the method.
        num_added_tokens: whose rows are trained, too.

    Raises:
        TrainingError: names what is frozen, missing or in half precision.
    """
    if lacking := list(_without_rows(model, num_added_tokens)):
        raise TrainingError(
            f"the rows of model.add_tokens should be trained in {some(lacking)}, and are not all. "
            "Check code that changes requires_grad."
        )
    if frozen := sorted(set(frozen_parts(model, section))):
        raise TrainingError(
            f"adapter.method={section.method} should train {some(frozen)}, but no gradient would "
            "reach it: it is frozen, or has no adapter. Check adapter.target_modules and "
            "layers_to_transform, and code that changes requires_grad."
        )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise TrainingError(
            f"adapter.method={section.method} trains nothing: every number of the model is frozen."
        )
    rounded = [name for name, p in trained.items() if p.dtype in (torch.bfloat16, torch.float16)]
    if rounded:
        raise TrainingError(
            f"{some([_plain(name) for name in rounded])} is trained in half precision, where most "
            "updates are rounded away. Train it in float32."
        )


def _without_rows(model: Any, number: int) -> Iterator[str]:
    """Yield the embedding and the output layer if fewer rows than this number are trained."""
    if not number:
        return
    modules = {"the embedding": model.get_input_embeddings()}
    if not getattr(model.config, "tie_word_embeddings", False):
        modules["the output layer"] = model.get_output_embeddings()
    for name, module in modules.items():
        rows = [p for p in module.parameters() if p.requires_grad]
        if sum(len(each) for each in rows) < number:
            yield name


def frozen_parts(model: Any, section: AdapterSection) -> Iterator[str]:
    """Yield the names of what the recipe asks for and is not trained."""
    if isinstance(section, PeftSection):
        yield from _frozen_layers(model, section)
        yield from _frozen_beside(model, section)
    elif isinstance(section, FullSection):
        yield from _frozen_in(model, "")
    elif isinstance(section, FreezeSection):
        modules = dict(model.named_modules())
        chosen = [
            name
            for name in modules
            if any(f".{name}".endswith(f".{wanted}") for wanted in section.trainable_modules)
        ]
        if section.trainable_layers:
            last = decoder_layers(model)[-section.trainable_layers :]
            chosen += [name for name, module in modules.items() if module in list(last)]
        for name in chosen:
            yield from _frozen_in(modules[name], name)


def _frozen_in(module: nn.Module, name: str) -> Iterator[str]:
    for own, parameter in module.named_parameters():
        if not parameter.requires_grad:
            yield _plain(f"{name}.{own}" if name else own)


def _frozen_layers(model: Any, section: PeftSection) -> Iterator[str]:
    """Yield the target layers without an adapter that is trained as a whole."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in _targets(model, section):
        adapter = [
            parameter
            for own, parameter in module.named_parameters()
            if not own.startswith("base_layer.")
        ]
        is_trained = bool(adapter) and all(parameter.requires_grad for parameter in adapter)
        if not isinstance(module, BaseTunerLayer) or not is_trained:
            yield name


def _targets(model: Any, section: PeftSection) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of the base that the recipe names, by their names there."""
    wanted = section.target_modules or _defaults(model, section)
    layers = getattr(section, "layers_to_transform", None)
    head = model.get_output_embeddings()
    for path, module in model.named_modules():
        name = _plain(path)
        inner = getattr(module, "base_layer", module)
        if any(
            each in path for each in (".base_layer", ".lora_", ".modules_to_save", ".original_")
        ):
            continue
        if wanted == "all-linear":
            is_wanted = isinstance(inner, nn.Linear) and head not in (module, inner)
            is_wanted = is_wanted and not _is_inside_adapter(path, model)
        else:
            is_wanted = any(f".{name}".endswith(f".{each}") for each in wanted)
        index = re.search(r"\.(\d+)\.", name)
        if layers is not None and (index is None or int(index[1]) not in layers):
            continue
        if is_wanted:
            yield name, module


def _is_inside_adapter(path: str, model: Any) -> bool:
    """Whether a module belongs to the adapter of a layer, and not to the base."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    parts = path.split(".")
    above = (".".join(parts[:number]) for number in range(1, len(parts)))
    return any(isinstance(model.get_submodule(each), BaseTunerLayer) for each in above)


def _defaults(model: Any, section: Any) -> tuple[str, ...]:
    """Return the layers that peft adapts where the recipe names none; () if they are not known."""
    from peft.utils import constants

    kind: str = model.config.model_type
    if own := own_defaults(section.method, kind):
        return tuple(own["target_modules"])
    name = "lora" if isinstance(section, LoraSection) else section.method
    table = getattr(constants, f"TRANSFORMERS_MODELS_TO_{name.upper()}_TARGET_MODULES_MAPPING", {})
    found = table.get(kind, ())
    return (found,) if isinstance(found, str) else tuple(found)


def _frozen_beside(model: Any, section: PeftSection) -> Iterator[str]:
    """Yield the modules and biases of the base that are to be trained beside the adapter."""
    for name, parameter in model.named_parameters():
        owner, _, last = _plain(name).replace(".modules_to_save.default", "").rpartition(".")
        path = f".{owner}."
        is_saved = any(f".{each}." in path for each in section.modules_to_save)
        is_bias = last == "bias" and getattr(section, "bias", "none") == "all"
        if ".original_module." in name or parameter.requires_grad or ".lora_" in name:
            continue
        if is_bias or (is_saved and ".modules_to_save." in name):
            yield _plain(name)
    for each in section.modules_to_save:
        if not any(f".{each}.modules_to_save." in name for name, _ in model.named_parameters()):
            yield each


def _plain(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".base_layer", "")
