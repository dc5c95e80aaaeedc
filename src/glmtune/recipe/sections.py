"""The sections of a recipe: every key, its type, its default and what it means."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)
from pydantic_core import PydanticCustomError

from glmtune.recipe.choices import BadRows, Compute, Dtype, Layout, MetricName, Overlong, Stage
from glmtune.recipe.numbers import (
    MOST_SIZE,
    Count,
    CountOrZero,
    Names,
    NamesOrNone,
    Number,
    Positive,
    PositiveOrZero,
    Rate,
    Seed,
    Share,
    ShareOrAll,
    Size,
    Whole,
    Words,
    split_words,
)
from glmtune.recipe.sources import Sources, SourceSection, SourcesOrNone

_FLAG = TypeAdapter(bool)
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4_000  # of a name and of a path, for a file system


class Section(BaseModel):
    """A part of a recipe: immutable, and refusing unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """Which model is tuned, and how its weights are stored in memory."""

    name_or_path: str  # a folder, a hub id, or `nano`, the model in the package
    # New tokens, each read in one piece; their rows of the embedding and of the output layer are
    # trained beside the LoRA.
    add_tokens: Words = ()
    dtype: Dtype = "auto"
    compute: Compute | None = None  # for frozen linear layers; None: that of `dtype`
    attn_implementation: Literal["packed", "flash_attention_2", "flash_attention_3"] = "packed"


class TextSection(Section):
    """Which texts are learned, and how they are read."""

    # Files, folders or hub ids; `rows.json#500` takes the first 500. A source with keys of its own
    # is {path: rows.json, weight: 2, format: ..., columns: ..., roles: ..., split: ...}.
    train: Annotated[Sources, Field(min_length=1)]
    eval: SourcesOrNone = ()
    # Held out of `train`: a share below 1, or this many rows.
    eval_fraction: PositiveOrZero = 0.0
    split: str | None = None  # for a data set with several
    columns: dict[str, str] = {}  # our field: column of the file
    layout: Layout = "official"
    max_length: Annotated[int, Whole, Field(gt=0, le=2**21)] = 1024
    bad_rows: BadRows = "fail"

    @field_validator("eval_fraction")
    @classmethod
    def _is_a_share_or_a_number(cls, value: float) -> float:
        if value == 1 or (value > 1 and value != int(value)):
            raise PydanticCustomError(
                "no_share", "expected a share less than 1, or a whole number of rows from 2"
            )
        return value

    @field_validator("eval")
    @classmethod
    def _counts_once(cls, sources: tuple[str | SourceSection, ...]) -> Any:
        for source in sources:
            if isinstance(source, SourceSection) and source.weight != 1:
                raise ValueError(f"{source.path} has a weight; held-out rows count once each")
        return sources


class ReplaySection(Section):
    """General rows that are mixed in, against forgetting."""

    path: Annotated[Names, Field(min_length=1)]  # like data.train; the format is detected
    ratio: Rate = 0.1  # of the number of rows in data.train


class DataSection(TextSection):
    """Which rows are learned, and how they are read."""

    format: str | None = None  # None: detected from the columns
    roles: dict[str, str] = {}  # role in the file: our role
    overlong: Overlong = "drop"
    mask_history: bool = False  # only the last answer of a row is learned
    train_on_prompt: bool = False  # prompts are learned, too
    replay: ReplaySection | None = None
    # Read rows while training, without a download or a cache; needs training.max_steps.
    streaming: bool = False
    shuffle_buffer: Size = 10_000  # examples that are shuffled together, with streaming

    @property
    def replayed(self) -> "DataSection | None":
        """The general rows that are mixed in."""
        return None if self.replay is None else self.with_rows(self.replay.path)

    def with_rows(self, paths: tuple[str | SourceSection, ...]) -> "DataSection":
        """Read other rows with the same keys, except those that describe certain files."""
        own = {"eval": (), "eval_fraction": 0.0, "format": None, "columns": {}, "roles": {}}
        own["streaming"] = False
        return self.model_copy(update={"train": paths, "replay": None, **own})


