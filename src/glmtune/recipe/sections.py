"""The sections of a recipe: every key, its type, its default and what it means."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)


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
    errors: Literal["stop", "report"] = "stop"  # whether a row with an error stops a training
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
