"""Load the base of a run, attach what is trained, and load it again after sharding."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from glmtune.methods import adapter_folder, method
from glmtune.model.added_tokens import Pieces, add_tokens
from glmtune.model.load import load_config, load_frozen_model, load_model, load_tokenizer
from glmtune.model.quantization import Quantization
from glmtune.recipe.methods import AdapterSection, FreezeSection, FullSection, QloraSection
from glmtune.recipe.recipe import RunRecipe
from glmtune.template.base import Template
from glmtune.train.neftune import add_noise

logger = logging.getLogger(__name__)


def load_base(recipe: RunRecipe, device: torch.device, device_map: Any = None) -> Any:
    """Load the model to tune; weights that are trained themselves are float32.

    Args:
        recipe: the run.
        device: where it will run.
        device_map: where the weights go, as for `load_model`; None is all of them to `device`.
    """
    section = recipe.model
    if recipe.training.sharding and device.type != "cpu":  # each process copies only its shard
        device_map = device_map or "cpu"
    if not isinstance(recipe.adapter, FullSection | FreezeSection):
        return load_frozen_model(
            section.name_or_path,
            dtype=section.dtype,
            device=device,
            device_map=device_map,
            compute=section.compute,
            attn_implementation=section.attn_implementation,
            quantization=quantization_of(recipe.adapter),
            may_emulate=recipe.training.fp16,
        )
    return load_model(
        section.name_or_path,
        dtype=torch.float32,
        device_map=device_map or (None if device.type == "cpu" else {"": device}),
        attn_implementation=section.attn_implementation,
    )


def quantization_of(section: AdapterSection) -> Quantization | None:
    """Return the quantization of the frozen weights; None where they are not quantized."""
    if not isinstance(section, QloraSection):
        return None
    return Quantization(
        section.quantization_method, section.quantization_bit, section.double_quantization
    )


def check_earlier_adapter(recipe: RunRecipe, template: Template | None = None) -> None:
    """Check the adapter of `adapter.name_or_path`, if training starts from one.

    Args:
        recipe: of the run.
        template: of the run, to compare with the adapter's; None checks the folder alone.

    Raises:
        CheckpointError: it is damaged, or was trained with another template.
    """
    earlier = getattr(recipe.adapter, "name_or_path", None)
    if earlier is None:
        return
    if template is None:
        adapter_folder.check_folder(Path(earlier))
    else:
        adapter_folder.check_template(Path(earlier), template)


def attach(recipe: RunRecipe, base: Any) -> Any:
    """Attach what is trained to the base, with gradient checkpointing and noise if asked for."""
    model = method.attach(base, recipe.adapter, pieces_of_added_tokens(recipe))
    if recipe.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if recipe.training.neftune_noise_alpha is not None:
        add_noise(model, recipe.training.neftune_noise_alpha)
    logger.info(describe_parameters(model))
    return model


def pieces_of_added_tokens(recipe: RunRecipe) -> Pieces:
    """Return the ids of the tokens that the recipe adds, and those of their pieces before."""
    section = recipe.model
    if not section.add_tokens:
        return {}
    num_rows = load_config(section.name_or_path).vocab_size
    return add_tokens(load_tokenizer(section.name_or_path), section.add_tokens, num_rows)


def reload_unsharded(recipe: RunRecipe, trained: Mapping[str, Tensor]) -> Any:
    """Load the model again on the CPU, and give it the tensors that were gathered."""
    model = method.attach(load_base(recipe, torch.device("cpu")), recipe.adapter)
    unexpected = model.load_state_dict(trained, strict=False).unexpected_keys
    assert not unexpected, unexpected  # or what was trained would be left out silently
    return model


def describe_parameters(model: Any) -> str:
    """Return the line that peft prints, with more digits."""
    trainable, total = method.count_parameters(model)
    return (
        f"trainable params: {trainable:,} || all params: {total:,} || "
        f"trainable%: {100 * trainable / total:.4f}"
    )
