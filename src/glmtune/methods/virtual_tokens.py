"""Virtual tokens by peft: prompt tuning, P-tuning and prefix tuning, for models of any family.

They precede each example of a pack, and are computed once for all examples, as keys and values of
every layer:

    prompt_tuning, p_tuning   vectors are trained; one pass of the model over them computes their
                              keys and values, since no virtual token attends to a real one
    prefix_tuning             keys and values are trained

They take positions, as in peft: the first real token of an example has position n. The folder is
peft's, and peft alone gives the same logits with it. If an MLP computes the virtual tokens, peft
saves only its output; `prompt_encoder.safetensors` beside it saves the MLP, to continue training.

Sources: https://arxiv.org/abs/2104.08691, https://arxiv.org/abs/2103.10385,
https://arxiv.org/abs/2101.00190.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from glmtune.errors import CheckpointError, RecipeError
from glmtune.kernels.finite import check_finite
from glmtune.kernels.row_cache import config_supports_row_cache, supports_row_cache
from glmtune.methods import adapter_config, adapter_folder
from glmtune.methods.lora import PEFT_ADAPTER
from glmtune.model.card import seal
from glmtune.model.files import first_lines
from glmtune.model.load import load_config
from glmtune.recipe.methods import (
    AdapterSection,
    PrefixTuningSection,
    PromptSection,
    PromptTuningSection,
    PTuningSection,
)
from glmtune.template.base import Template

if TYPE_CHECKING:
    from glmtune.methods.prompt_model import PromptModel

ENCODER = "prompt_encoder.safetensors"
TENSOR = "prompt_embeddings"


class VirtualTokens:
    """The methods of tuning that train what precedes every text, by peft."""

    what = "virtual tokens"
    is_difference = True

    def takes(self, section: AdapterSection) -> bool:
        """Whether a section of the recipe asks for this method."""
        return isinstance(section, PromptSection)

    def is_attached(self, model: Any) -> bool:
        """Whether virtual tokens are what is trained of a model."""
        from glmtune.methods.prompt_model import PromptModel

        return isinstance(model, PromptModel)

    def check_fits(self, section: AdapterSection, name: str) -> None:
        """Refuse a type of model whose layers do not support virtual tokens.

        Raises:
            RecipeError: names the method to use instead.
        """
        assert isinstance(section, PromptSection)
        _check_config(section, load_config(name))

    def attach(self, model: Any, section: AdapterSection) -> "PromptModel":
        """Freeze a model and put virtual tokens before every text, in float32.

        Raises:
            RecipeError: the model does not support them.
        """
        from glmtune.methods.prompt_model import PromptModel

        assert isinstance(section, PromptSection)
        _check_config(section, model.config)
        if not supports_row_cache(model):
            raise RecipeError(
                f"adapter.method={section.method} needs an attention function of ours, which "
                f"{type(model).__name__} does not take. Use adapter.method=lora."
            )
        config = _config_of(section, model)
        config.base_model_name_or_path = model.name_or_path
        return PromptModel(model, config)

    def save(
        self,
        model: Any,
        folder: Path,
        template: Template,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the virtual tokens in peft's format, and their MLP, to a folder."""
        from safetensors.torch import save_file

        assert state is None, "the recipe refuses to shard virtual tokens"
        PEFT_ADAPTER.save(model, folder, template)
        if len(encoder := _encoder(model).state_dict()) > 1:
            tensors = {name: tensor.contiguous() for name, tensor in encoder.items()}
            save_file(tensors, folder / ENCODER)
            seal(folder)

    def restore(self, folder: Path, model: Any) -> None:
        """Restore the virtual tokens in memory, and their MLP, from what `save` wrote.

        Raises:
            CheckpointError: a tensor is missing or unexpected, or has another shape.
        """
        if (folder / ENCODER).is_file():
            encoder = adapter_folder.read_safetensors(folder / ENCODER)
            check_finite(str(folder / ENCODER), encoder)
            _fill(model, encoder, folder)
        else:
            _fill(model, _embedding(folder), folder)

    def load(self, model: nn.Module, folder: Path) -> "PromptModel":
        """Put saved virtual tokens before every text of their base model, to use them.

        Raises:
            CheckpointError: the folder is damaged, or belongs to another model.
        """
        from glmtune.methods.prompt_model import PromptModel

        adapter_folder.check_folder(folder)
        config = adapter_folder.read_peft_config(folder)
        config.inference_mode = True  # uses what an MLP has computed, without the MLP
        if not supports_row_cache(model):
            raise CheckpointError(
                f"{folder}: {type(model).__name__} does not support virtual tokens, since it does "
                "not take our attention function. Use the base that they were trained on."
            )
        if config.peft_type == "PREFIX_TUNING":
            _check_kv_shape(folder, config, model.config)
        try:
            loaded = PromptModel(model, config)
        except Exception as error:  # peft has no common class
            raise CheckpointError(
                f"{folder}: the virtual tokens do not fit this model: {first_lines(error)} "
                "Check that they were trained on the same base."
            ) from error
        _fill(loaded, _embedding(folder), folder)
        return loaded.requires_grad_(False).eval()

    @contextmanager
    def as_saved(self, model: Any, folder: Path) -> Iterator[Any]:
        """Use the virtual tokens on disk over the same base."""
        base: Any = model.get_base_model()
        base.activation_checkpointing_disable()  # peft rejects it for virtual tokens
        yield self.load(base, folder)

    def check_tensors(self, model: Any, folder: Path) -> None:
        """Compare nothing besides logits, to which every virtual token contributes."""

    def is_folder(self, folder: Path) -> bool:
        """Whether a folder holds virtual tokens."""
        if not (folder / adapter_folder.CONFIG).is_file():
            return False
        return adapter_folder.read_config(folder).get("peft_type") in adapter_config.VIRTUAL_TOKENS

    def check_folder(self, folder: Path) -> None:
        """Refuse a folder that is not an adapter, or that was half written.

        Raises:
            CheckpointError: names what is missing or damaged.
        """
        adapter_folder.check_folder(folder)

    def base_name(self, folder: Path) -> str:
        """Return the base that an adapter was trained on; "" if the folder does not name it."""
        return PEFT_ADAPTER.base_name(folder)

    def weight_files(self, folder: Path) -> list[Path]:
        """List the files that hold the weights; the MLP takes no part in answers."""
        return adapter_folder.weight_files(folder)

    def digest(self, folder: Path) -> str:
        """Digest what decides the answers: the weights and peft's configuration."""
        return adapter_folder.digest_of(folder)


