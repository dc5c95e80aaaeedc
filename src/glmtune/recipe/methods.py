"""One section per tuning method; `adapter.method` chooses."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from glmtune.recipe.sections import Section


class PeftSection(Section):
    """What every method has that peft adds to chosen layers."""

    target_modules: tuple[str, ...] | Literal["all-linear"] | None = None  # None: peft's choice
    modules_to_save: tuple[str, ...] = ()  # trained as they are and saved whole
    name_or_path: str | None = None  # a folder with an adapter, to go on with its weights

    @field_validator("target_modules", "modules_to_save", mode="before")
    @classmethod
    def _name_is_names(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all-linear" else value


INITIALISATIONS = r"^(gaussian|olora|pissa|pissa_niter_[0-9]+)$"


class LoraSection(PeftSection):
    """Which weights get a low-rank update, and how large (https://arxiv.org/abs/2106.09685)."""

    method: Literal["lora"] = "lora"
    r: PositiveInt = 8
    lora_alpha: PositiveFloat = 16.0  # the update is scaled by lora_alpha / r
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layers_to_transform: tuple[NonNegativeInt, ...] | None = None  # None: all
    rank_pattern: dict[str, PositiveInt] = Field(
        default_factory=dict
    )  # the end of a layer's name: its own r
    alpha_pattern: dict[str, PositiveFloat] = Field(default_factory=dict)  # and its own lora_alpha
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    # How A and B begin. PiSSA and OLoRA take them out of the weights (see docs/recipes.md).
    init_lora_weights: Literal[True] | Annotated[str, Field(pattern=INITIALISATIONS)] = True
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None  # learning rate of B over A's

    @field_validator("layers_to_transform", mode="before")
    @classmethod
    def _one_is_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @property
    def takes_from_base(self) -> bool:
        """Whether A and B begin with a part of the weights."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))

    @model_validator(mode="after")
    def _agree(self) -> "LoraSection":
        if self.layers_to_transform is not None and not isinstance(self.target_modules, tuple):
            raise ValueError(
                "adapter.layers_to_transform needs adapter.target_modules by name, "
                "such as [query_key_value]"
            )
        if self.takes_from_base and self.name_or_path is not None:
            raise ValueError(
                f"adapter.init_lora_weights={self.init_lora_weights} begins with a part of the "
                "weights, and adapter.name_or_path with an earlier adapter. Leave one of them out"
            )
        if self.takes_from_base and self.use_dora:
            raise ValueError(
                f"adapter.init_lora_weights={self.init_lora_weights} takes a part out of the "
                "weights, and use_dora measures the weights; peft cannot save the two as one "
                "adapter. Leave one of them out"
            )
        return self


class QloraSection(LoraSection):
    """LoRA over weights that are packed into few bits (https://arxiv.org/abs/2305.14314)."""

    method: Literal["qlora"] = "qlora"  # type: ignore[assignment]
    quantization_bit: Literal[4, 8] = 4  # 4 is NF4
    quantization_method: Literal["bnb", "torchao"] = "bnb"
    double_quantization: bool = True  # pack the scales of 4-bit blocks as well

    @model_validator(mode="after")
    def _fits(self) -> "QloraSection":
        if self.quantization_method == "torchao" and self.quantization_bit != 8:
            raise ValueError(
                "adapter.quantization_method=torchao packs weights into 8 bits; give "
                "adapter.quantization_bit=8, or use bnb"
            )
        if self.takes_from_base:
            raise ValueError(
                f"adapter.init_lora_weights={self.init_lora_weights} takes a part out of the "
                "weights, which are packed with adapter.method=qlora. Use adapter.method=lora, or "
                "leave init_lora_weights out"
            )
        return self


class Ia3Section(PeftSection):
    """One learned factor for each output of a layer (https://arxiv.org/abs/2205.05638)."""

    method: Literal["ia3"] = "ia3"
    # Those whose inputs are scaled instead. None: peft's choice.
    feedforward_modules: tuple[str, ...] | None = None


class VeraSection(PeftSection):
    """Random low-rank matrices for all layers, scaled by learned vectors.

    Source: https://arxiv.org/abs/2310.11454.
    """

    method: Literal["vera"] = "vera"
    r: PositiveInt = 256  # nothing of this size is learned, so it may be large
    vera_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    d_initial: PositiveFloat = 0.1
    projection_prng_key: NonNegativeInt = 0  # draws the random matrices


class OftSection(PeftSection):
    """Each block of a layer's inputs is turned, and nothing is stretched.

    Source: https://arxiv.org/abs/2306.07280.
    """

    method: Literal["oft"] = "oft"
    oft_block_size: PositiveInt = 32  # divides the inputs of every adapted layer
    module_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class PromptSection(Section):
    """What the methods have in common that put virtual tokens before every text, by peft."""

    method: Literal["prompt_tuning", "p_tuning", "prefix_tuning"]
    num_virtual_tokens: PositiveInt = 20


class PromptTuningSection(PromptSection):
    """The virtual tokens are learned vectors (https://arxiv.org/abs/2104.08691)."""

    method: Literal["prompt_tuning"] = "prompt_tuning"
    # They begin as the vectors of random tokens, or of a text, or as noise.
    prompt_tuning_init: Literal["SAMPLE_VOCAB", "TEXT", "RANDOM"] = "SAMPLE_VOCAB"
    prompt_tuning_init_text: str | None = None

    @model_validator(mode="after")
    def _has_text(self) -> "PromptTuningSection":
        if (self.prompt_tuning_init == "TEXT") != bool(self.prompt_tuning_init_text):
            raise ValueError(
                "adapter.prompt_tuning_init=TEXT and adapter.prompt_tuning_init_text belong "
                "together; give both of them, or none"
            )
        return self


class PTuningSection(PromptSection):
    """An MLP makes the vectors (https://arxiv.org/abs/2103.10385)."""

    method: Literal["p_tuning"] = "p_tuning"
    encoder_hidden_size: PositiveInt | None = None  # of the MLP; None: as wide as the model


class PrefixTuningSection(PromptSection):
    """Keys and values of every layer are learned (https://arxiv.org/abs/2101.00190)."""

    method: Literal["prefix_tuning"] = "prefix_tuning"
    prefix_projection: bool = False  # an MLP makes them; many more numbers are trained
    encoder_hidden_size: PositiveInt | None = None  # of the MLP; None: as wide as the model


class PtuningV2Section(Section):
    """Learned keys and values before every text, in the layout of ChatGLM's own scripts.

    Source: https://arxiv.org/abs/2110.07602.
    """

    method: Literal["ptuning_v2"] = "ptuning_v2"
    pre_seq_len: PositiveInt = 128
    prefix_projection: bool = False  # an MLP makes them; many more numbers are trained


class FullSection(Section):
    """Every weight of the model is trained; what is saved is a whole model."""

    method: Literal["full"] = "full"


class FreezeSection(Section):
    """Some of the model's own weights are trained; what is saved is a whole model."""

    method: Literal["freeze"] = "freeze"
    trainable_layers: NonNegativeInt = 0  # the last so many decoder layers
    trainable_modules: tuple[str, ...] = ()  # and what bears one of these names

    @field_validator("trainable_modules", mode="before")
    @classmethod
    def _one_is_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _something(self) -> "FreezeSection":
        if not self.trainable_layers and not self.trainable_modules:
            raise ValueError(
                "adapter.method=freeze trains nothing as it stands; give "
                "adapter.trainable_layers=2 for the last two layers, or adapter.trainable_modules"
            )
        return self


class NoneSection(Section):
    """Nothing is trained: the model is held against the held-out rows as it is."""

    method: Literal["none"] = "none"


SHARDED: tuple[type[Section], ...] = (LoraSection, FullSection, FreezeSection)


def _method_of(value: Any) -> Any:
    if isinstance(value, Mapping):
        method = value.get("method", "lora")
        return "none" if method is None else method  # what YAML makes of a bare `null`
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
        " It is not offered: peft does not save what AdaLoRA remembers of the importance of each "
        "rank, so a run could not be resumed exactly, and adds its penalty to a mean loss inside "
        "the model, where ours is a sum outside of it. Use lora with adapter.rank_pattern, or "
        "adapter.use_rslora=true with a larger r."
    ),
}
