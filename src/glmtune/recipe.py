"""A run as a value: read from YAML, changed by `key=value`, checked, written back.

Keys bear the names that transformers and peft use. What was resolved is written beside the
adapter that it made, and running that file again repeats the run.

    glmtune train recipes/chatglm3-lora.yaml data.train=rows.json adapter.r=16

A key may be given without its section where only one section has it (`learning_rate=1e-5`).
Names that older releases of transformers used are accepted with one warning.
"""

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, overload

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from glmtune.errors import RecipeError


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """Which model is tuned, and how it is held in memory."""

    name_or_path: str  # a folder, a hub id, or `nano`, the model in the package
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    compute: Literal["int8"] | None = None  # of frozen linear layers; None: as `dtype`
    attn_implementation: Literal["packed", "flash_attention_2", "flash_attention_3"] = "packed"


class TextSection(Section):
    """Which texts are learned, and how they are read."""

    train: tuple[str, ...]  # files, folders or hub ids; `rows.json#500` takes the first 500
    eval: tuple[str, ...] = ()
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0  # held out of `train`
    split: str | None = None  # of a data set that has several
    columns: dict[str, str] = {}  # our field: their column
    layout: Literal["official", "tutorial", "chatglm2", "plain"] = "official"
    max_length: PositiveInt = 1024
    bad_rows: Literal["fail", "skip"] = "fail"

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_is_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class ReplaySection(Section):
    """General rows that are mixed in, so that what the base knows is not forgotten."""

    path: tuple[str, ...]  # as data.train; their format is found by their columns
    ratio: Annotated[float, Field(gt=0, le=10)] = 0.1  # of the number of rows in data.train

    @field_validator("path", mode="before")
    @classmethod
    def _one_is_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class DataSection(TextSection):
    """Which rows are learned, and how they are read."""

    format: str | None = None  # None: found by the columns
    roles: dict[str, str] = {}  # their role: ours
    overlong: Literal["drop", "truncate_prompt", "tutorial"] = "drop"
    replay: ReplaySection | None = None

    @property
    def replayed(self) -> "DataSection | None":
        """The general rows that are mixed in."""
        return None if self.replay is None else self.with_rows(self.replay.path)

    def with_rows(self, paths: tuple[str, ...]) -> "DataSection":
        """Other rows, read like these but for what is their own."""
        own = {"eval": (), "eval_fraction": 0.0, "format": None, "columns": {}, "roles": {}}
        return self.model_copy(update={"train": paths, "replay": None, **own})


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
    rank_pattern: dict[str, PositiveInt] = {}  # the end of a layer's name: its own r
    alpha_pattern: dict[str, PositiveFloat] = {}  # and its own lora_alpha
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


