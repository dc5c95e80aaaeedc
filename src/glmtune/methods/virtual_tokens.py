"""Virtual tokens by peft: prompt tuning, P-tuning and prefix tuning, over a model of any family.

peft puts them before each row of a padded batch. Here they stand before each example of a pack,
and once for all of them, as keys and values of every layer:

    prompt_tuning, p_tuning   what is learned are vectors; one pass of the model over them makes
                              their keys and values, since no virtual token sees a real one
    prefix_tuning             what is learned are keys and values

They take positions, as in peft: the first real token of an example has position n. The folder is
peft's, and peft alone gives the same logits with it. Where an MLP makes the virtual tokens, peft
keeps only what it makes; to go on training, `prompt_encoder.safetensors` beside it keeps the MLP.

Sources: https://arxiv.org/abs/2104.08691, https://arxiv.org/abs/2103.10385,
https://arxiv.org/abs/2101.00190.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModelForCausalLM
from torch import Tensor
from transformers import DynamicCache

from glmtune.errors import CheckpointError, RecipeError
from glmtune.kernels.packed_attention import NAME
from glmtune.kernels.row_cache import config_supports_row_cache, supports_row_cache
from glmtune.methods import adapter_folder, lora
from glmtune.recipe.methods import (
    PrefixTuningSection,
    PromptSection,
    PromptTuningSection,
    PTuningSection,
)
from glmtune.template.base import Template

GIVES = "the virtual tokens give"  # other logits, should the file be another

ENCODER = "prompt_encoder.safetensors"
TENSOR = "prompt_embeddings"
PEFT_TYPES = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


class PromptModel(PeftModelForCausalLM):
    """peft's model, whose virtual tokens stand before every example of a pack."""

    def virtual_tokens(self) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """Give keys and values of every layer, (1, kv_heads, n, head_dim), and n."""
        number: int = self.active_peft_config.num_virtual_tokens
        made: Any = self.get_prompt(batch_size=1)
        if not isinstance(made, DynamicCache):
            made = self._read(made)
        return [(layer.keys, layer.values) for layer in made.layers], number

    def _read(self, vectors: Tensor) -> Any:
        """Run the model over the virtual tokens alone, (1, n, hidden), and give its cache."""
        model: Any = self.get_base_model()
        embeddings = model.get_input_embeddings()
        like = embeddings(torch.zeros(1, dtype=torch.long, device=model.device))
        was_training = model.training
        model.eval()  # gradient checkpointing would drop the cache
        try:
            return model.base_model(
                inputs_embeds=vectors.to(like.dtype), use_cache=True
            ).past_key_values
        finally:
            model.train(was_training)

    def forward(self, input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Score a pack, or what comes behind a cache; rows and padded batches are peft's."""
        model: Any = self.get_base_model()
        if kwargs.get("past_key_values") is not None:  # which begins with the virtual tokens
            return model(input_ids=input_ids, **kwargs)
        if "cu_seq_lens_q" not in kwargs:
            return super().forward(input_ids, *args, **kwargs)  # type: ignore[no-untyped-call]
        attention = model.config._attn_implementation
        if attention != NAME:
            raise ValueError(
                f"{attention!r} attention has no place for virtual tokens. Use {NAME}."
            )
        layers, number = self.virtual_tokens()
        kwargs["position_ids"] = kwargs["position_ids"] + number
        return model(input_ids=input_ids, virtual_tokens=layers, **kwargs)


def check_fits(section: PromptSection, config: Any) -> None:
    """Refuse a kind of model whose layers have no place for virtual tokens.

    Raises:
        RecipeError: says which method to take instead.
    """
    if getattr(config, "pre_seq_len", None):
        raise RecipeError(
            "the model has a P-Tuning v2 prefix already, in whose place adapter.method="
            f"{section.method} would put others. Use adapter.method=ptuning_v2 to go on with it."
        )
    layers = getattr(config, "layer_types", None) or ()
    has_window = (
        getattr(config, "sliding_window", None) is not None or "sliding_attention" in layers
    )
    if not config_supports_row_cache(config) or has_window:
        raise RecipeError(
            f"adapter.method={section.method} puts virtual tokens before every text, and layers of "
            f"a model of type {config.model_type!r} would not see them. Use adapter.method=lora."
        )


def attach(model: Any, section: PromptSection) -> Any:
    """Freeze a model and put virtual tokens before every text, in float32.

    Raises:
        RecipeError: the model has no place for them.
    """
    check_fits(section, model.config)
    if not supports_row_cache(model):
        raise RecipeError(
            f"adapter.method={section.method} needs an attention function of ours, which "
            f"{type(model).__name__} does not take. Use adapter.method=lora."
        )
    config = _config_of(section, model)
    config.base_model_name_or_path = model.name_or_path
    return PromptModel(model, config)


def _config_of(section: PromptSection, model: Any) -> Any:
    given: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": section.num_virtual_tokens,
    }
    config = model.config
    if isinstance(section, PromptTuningSection):
        given["prompt_tuning_init"] = section.prompt_tuning_init
        if section.prompt_tuning_init == "TEXT":
            given["prompt_tuning_init_text"] = section.prompt_tuning_init_text
            given["tokenizer_name_or_path"] = model.name_or_path
        return peft.PromptTuningConfig(**given)
    assert isinstance(section, PTuningSection | PrefixTuningSection)
    given["encoder_hidden_size"] = section.encoder_hidden_size or config.hidden_size
    if isinstance(section, PTuningSection):
        return peft.PromptEncoderConfig(**given)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or 0
    head_dim = getattr(config, "kv_channels", None) or getattr(config, "head_dim", None)
    return peft.PrefixTuningConfig(
        **given,
        prefix_projection=section.prefix_projection,
        num_attention_heads=kv_heads or heads,  # peft does not see that ChatGLM has few of them
        token_dim=(kv_heads or heads) * (head_dim or config.hidden_size // heads),
    )


def _encoder(model: PromptModel) -> Any:
    return model.prompt_encoder["default"]


def save(model: PromptModel, folder: Path, template: Template) -> None:
    """Write the virtual tokens in peft's format, and what makes them, into a folder."""
    from safetensors.torch import save_file

    lora.save(model, folder, template)
    if len(state := _encoder(model).state_dict()) > 1:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / ENCODER)


