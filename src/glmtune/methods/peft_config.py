"""Convert a method's section of the recipe to peft's configuration, and check it with the model.

The keys of a section have peft's names, so they are passed on unchanged. A name that matches no
module of the model is an error; peft would ignore it silently.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from glmtune.errors import RecipeError
from glmtune.recipe.methods import (
    Ia3Section,
    LoraSection,
    OftSection,
    PeftSection,
    QloraSection,
    VeraSection,
)

# peft has no defaults for GLM, and only LoRA's for ChatGLM. Of IA3 these are its defaults for
# Llama; other methods adapt what ChatGLM has as one layer, `query_key_value`.
_ATTENTION = ["q_proj", "k_proj", "v_proj"]
_IA3_OF_GLM = {
    "target_modules": ["k_proj", "v_proj", "down_proj"],
    "feedforward_modules": ["down_proj"],
}
_IA3_OF_CHATGLM = {
    "target_modules": ["query_key_value", "dense_4h_to_h"],
    "feedforward_modules": ["dense_4h_to_h"],
}
GLM_TYPES = ("glm", "glm4", "glm4_moe")


def own_defaults(method: str, model_type: str) -> dict[str, list[str]]:
    """Return the layers that a method adapts where peft has no choice of its own; {} elsewhere.

    Args:
        method: such as "lora".
        model_type: such as "chatglm".
    """
    if model_type in GLM_TYPES:
        return _IA3_OF_GLM if method == "ia3" else {"target_modules": _ATTENTION}
    return _IA3_OF_CHATGLM if (method, model_type) == ("ia3", "chatglm") else {}


def config_of(
    section: PeftSection, model_type: str, tokens: Mapping[str, list[int]] | None = None
) -> Any:
    """Make peft's configuration from a section.

    Args:
        section: of the recipe.
        model_type: such as "chatglm".
        tokens: ids whose rows are trained, by the name of the module.
    """
    import peft

    configs: dict[type[PeftSection], Any] = {
        LoraSection: peft.LoraConfig,
        QloraSection: peft.LoraConfig,
        Ia3Section: peft.IA3Config,
        VeraSection: peft.VeraConfig,
        OftSection: peft.OFTConfig,
    }
    kind = configs[type(section)]
    known = {field.name for field in dataclasses.fields(kind)}
    given = {key: value for key, value in section.model_dump().items() if key in known}
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}
    plain["modules_to_save"] = plain["modules_to_save"] or None
    if "oft_block_size" in plain:
        plain["r"] = 0  # peft takes the block size or r, and computes the other
    if not section.target_modules:
        plain |= own_defaults(section.model_dump()["method"], model_type)
    if tokens:
        plain["trainable_token_indices"] = dict(tokens)
    return kind(task_type="CAUSAL_LM", **plain)


def check_names(model: nn.Module, section: PeftSection) -> None:
    """Refuse names of layers and modules that the model does not have, or that cannot be trained.

    Raises:
        RecipeError: names them, and what to do.
    """
    modules = dict(model.named_modules())
    linear = linear_layers(model)
    targets = section.target_modules
    if isinstance(targets, tuple) and (unknown := sorted(set(targets) - set(linear))):
        raise RecipeError(
            f"adapter.target_modules names {', '.join(unknown)}, which this model does not have. "
            f"Its linear layers are {', '.join(linear)}."
        )
    for name in section.modules_to_save:
        found = [module for path, module in modules.items() if f".{path}".endswith(f".{name}")]
        if not found:
            raise RecipeError(
                f"adapter.modules_to_save names {name}, which this model does not have. "
                f"Its modules are {', '.join(_last_names(modules))}."
            )
        if any(not p.is_floating_point() for module in found for p in module.parameters()):
            raise RecipeError(
                f"adapter.modules_to_save names {name}, whose weights are quantized, and whole "
                "numbers cannot be trained. Adapt it by adapter.target_modules instead, or do not "
                "quantize the base (adapter.method=lora, no model.compute)."
            )
    config: Any = model.config
    number, chosen = config.num_hidden_layers, getattr(section, "layers_to_transform", None)
    if beyond := [index for index in chosen or () if index >= number]:
        raise RecipeError(
            f"adapter.layers_to_transform names layer {beyond[0]}, but this model has the layers "
            f"0 to {number - 1}."
        )


def check_patterns(section: LoraSection, adapted: Sequence[str]) -> None:
    """Refuse a rank or alpha pattern that matches no adapted layer.

    Args:
        section: with the patterns.
        adapted: names of the adapted layers.

    Raises:
        RecipeError: names the pattern.
    """
    for key, patterns in (
        ("rank_pattern", section.rank_pattern),
        ("alpha_pattern", section.alpha_pattern),
    ):
        for pattern in patterns:  # peft matches it as a regular expression at the end of a name
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):
                raise RecipeError(
                    f"adapter.{key} has {pattern!r}, which fits no adapted layer. Adapted layers "
                    f"are {', '.join(adapted[:3])} and so on."
                )


def linear_layers(model: nn.Module) -> list[str]:
    """Return the last names of a model's linear layers."""
    return _last_names({n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)})


def _last_names(names: Any) -> list[str]:
    last = {name.rpartition(".")[2] for name in names}
    return sorted(name for name in last if name and not name.isdigit())