class TrainingSection(Section):
    """How long, how fast and in what portions."""

    per_device_train_batch_size: PositiveInt = 2  # a pack holds this many rows of max_length
    gradient_accumulation_steps: PositiveInt = 16
    num_train_epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = None  # overrides num_train_epochs
    learning_rate: PositiveFloat = 1e-4
    lr_scheduler_type: Literal["constant", "linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_steps: NonNegativeFloat = 0  # below 1: a share of all steps
    weight_decay: NonNegativeFloat = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    optim: Literal["adamw_torch", "adamw_bnb_8bit"] = "adamw_torch"
    max_grad_norm: PositiveFloat | None = 1.0
    average: Literal["tokens", "micro_batches"] = "tokens"  # what a step's loss is a mean over
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0  # only in training
    neftune_noise_alpha: PositiveFloat | None = None  # noise on the vectors of tokens; 5 is usual
    gradient_checkpointing: bool = False
    bf16: bool = False  # autocast over a float32 base
    fp16: bool = False  # the same in float16, with a scaled loss
    sharding: Literal["fsdp2"] | None = None  # deal the weights out among processes
    deepspeed: str | None = None  # a configuration file of DeepSpeed, to deal out by ZeRO instead
    seed: NonNegativeInt = 42
    logging_steps: PositiveInt = 10
    eval_strategy: Literal["no", "steps", "epoch"] = "epoch"
    eval_steps: PositiveInt = 100
    save_strategy: Literal["no", "steps", "epoch"] = "epoch"
    save_steps: PositiveInt = 100
    save_total_limit: PositiveInt | None = 2
    load_best_model_at_end: bool = True  # where there is an evaluation
    early_stopping_patience: PositiveInt | None = None  # evaluations without a better loss
    use_cpu: bool = False

    @property
    def dealt_out(self) -> str | None:
        """Which key deals out among processes what each would hold."""
        if self.sharding:
            return f"sharding={self.sharding}"
        return "deepspeed" if self.deepspeed else None

    @property
    def autocast(self) -> Literal["bfloat16", "float16"] | None:
        """Which half precision products are computed in; None is that of the weights."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else None

    @model_validator(mode="after")
    def _one_way_to_deal_out(self) -> "TrainingSection":
        if self.deepspeed and (self.sharding or self.fp16):
            raise ValueError(
                "training.deepspeed does not go together with training.sharding, which does the "
                "same, nor with fp16. Leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _one_precision(self) -> "TrainingSection":
        if self.bf16 and self.fp16:
            raise ValueError(
                "training.bf16 and training.fp16 are both true. Keep bf16 where the device has "
                "bfloat16, and fp16 elsewhere"
            )
        return self

    @field_validator("eval_strategy", "save_strategy", mode="before")
    @classmethod
    def _false_is_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare `no` as false


class ChecksSection(Section):
    """From where on the run speaks up, and how often it shows what it has learned."""

    lowest_learning_rate: NonNegativeFloat = 1e-6
    highest_learning_rate: PositiveFloat = 2e-3  # of an adapter; a tenth for a model's own weights
    smallest_batch: PositiveInt = 4  # rows of a step
    most_epochs: PositiveFloat = 20
    exploding_gradient: PositiveFloat = 10.0  # times the median norm of the last 50 steps
    smallest_loss_scale: PositiveFloat = 1.0  # in float16; below it the run stops
    rising_loss: PositiveFloat = 1.5  # times the best mean of 10 steps
    worse_evaluations: PositiveInt = 2  # since the best one
    # Answer two prompts every so many steps; None: at evaluations, 0: never.
    sample_steps: NonNegativeInt | None = None
    stop_prompts: NonNegativeInt = 8  # held-out prompts to see that answers end; 0: none
    least_stop_rate: Annotated[float, Field(ge=0, le=1)] = 0.5  # an answer may be right and long
    max_new_tokens: PositiveInt = 128  # of such an answer
    streamed_tolerance: PositiveFloat = 0.25  # of the spread of a token's scores
    merged_tolerance: PositiveFloat = 0.05  # of what the adapter changes
    # Nats per token that general rows may become worse; None: they are not looked at.
    forgetting: PositiveFloat | None = 0.5
    general_rows: tuple[str, ...] = ()  # as data.train; none: the 48 that come with the package

    @field_validator("general_rows", mode="before")
    @classmethod
    def _one_is_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class ObjectiveSection(Section):
    """What is cut out of a text and learned: GLM's blank infilling, and in which mixture.

    The first four are weights; one objective is drawn for each step. The defaults are those of
    the published code; https://arxiv.org/abs/2103.10360.
    """

    token: NonNegativeFloat = 0.5  # short spans
    sentence: NonNegativeFloat = 0.0  # whole sentences
    document: NonNegativeFloat = 0.5  # the rest of the text, or one long span
    causal: NonNegativeFloat = 0.0  # everything from left to right, in ChatGLM3's own form
    masked_share: Annotated[float, Field(gt=0, lt=1)] = 0.15  # of a text, by spans or sentences
    mean_span_length: PositiveFloat = 3.0  # of the Poisson distribution
    longest_span: PositiveInt = 39
    shortest_document_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # 1: always everything
    prefix_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of document level: the end is cut
    shuffle_spans: bool = True
    task_masks: bool = True  # [MASK], [sMASK] and [gMASK]; otherwise all are [MASK]
    two_dimensional: bool = True  # positions: where the blank is, and how far it is filled

    def weights(self) -> dict[str, float]:
        """Give the weight of each objective."""
        return {name: getattr(self, name) for name in ("token", "sentence", "document", "causal")}

    @model_validator(mode="after")
    def _something(self) -> "ObjectiveSection":
        if not any(self.weights().values()):
            raise ValueError(
                "the weights of token, sentence, document and causal are all 0; "
                "at least one objective is needed"
            )
        return self


class PreferenceSection(Section):
    """Whether answers are learned, or which of two is preferred (https://arxiv.org/abs/2305.18290)."""

    stage: Literal["sft", "dpo"] = "sft"  # dpo: rows with a better and a worse answer
    loss: Literal["sigmoid", "hinge", "ipo", "simpo", "orpo"] = "sigmoid"
    beta: PositiveFloat = 0.1  # how soon a margin is enough; of orpo: the weight of preferring
    simpo_gamma: NonNegativeFloat = 0.5  # the margin that simpo asks for

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with the base."""
        return self.loss in ("sigmoid", "hinge", "ipo")


class LintSection(Section):
    """Which checks look at the rows before training, and from where on they speak up."""

    before_training: bool = True
    off: tuple[str, ...] = ()  # ids of checks, as `glmtune lint` shows them
    # The share of four-letter pieces that two questions, and their answers, have in common.
    near_duplicate: Annotated[float, Field(ge=0.7, le=1)] = 0.9
    short_answer_chars: PositiveInt = 30  # shorter answers to one prompt contradict each other
    language_min_words: PositiveInt = 12  # an answer in another language has at least so many

    @field_validator("off", mode="before")
    @classmethod
    def _one_is_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class OutputSection(Section):
    """Where the adapter goes, and who is told about the run."""

    dir: str
    overwrite: bool = False  # replace a run that the folder already holds
    report_to: tuple[str, ...] = ("tensorboard",)
    run_name: str | None = None

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_is_many(cls, value: Any) -> Any:
        if value in (None, "none", "None"):
            return ()
        return (value,) if isinstance(value, str) else value


class RunRecipe(Section):
    """What every run has."""

    model: ModelSection
    data: TextSection
    adapter: AdapterSection
    training: TrainingSection = TrainingSection()
    checks: ChecksSection = ChecksSection()
    output: OutputSection

    @model_validator(mode="after")
    def _agree(self) -> Self:
        held_out = bool(self.data.eval) or self.data.eval_fraction > 0
        if self.data.eval and self.data.eval_fraction:
            raise ValueError("data.eval and data.eval_fraction are both given; keep one of them")
        if self.training.early_stopping_patience and not held_out:
            raise ValueError(
                "training.early_stopping_patience needs held-out rows: "
                "give data.eval or data.eval_fraction"
            )
        trains_weights = isinstance(self.adapter, FullSection | FreezeSection)
        if trains_weights and self.model.dtype not in ("auto", "float32"):
            raise ValueError(
                f"adapter.method={self.adapter.method} trains the weights themselves, and "
                f"{self.model.dtype} loses most of their updates. Leave model.dtype out, which is "
                "float32 here; training.bf16=true computes in bfloat16 all the same"
            )
        adds_tokens = isinstance(self.adapter, PtuningV2Section | PromptSection)
        if adds_tokens and self.model.attn_implementation != "packed":
            raise ValueError(
                f"model.attn_implementation={self.model.attn_implementation} has no place for what "
                f"adapter.method={self.adapter.method} puts before every row. Use packed"
            )
        if self.model.compute == "int8" and trains_weights:
            raise ValueError(
                f"model.compute=int8 is for frozen weights, and adapter.method="
                f"{self.adapter.method} trains them. Use adapter.method=lora, or leave "
                "model.compute out"
            )
        if self.model.compute == "int8" and isinstance(self.adapter, QloraSection):
            raise ValueError(
                "model.compute=int8 and adapter.method=qlora are two ways to hold the same "
                "layers. Leave one of them out"
            )
        takes_weights = isinstance(self.adapter, LoraSection) and (
            self.adapter.use_dora or self.adapter.takes_from_base
        )
        if self.model.compute == "int8" and takes_weights:
            raise ValueError(
                "adapter.use_dora and adapter.init_lora_weights=pissa or olora need the weights "
                "in 16 bits, and model.compute=int8 does not keep them. Leave one of the two out"
            )
        dealt_out = self.training.dealt_out
        if dealt_out and self.model.compute == "int8":
            raise ValueError(
                f"training.{dealt_out} is for plain weights, and model.compute=int8 packs them. "
                "Leave one of the two out"
            )
        if dealt_out and self.training.optim != "adamw_torch":
            raise ValueError(
                f"training.{dealt_out} and training.optim={self.training.optim} do not go "
                "together; dealing out alone divides what AdamW keeps. Leave one of the two out"
            )
        if dealt_out and type(self.adapter) not in SHARDED:
            raise ValueError(
                f"training.{dealt_out} works with adapter.method="
                f"{', '.join(kind.model_fields['method'].default for kind in SHARDED)}, and not "
                f"with {self.adapter.method}. Leave it out"
            )
        if self.training.sharding and self.training.neftune_noise_alpha is not None:
            raise ValueError(
                "training.neftune_noise_alpha reads the vectors of tokens whole, and "
                f"training.{dealt_out} deals them out. Leave one of the two out"
            )
        if self.training.sharding and self.checks.sample_steps:
            raise ValueError(
                "checks.sample_steps lets one process answer in the middle of a run, and with "
                f"training.{dealt_out} none has the whole model. Leave one of the two out"
            )
        if isinstance(self.adapter, NoneSection) and not held_out:
            raise ValueError(
                "adapter.method=none only evaluates, and there is nothing held out: "
                "give data.eval or data.eval_fraction"
            )
        if Path(self.output.dir).resolve() == Path(self.model.name_or_path).resolve():
            raise ValueError(
                f"output.dir is the folder of the model itself ({self.output.dir}); "
                "give a folder of its own"
            )
        return self

    def to_yaml(self) -> str:
        """Write every value, the defaults included, so that later defaults change nothing."""
        return yaml.safe_dump(self.model_dump(mode="json"), allow_unicode=True, sort_keys=False)


class Recipe(RunRecipe):
    """Everything that decides a fine-tuning."""

    data: DataSection
    adapter: AdapterSection = LoraSection()
    preference: PreferenceSection = PreferenceSection()
    lint: LintSection = LintSection()

    @model_validator(mode="after")
    def _prefers(self) -> Self:
        preference, adapter = self.preference, self.adapter
        if preference.stage == "sft":
            return self
        if self.data.overlong != "drop":
            raise ValueError(
                f"data.overlong={self.data.overlong} would give the two answers of a pair "
                "different prompts. Leave it out with preference.stage=dpo"
            )
        if self.training.dealt_out or self.data.replay is not None:
            raise ValueError(
                "training.sharding, training.deepspeed and data.replay are not there for "
                "preference.stage=dpo. Leave them out"
            )
        if self.training.label_smoothing_factor:
            raise ValueError(
                "training.label_smoothing_factor smooths the loss of answers, and "
                "preference.stage=dpo has another. Leave it out"
            )
        if not isinstance(adapter, PeftSection):
            if preference.has_reference or not isinstance(adapter, FullSection | FreezeSection):
                raise ValueError(
                    f"preference.loss={preference.loss} is for an adapter over its base, and "
                    f"adapter.method={adapter.method} is none of that kind. Use lora; or, with "
                    "full and freeze, preference.loss=simpo or orpo"
                )
            return self
        changes_base = isinstance(adapter, LoraSection) and adapter.bias != "none"
        if preference.has_reference and changes_base:
            raise ValueError(
                f"preference.loss={preference.loss} compares with the base, which adapter.bias "
                "changes. Leave it out, or use preference.loss=simpo or orpo"
            )
        if preference.has_reference and adapter.name_or_path is not None:
            raise ValueError(
                f"preference.loss={preference.loss} compares with the base, and not with the "
                "adapter of adapter.name_or_path. Merge that one first and give the merged model, "
                "or use preference.loss=simpo or orpo"
            )
        return self


class PretrainModelSection(ModelSection):
    """Which model goes on learning, or which tokenizer and shape a new one has."""

    # The fields of config.json, for a new model; `name_or_path` then gives the tokenizer alone.
    config: dict[str, bool | int | float | str] = {}


class PretrainRecipe(RunRecipe):
    """Everything that decides a pre-training."""

    model: PretrainModelSection
    objective: ObjectiveSection = ObjectiveSection()
    adapter: AdapterSection = FullSection()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.training.dealt_out:
            raise ValueError(
                f"training.{self.training.dealt_out} is not there for pre-training. Leave it out"
            )
        if self.model.config and not isinstance(self.adapter, FullSection):
            raise ValueError(
                f"model.config makes a new model, which adapter.method={self.adapter.method} "
                "would leave as it was drawn. Use adapter.method=full"
            )
        has_prefix = any(w for name, w in self.objective.weights().items() if name != "causal")
        if has_prefix and self.model.attn_implementation != "packed":
            raise ValueError(
                f"model.attn_implementation={self.model.attn_implementation} lets no token of a "
                "blank's context see a later one, so it would learn another objective in silence. "
                "Use packed, or objective.causal alone"
            )
        return self


AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)

# Names that transformers or peft have given up, and short forms in wide use: (section, new name).
RENAMED: Mapping[str, tuple[str, str]] = {
    "model_name_or_path": ("model", "name_or_path"),
    "adapter_name_or_path": ("adapter", "name_or_path"),
    "torch_dtype": ("model", "dtype"),
    "evaluation_strategy": ("training", "eval_strategy"),
    "warmup_ratio": ("training", "warmup_steps"),
    "no_cuda": ("training", "use_cpu"),
    "output_dir": ("output", "dir"),
    "overwrite_output_dir": ("output", "overwrite"),
}


@overload
def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe: ...


@overload
def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, kind: type[AnyRecipe]
) -> AnyRecipe: ...


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, kind: type[RunRecipe] = Recipe
) -> RunRecipe:
    """Read a recipe and change single values.

    Args:
        path: a YAML file. Paths in it are relative to the working directory.
        overrides: `section.key=value`, or `key=value` where only one section has the key;
            values are YAML.
        kind: of recipe, for fine-tuning or for pre-training.

    Raises:
        RecipeError: the file cannot be read, a key is unknown or a value does not fit.
    """
    path = Path(path)
    tree = read_yaml(path, "there is no such recipe. Recipes that work are in recipes/.")
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise RecipeError(
            f"{path}: the file is {found}, expected sections "
            f"({', '.join(kind.model_fields)}), each with its keys."
        )
    return build_recipe(tree, overrides, source=str(path), kind=kind)


@overload
def build_recipe(
    tree: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe"
) -> Recipe: ...


@overload
def build_recipe(
    tree: Mapping[str, Any],
    overrides: Sequence[str] = (),
    source: str = "recipe",
    *,
    kind: type[AnyRecipe],
) -> AnyRecipe: ...


def build_recipe(
    tree: Mapping[str, Any],
    overrides: Sequence[str] = (),
    source: str = "recipe",
    *,
    kind: type[RunRecipe] = Recipe,
) -> RunRecipe:
    """Check a tree of plain values and make a recipe of it; `source` names it in errors."""
    sections: dict[str, Any] = {}
    for name, values in tree.items():
        homes = [home for home, known in _known_keys(kind) if known == name]
        if len(homes) == 1 and name not in kind.model_fields:  # a key without its section
            sections.setdefault(homes[0], {})[name] = values
        elif isinstance(values, Mapping):
            sections[str(name)] = {**sections.get(str(name), {}), **values}
        else:
            sections[str(name)] = values
    for override in overrides:
        _apply(override, sections, kind)
    for section, key in list(_keys(sections, kind)):
        if key in RENAMED and (section, key) not in _known_keys(kind):
            _rename(sections, section, key)
    try:
        return kind.model_validate(sections)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(error, source, kind))) from None


def read_yaml(path: Path, if_missing: str) -> Any:
    """Read a YAML file.

    Args:
        path: of the file.
        if_missing: what to say when it is not there.

    Raises:
        RecipeError: it is not there, or no YAML; says the line.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: {if_missing}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise RecipeError(f"{path}{line}: not valid YAML: {problem}. Mend the file.") from None


def _apply(override: str, sections: dict[str, Any], kind: type[RunRecipe]) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise RecipeError(f"{override!r}: expected KEY=VALUE, such as training.learning_rate=5e-5.")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: the value is not valid YAML: {error}") from None
    section, key = _locate(name, kind)
    values = sections.setdefault(section, {})
    if not isinstance(values, dict):
        raise RecipeError(f"section {section!r} is {values!r}, expected keys and values.")
    head, *rest = key.split(".")
    if rest:  # an entry of a mapping: data.columns.instruction=q
        entry = values.setdefault(head, {})
        if not isinstance(entry, dict):
            raise RecipeError(f"{override!r}: {section}.{head} is {entry!r}, not a mapping.")
        values[head] = {**entry, ".".join(rest): value}
    else:
        values[head] = value


def _locate(name: str, kind: type[RunRecipe]) -> tuple[str, str]:
    """Find the section of a key that may come without it."""
    section, dot, key = name.partition(".")
    if dot and section in kind.model_fields:
        return section, key
    if name in RENAMED:
        return RENAMED[name][0], name
    homes = [home for home, known in _known_keys(kind) if known == section]
    if len(homes) == 1:
        return homes[0], name
    if homes:
        choices = " or ".join(f"{home}.{name}" for home in homes)
        raise RecipeError(f"{name!r} is a key of several sections. Write {choices}.")
    everything = [f"{home}.{known}" for home, known in _known_keys(kind)]
    everything += [known for _, known in _known_keys(kind)]
    raise RecipeError(f"{name!r} is not a key of a recipe.{_did_you_mean(name, everything)}")


def _rename(sections: dict[str, Any], section: str, key: str) -> None:
    new_section, new_key = RENAMED[key]
    values = sections.setdefault(new_section, {})
    if new_key in values:
        raise RecipeError(
            f"{section}.{key} and {new_section}.{new_key} are both given, "
            f"and the first is the old name of the second. Keep {new_section}.{new_key}."
        )
    values[new_key] = sections[section].pop(key)
    warnings.warn(
        f"{section}.{key} is now called {new_section}.{new_key}; its value was taken over.",
        stacklevel=3,
    )


def _keys(sections: Mapping[str, Any], kind: type[RunRecipe]) -> Iterator[tuple[str, str]]:
    for section in kind.model_fields:
        values = sections.get(section)
        if isinstance(values, dict):
            yield from ((section, str(key)) for key in values)


def _known_keys(kind: type[RunRecipe]) -> Iterator[tuple[str, str]]:
    for section in kind.model_fields:
        yield from ((section, key) for key in keys_of(section, kind=kind))


def keys_of(section: str, method: str | None = None, kind: type[RunRecipe] = Recipe) -> list[str]:
    """List the keys of a section; of `adapter` those of one method, or of all."""
    annotation: Any = kind.model_fields[section].annotation
    kinds = [get_args(tagged)[0] for tagged in get_args(annotation)] or [annotation]
    if method is not None:
        kinds = [kind for kind in kinds if kind.model_fields["method"].default == method]
    return list(dict.fromkeys(key for kind in kinds for key in kind.model_fields))


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else f" Known are: {', '.join(known)}."


def _explain(error: ValidationError, source: str, kind: type[RunRecipe]) -> Iterator[str]:
    """Say each complaint of pydantic in our words."""
    for problem in error.errors():
        path = list(problem["loc"])
        section = str(path[0]) if path else ""
        method = None
        if section == "adapter" and len(path) > 1:
            method = str(path.pop(1))  # pydantic says which member of the union it tried
        where = ".".join(str(part) for part in path)
        if problem["type"] == "extra_forbidden":
            known = list(kind.model_fields)
            if len(path) > 1:
                known = keys_of(section, method, kind)
            what = f"adapter.method={method}" if method else "a recipe"
            hint = _did_you_mean(str(path[-1]), known)
            yield f"{source}: {where!r} is not a key of {what}.{hint}"
        elif problem["type"] == "missing":
            yield f"{source}: {where} is missing. Give it in the file or as {where}=VALUE."
        elif problem["type"] == "union_tag_invalid":
            given = str(problem["ctx"]["tag"])
            why = NOT_OFFERED.get(given) or _did_you_mean(given, METHODS)
            yield f"{source}: adapter.method is {given!r}.{why}"
        elif problem["type"] == "value_error" and len(path) < 2:
            yield f"{source}: {problem['ctx']['error']}."
        elif problem["input"] is None:
            yield f"{source}: {where} is null, which is no value of it. Leave the key out."
        elif problem["type"] == "tuple_type":
            yield (
                f"{source}: {where} is {problem['input']!r}, expected a list. "
                f"Write {where}: [first, second]."
            )
        else:
            yield f"{source}: {where} is {problem['input']!r}: {problem['msg'].lower()}."