class TrainingSection(Section):
    """How long, at which learning rate and with which batch size."""

    per_device_train_batch_size: Size = 2  # of max_length; a pack holds their tokens
    gradient_accumulation_steps: Size = 16
    num_train_epochs: Annotated[float, Number, Field(gt=0, le=100_000)] = 1.0
    max_steps: Count | None = None  # overrides num_train_epochs
    learning_rate: Rate = 1e-4
    lr_scheduler_type: Literal["constant", "linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_steps: PositiveOrZero = 0  # below 1: a fraction of all steps
    weight_decay: Annotated[float, Number, Field(ge=0, le=100)] = 0.0
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Annotated[float, Number, Field(gt=0, le=1)] = 1e-8
    optim: Literal["adamw_torch", "adamw_bnb_8bit"] = "adamw_torch"
    max_grad_norm: Positive | None = 1.0
    average: Literal["tokens", "micro_batches"] = "tokens"  # a step's loss is their mean
    label_smoothing_factor: Share = 0.0  # in training only
    neftune_noise_alpha: Positive | None = None  # noise on the embeddings; 5 is usual
    # offload: on a GPU, what is kept for the backward pass waits in the memory of the host.
    gradient_checkpointing: bool | Literal["offload"] = False
    bf16: bool = False  # autocast over a float32 base
    fp16: bool = False  # autocast to float16, with a scaled loss
    sharding: Literal["fsdp2"] | None = None  # shard the weights across processes
    deepspeed: str | None = None  # path of a DeepSpeed configuration, to shard by ZeRO
    seed: Seed = 42
    logging_steps: Count = 10
    eval_strategy: Literal["no", "steps", "epoch"] = "epoch"
    eval_steps: Count = 100
    # Scores of generated answers to held-out rows, at each evaluation.
    eval_metrics: Annotated[tuple[MetricName, ...], BeforeValidator(split_words)] = ()
    eval_metric_rows: Count = 100  # so many of the held-out rows, the same every time
    metric_for_best_model: MetricName | Literal["loss"] = "loss"
    save_strategy: Literal["no", "steps", "epoch"] = "epoch"
    save_steps: Count = 100
    save_total_limit: Count | None = 2
    load_best_model_at_end: bool = True  # if there is an evaluation
    early_stopping_patience: Count | None = None  # evaluations without a better one
    use_cpu: bool = False

    @property
    def sharded_by(self) -> str | None:
        """The key that shards the run across processes; None if every process holds everything."""
        if self.sharding:
            return f"sharding={self.sharding}"
        return "deepspeed" if self.deepspeed else None

    @property
    def autocast(self) -> Literal["bfloat16", "float16"] | None:
        """The half-precision dtype of autocast; None if it is off."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else None

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _is_a_flag_or_offload(cls, value: Any) -> Any:
        """Read a flag here, so that an error does not name the types of the union."""
        if value == "offload":
            return value
        try:
            return _FLAG.validate_python(value)
        except ValidationError:
            raise PydanticCustomError("no_flag", "expected true, false or offload") from None

    @field_validator("metric_for_best_model", mode="before")
    @classmethod
    def _without_prefix(cls, value: Any) -> Any:
        """Accept the names of transformers, such as eval_loss."""
        return value.removeprefix("eval_") if isinstance(value, str) else value

    @field_validator("eval_strategy", "save_strategy", mode="before")
    @classmethod
    def _false_is_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare `no` as false


class ChecksSection(Section):
    """Thresholds of warnings and proofs, and how often sample answers are logged."""

    lowest_learning_rate: PositiveOrZero = 1e-6
    highest_learning_rate: Positive = 2e-3  # for adapters; full and freeze: a tenth
    smallest_batch: Count = 4  # rows per step
    most_epochs: Positive = 20
    exploding_gradient: Positive = 10.0  # times the median norm of the last 50 steps
    smallest_loss_scale: Positive = 1.0  # in float16; the run stops below it
    rising_loss: Positive = 1.5  # times the best mean of 10 steps
    worse_evaluations: Count = 2  # since the best one
    # Answer two prompts every this many steps; None: at each evaluation, 0: never.
    sample_steps: CountOrZero | None = None
    stop_prompts: CountOrZero = 8  # held-out prompts, to check that answers end; 0: none
    least_stop_rate: ShareOrAll = 0.5  # a right answer may be long
    max_new_tokens: Size = 128  # per answer to these prompts
    answers_fit: bool = True  # let the base judge a sample of rows, for 2 % of an epoch at most
    stock_reader: bool = True  # read the finished folder by transformers without glmtune, 2 to 4 s
    streamed_tolerance: Positive = 0.25  # relative to the spread of a token's scores
    merged_tolerance: Positive = 0.05  # relative to the adapter's change
    # Largest allowed rise of the loss on general rows, nats per token; None: not measured.
    forgetting: Positive | None = 0.5
    general_rows: NamesOrNone = ()  # like data.train; empty: the 24 in the package


class ObjectiveSection(Section):
    """The mixture of pre-training objectives: GLM's blank infilling and next-token prediction.

    The first four are weights; one objective is sampled for each step. The defaults are those of
    the published code. Source: https://arxiv.org/abs/2103.10360.
    """

    token: PositiveOrZero = 0.5  # short spans
    sentence: PositiveOrZero = 0.0  # complete sentences
    document: PositiveOrZero = 0.5  # the rest of the text, or one long span
    causal: PositiveOrZero = 0.0  # next-token prediction, in ChatGLM3's own form
    masked_share: Annotated[Share, Field(gt=0)] = 0.15  # of a text, for spans and sentences
    mean_span_length: Annotated[float, Number, Field(gt=0, le=MOST_SIZE)] = (
        3.0  # of the Poisson distribution
    )
    longest_span: Size = 39
    # Of a text, the least that `document` masks; 1: always the complete text.
    shortest_document_share: ShareOrAll = 0.5
    # How often `document` masks the end of a text, and not a span inside it.
    prefix_share: ShareOrAll = 0.5
    shuffle_spans: bool = True
    task_masks: bool = True  # [MASK], [sMASK] and [gMASK]; otherwise all are [MASK]
    two_dimensional: bool = True  # positions: of the blank, and within it

    def weights(self) -> dict[str, float]:
        """Return the weight of each objective."""
        return {name: getattr(self, name) for name in ("token", "sentence", "document", "causal")}


class PreferenceSection(Section):
    """Learn answers, which of two is preferred, or which are good ones.

    Sources: https://arxiv.org/abs/2305.18290 and https://arxiv.org/abs/2402.01306.
    """

    # dpo: a better and a worse answer per row; kto: one answer, and a label true or false.
    stage: Stage = "sft"
    loss: Literal["sigmoid", "hinge", "ipo", "simpo", "orpo"] = "sigmoid"
    beta: Positive = 0.1  # scale of the margin; orpo: weight of the preference loss
    simpo_gamma: PositiveOrZero = 0.5  # target margin of simpo
    desirable_weight: Positive = 1.0  # of a row with a good answer in kto
    undesirable_weight: Positive = 1.0  # of a row with a bad one

    @property
    def has_reference(self) -> bool:
        """Whether the loss uses the base as a reference model."""
        return self.stage == "kto" or self.loss in ("sigmoid", "hinge", "ipo")


class LintSection(Section):
    """Which checks examine the rows before training, and their thresholds."""

    before_training: bool = True
    off: Words = ()  # ids of checks, as `glmtune lint` shows them
    errors: Literal["stop", "report"] = "stop"  # whether a row with an error stops a training
    # Similarity of four-character pieces of two questions, and of their answers.
    near_duplicate: Annotated[ShareOrAll, Field(ge=0.7)] = 0.9
    short_answer_chars: Count = 30  # shorter answers to one prompt contradict each other
    language_min_words: Count = 12  # fewer do not decide the language of an answer


class OutputSection(Section):
    """Where the result is written, and which trackers log the run."""

    dir: str
    overwrite: bool = False  # replace an earlier run in the folder
    report_to: Words = ("auto",)  # auto: TensorBoard, if installed
    run_name: str | None = None

    @field_validator("dir")
    @classmethod
    def _fits_a_file_system(cls, value: str) -> str:
        content = value.encode()
        if len(content) > MAX_PATH_BYTES or max(map(len, content.split(b"/"))) > MAX_NAME_BYTES:
            raise PydanticCustomError(
                "too_long", "expected a shorter name; no file system takes this one"
            )
        return value

    @field_validator("report_to", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return () if value in (None, "none", "None") else value

    def trackers(self, installed: Collection[str]) -> tuple[str, ...]:
        """Return the trackers to start; `auto` is TensorBoard if that is among the installed."""
        names = [name for name in self.report_to if name != "auto"]
        if "auto" in self.report_to and "tensorboard" in installed:
            names.append("tensorboard")
        return tuple(dict.fromkeys(names))