def _check_config(section: PromptSection, config: Any) -> None:
    if getattr(config, "pre_seq_len", None):
        raise RecipeError(
            "the model has a P-Tuning v2 prefix already, which adapter.method="
            f"{section.method} would replace. Use adapter.method=ptuning_v2 to continue "
            "training it."
        )
    layers = getattr(config, "layer_types", None) or ()
    has_window = (
        getattr(config, "sliding_window", None) is not None or "sliding_attention" in layers
    )
    if not config_supports_row_cache(config) or has_window:
        raise RecipeError(
            f"adapter.method={section.method} puts virtual tokens before every text, and "
            f"layers of a model of type {config.model_type!r} would not see them. Use "
            "adapter.method=lora."
        )


def _config_of(section: PromptSection, model: Any) -> Any:
    import peft

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
    kv_heads, width = _kv_shape(config)
    return peft.PrefixTuningConfig(
        **given,
        prefix_projection=section.prefix_projection,
        num_attention_heads=kv_heads,  # peft does not know ChatGLM's number of KV heads
        token_dim=width,
    )


def _kv_shape(config: Any) -> tuple[int, int]:
    """Return the number of key and value heads of a model, and their total width."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "kv_channels", None) or getattr(config, "head_dim", None)
    return kv_heads, kv_heads * (head_dim or config.hidden_size // heads)


def _check_kv_shape(folder: Path, saved: Any, config: Any) -> None:
    """Refuse keys and values of other heads, or for other layers, than the model has.

    Raises:
        CheckpointError: names the key of the adapter's configuration.
    """
    heads, width = _kv_shape(config)
    wanted = {"num_layers": config.num_hidden_layers, "num_attention_heads": heads}
    for key, expected in (wanted | {"token_dim": width}).items():
        if (found := getattr(saved, key)) != expected:
            raise CheckpointError(
                f"{folder / adapter_folder.CONFIG}: {key} is {found}, and this base needs "
                f"{expected}, so the virtual tokens do not fit this model. Use the base that they "
                "were trained on."
            )


def _encoder(model: Any) -> Any:
    return model.prompt_encoder["default"]


def _embedding(folder: Path) -> dict[str, Tensor]:
    file, stored = adapter_folder.read_tensors(folder)
    if stored.keys() != {TENSOR}:
        raise CheckpointError(
            f"{file}: expected the virtual tokens as {TENSOR}, and it holds "
            f"{', '.join(sorted(stored)[:3]) or 'nothing'}. Check that it was copied completely."
        )
    return {"embedding.weight": stored[TENSOR]}


def _fill(model: Any, state: dict[str, Tensor], folder: Path) -> None:
    try:
        _encoder(model).load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: the virtual tokens do not fit this model: {' '.join(str(error).split())} "
            "Check that they were trained on the same base."
        ) from None


VIRTUAL_TOKENS = VirtualTokens()