def restore(folder: Path, model: PromptModel) -> None:
    """Put what `save` wrote back into the model that it was taken from.

    Raises:
        CheckpointError: a tensor is missing, was not expected, or has another shape.
    """
    from safetensors.torch import load_file

    if (folder / ENCODER).is_file():
        _fill(model, load_file(folder / ENCODER), folder)
    else:
        _fill(model, _embedding(folder), folder)


def _embedding(folder: Path) -> dict[str, Tensor]:
    file, stored = adapter_folder.read_tensors(folder)
    if stored.keys() != {TENSOR}:
        raise CheckpointError(
            f"{file}: expected the virtual tokens as {TENSOR}, and it holds "
            f"{', '.join(sorted(stored)[:3]) or 'nothing'}. Check that it was copied whole."
        )
    return {"embedding.weight": stored[TENSOR]}


def _fill(model: PromptModel, state: dict[str, Tensor], folder: Path) -> None:
    try:
        _encoder(model).load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: the virtual tokens do not fit this model: {' '.join(str(error).split())} "
            "Check that they were trained on the same base."
        ) from None


def is_folder(folder: Path) -> bool:
    """Whether an adapter folder holds virtual tokens."""
    return adapter_folder.read_config(folder).get("peft_type") in PEFT_TYPES


def load(model: Any, folder: Path) -> PromptModel:
    """Put saved virtual tokens before every text of their base model, to use them.

    Raises:
        CheckpointError: the folder is damaged, or belongs to another model.
    """
    adapter_folder.check_folder(folder)
    config = adapter_folder.read_peft_config(folder)
    config.inference_mode = True  # what an MLP has made, and no MLP
    if not supports_row_cache(model):
        raise CheckpointError(
            f"{folder}: {type(model).__name__} has no place for virtual tokens as we put them."
        )
    loaded = PromptModel(model, config)
    _fill(loaded, _embedding(folder), folder)
    return loaded.requires_grad_(False).eval()


@contextmanager
def as_saved(model: PromptModel, folder: Path) -> Iterator[Any]:
    """Give the virtual tokens on disk over the same base."""
    base: Any = model.get_base_model()
    base.activation_checkpointing_disable()  # peft will have none of it, and all is learned
    yield load(base, folder)
