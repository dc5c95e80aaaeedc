"""One section per tuning method; `adapter.method` chooses."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from glmtune.recipe.numbers import (
    LayerNumber,
    Positive,
    Rank,
    Seed,
    Share,
    Whole,
    Words,
)
from glmtune.recipe.sections import Section


class PeftSection(Section):
    """Keys of every method by which peft adapts chosen layers."""

    target_modules: tuple[str, ...] | Literal["all-linear"] | None = None  # None: peft's choice
    modules_to_save: Words = ()  # trained in full and saved with the adapter
    name_or_path: str | None = None  # a folder with an adapter to start from

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names_or_all(cls, value: Any) -> Any:
        if value is None or value == "all-linear":
            return value
        if isinstance(value, str):  # also "query_key_value,dense"
            value = [word.strip() for word in value.split(",") if word.strip()]
        is_list = isinstance(value, list | tuple) and bool(value)
        if not is_list or not all(isinstance(name, str) for name in value):
            raise PydanticCustomError(
                "no_modules",
                "expected names of layers, such as [query_key_value, dense], or all-linear",
            )
        return value


NESTED_REPETITION = re.compile(r"[*+}]\??\)[^()]*\)+[*+{]|[*+}]\??\)[*+{]")
INITIALIZATIONS = r"^(gaussian|olora|pissa|pissa_niter_[0-9]{1,4})$"


class LoraSection(PeftSection):
    """Which weights get a low-rank update, and how large (https://arxiv.org/abs/2106.09685)."""

    method: Literal["lora"] = "lora"
    r: Rank = 8
    lora_alpha: Positive = 16.0  # the update is scaled by lora_alpha / r
    lora_dropout: Share = 0.0
    layers_to_transform: tuple[LayerNumber, ...] | None = None  # None: all
    # r and lora_alpha of single layers, by the end of their names.
    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[str, Positive] = Field(default_factory=dict)
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    # PiSSA and OLoRA initialize A and B from the weights (see docs/recipes.md).
    init_lora_weights: Literal[True] | Annotated[str, Field(pattern=INITIALIZATIONS)] = True
    loraplus_lr_ratio: Annotated[Positive, Field(ge=1)] | None = (
        None  # learning rate of B / that of A
    )

    @field_validator("layers_to_transform", mode="before")
    @classmethod
    def _one_is_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _are_expressions(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            try:
                if NESTED_REPETITION.search(name):
                    raise re.error("a repetition in a repetition may take forever")
                re.compile(name)  # peft reads them so
            except (re.error, RecursionError, OverflowError) as error:
                raise PydanticCustomError(
                    "no_expression",
                    "expected names of layers or regular expressions, and {name} is none: {why}",
                    {"name": repr(name), "why": str(error)},
                ) from None
        return value

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _is_an_initialization(cls, value: Any) -> Any:
        if value is True or (isinstance(value, str) and re.match(INITIALIZATIONS, value)):
            return value
        raise PydanticCustomError(
            "no_initialization",
            "expected true, gaussian, olora, pissa or pissa_niter_4 (with any number)",
        )

    @property
    def takes_from_base(self) -> bool:
        """Whether A and B are initialized from the weights."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))


class QloraSection(LoraSection):
    """LoRA over weights quantized to few bits (https://arxiv.org/abs/2305.14314)."""

    method: Literal["qlora"] = "qlora"  # type: ignore[assignment]
    quantization_bit: Annotated[Literal[4, 8], Whole] = 4  # 4 is NF4
    quantization_method: Literal["bnb", "torchao"] = "bnb"
    double_quantization: bool = True  # quantize the scales of 4-bit blocks too


class Ia3Section(PeftSection):
    """A learned factor for each output of a layer (https://arxiv.org/abs/2205.05638)."""

    method: Literal["ia3"] = "ia3"
    # Layers whose inputs are scaled instead of their outputs. None: peft's choice.
    feedforward_modules: tuple[str, ...] | None = None


class VeraSection(PeftSection):
    """Random low-rank matrices for all layers, scaled by learned vectors.

    Source: https://arxiv.org/abs/2310.11454.
    """

    method: Literal["vera"] = "vera"
    r: Rank = 256  # of frozen matrices, so it may be large
    vera_dropout: Share = 0.0
    d_initial: Positive = 0.1
    projection_prng_key: Seed = 0  # seed of the random matrices


class OftSection(PeftSection):
    """An orthogonal matrix for each block of a layer's inputs.

    Source: https://arxiv.org/abs/2306.07280.
    """

    method: Literal["oft"] = "oft"
    oft_block_size: Rank = 32  # must divide the inputs of every adapted layer
    module_dropout: Share = 0.0


class PromptSection(Section):
    """Keys of every method by which peft puts virtual tokens before each row."""

    method: Literal["prompt_tuning", "p_tuning", "prefix_tuning"]
    num_virtual_tokens: Rank = 20


class PromptTuningSection(PromptSection):
    """The virtual tokens are learned vectors (https://arxiv.org/abs/2104.08691)."""

    method: Literal["prompt_tuning"] = "prompt_tuning"
    # Initialized as the embeddings of random tokens, or of a text, or randomly.
    prompt_tuning_init: Literal["SAMPLE_VOCAB", "TEXT", "RANDOM"] = "SAMPLE_VOCAB"
    prompt_tuning_init_text: str | None = None


class PTuningSection(PromptSection):
    """An MLP computes the virtual tokens (https://arxiv.org/abs/2103.10385)."""

    method: Literal["p_tuning"] = "p_tuning"
    encoder_hidden_size: Rank | None = None  # of the MLP; None: as wide as the model


class PrefixTuningSection(PromptSection):
    """Learned keys and values in every layer (https://arxiv.org/abs/2101.00190)."""

    method: Literal["prefix_tuning"] = "prefix_tuning"
    prefix_projection: bool = False  # an MLP makes them; many more numbers are trained
    encoder_hidden_size: Rank | None = None  # of the MLP; None: as wide as the model


class PtuningV2Section(Section):
    """Learned keys and values in every layer, as ChatGLM's own scripts save them.

    Source: https://arxiv.org/abs/2110.07602.
    """

    method: Literal["ptuning_v2"] = "ptuning_v2"
    pre_seq_len: Rank = 128
    prefix_projection: bool = False  # an MLP makes them; many more numbers are trained


class FullSection(Section):
    """All weights of the model are trained; a complete model is saved."""

    method: Literal["full"] = "full"


class FreezeSection(Section):
    """Some weights of the model are trained; a complete model is saved."""

    method: Literal["freeze"] = "freeze"
    trainable_layers: LayerNumber = 0  # this many decoder layers, from the last
    trainable_modules: Words = ()  # and modules with one of these names


class NoneSection(Section):
    """Nothing is trained; the model is evaluated on the held-out rows."""

    method: Literal["none"] = "none"


def _method_of(value: Any) -> Any:
    if isinstance(value, Mapping):
        method = value.get("method", "lora")
        return "none" if method is None else method  # YAML reads a bare `null` as None
    return getattr(value, "method", None)


AdapterSection = Annotated[
    Annotated[LoraSection, Tag("lora")]
    | Annotated[QloraSection, Tag("qlora")]
    | Annotated[Ia3Section, Tag("ia3")]
    | Annotated[VeraSection, Tag("vera")]
    | Annotated[OftSection, Tag("oft")]
    | Annotated[PromptTuningSection, Tag("prompt_tuning")]
    | Annotated[PTuningSection, Tag("p_tuning")]
    | Annotated[PrefixTuningSection, Tag("prefix_tuning")]
    | Annotated[PtuningV2Section, Tag("ptuning_v2")]
    | Annotated[FullSection, Tag("full")]
    | Annotated[FreezeSection, Tag("freeze")]
    | Annotated[NoneSection, Tag("none")],
    Discriminator(_method_of),
]
"""How a model is tuned, by `method`."""

METHODS: tuple[str, ...] = tuple(
    get_args(tagged)[1].tag for tagged in get_args(get_args(AdapterSection)[0])
)


NOT_OFFERED: Mapping[str, str] = {
    "adalora": (
        " It is not offered: peft does not save AdaLoRA's importance scores of the ranks, so a run "
        "could not be resumed exactly, and adds its penalty to a mean loss inside the model, where "
        "ours is a sum computed outside of it. Use lora with adapter.rank_pattern, or "
        "adapter.use_rslora=true with a larger r."
    ),
}
