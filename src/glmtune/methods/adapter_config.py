"""adapter_config.json, checked before peft reads it.

peft takes any value: a rank of 10^9 is allocated, `"lora_alpha": "32"` multiplies a text, and a
target_modules that is no regular expression ends in a traceback. Here every key that decides what
an adapter computes is typed and bounded, and the sizes are compared with the tensors of the file
before anything is built. The other keys get the types that peft declares for them: it does not
check those either, and some fail only when the model answers.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from glmtune.errors import CheckpointError
from glmtune.files import checked_as, read_json_as

CONFIG = "adapter_config.json"
REMEDY = "Restore the file, or copy the adapter again."
MAX_RANK = 2**16
DEFAULT_RANK = 8  # peft's
MANY_TIMES = 64
MAX_SIZE = 2**24
MAX_LAYERS = 1000
MAX_PATTERN = 2000  # characters of a regular expression
VIRTUAL_TOKENS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")

Shape = tuple[int, ...]


def _is_pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"a regular expression ({error})") from None
    return text


Text = Annotated[str, Field(max_length=10_000)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN), AfterValidator(_is_pattern)]
Rank = Annotated[int, Field(ge=0, le=MAX_RANK)]
Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Scale = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Layer = Annotated[int, Field(ge=0, le=MAX_LAYERS)]
TokenId = Annotated[int, Field(ge=0, lt=MAX_SIZE)]
Names = list[Name] | Pattern | None


def _is_unset(value: Any) -> Any:
    if value:
        raise ValueError(
            "null, since glmtune does not compute this variant of LoRA. Use the adapter with peft "
            "alone"
        )
    return value


Unset = Annotated[Any, BeforeValidator(_is_unset)]


class AdapterConfig(BaseModel):
    """The keys of peft that decide what an adapter computes; others are left to peft."""

    model_config = ConfigDict(strict=True, extra="allow")

    peft_type: Text | None = None
    task_type: Text | None = None
    base_model_name_or_path: Text | None = None
    auto_mapping: dict[str, Any] | None = None
    inference_mode: bool = False
    # LoRA and its variants
    r: Rank | None = None
    init_r: Rank | None = None
    target_r: Rank | None = None
    lora_alpha: Scale | None = None
    lora_dropout: Share | None = None
    target_modules: Names = None
    exclude_modules: Names = None
    modules_to_save: list[Name] | None = None
    layers_to_transform: Layer | list[Layer] | None = None
    layers_pattern: list[Name] | Pattern | None = None
    rank_pattern: dict[Pattern, Rank] | None = None
    alpha_pattern: dict[Pattern, Scale] | None = None
    trainable_token_indices: list[TokenId] | dict[Name, list[TokenId]] | None = None
    bias: Text | None = None
    fan_in_fan_out: bool | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    init_lora_weights: bool | Text | None = None  # peft's type has a placeholder for a number
    alora_invocation_tokens: Unset = None  # found in the whole text, so not in packs and caches
    arrow_config: Unset = None  # chooses among other adapters
    megatron_config: None = None  # peft would import a module that this file names
    # IA3, VeRA, OFT
    feedforward_modules: Names = None
    d_initial: Scale | None = None
    vera_dropout: Share | None = None
    projection_prng_key: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    save_projection: bool | None = None
    oft_block_size: Rank | None = None
    module_dropout: Share | None = None
    coft: bool | None = None
    block_share: bool | None = None
    # virtual tokens
    num_virtual_tokens: Size | None = None
    token_dim: Size | None = None
    num_transformer_submodules: Annotated[int, Field(ge=1, le=2)] | None = None
    num_attention_heads: Size | None = None
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] | None = None
    encoder_hidden_size: Size | None = None
    encoder_num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] | None = None
    encoder_dropout: Share | None = None
    prefix_projection: bool | None = None

    @model_validator(mode="after")
    def _has_rank(self) -> "AdapterConfig":
        """Require the rank, or the number of virtual tokens, of a method that has one."""
        if self.peft_type in ("LORA", "VERA") and self.r == 0:
            raise ValueError(f"r is 0, expected 1 to {MAX_RANK:,}")
        if self.peft_type in VIRTUAL_TOKENS and self.num_virtual_tokens is None:
            raise ValueError("num_virtual_tokens is not set, expected the number of virtual tokens")
        return self


def read_config(folder: Path) -> dict[str, Any]:
    """Read peft's own description of an adapter, with types and bounds checked.

    Raises:
        CheckpointError: names the key, its value and what was expected.
    """
    _, content = read_json_as(folder / CONFIG, AdapterConfig, remedy=REMEDY)
    return content


def with_declared_types(folder: Path, kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys that are not ours by the types that peft declares for them.

    A key that is null, and may not be, gets peft's default: it was not set.

    Args:
        folder: of the adapter, for the message.
        kind: the dataclass of peft's configuration.
        config: what is stored of its keys.

    Returns:
        The keys to make the configuration with.

    Raises:
        CheckpointError: names the key, its value and what was expected.
    """
    hints = {
        key: _as_written(hint)
        for key, hint in get_type_hints(kind).items()
        if key in config and key not in AdapterConfig.model_fields
    }
    unset = {key for key, hint in hints.items() if config[key] is None and not _takes_none(hint)}
    fields: dict[str, Any] = {key: (hint, None) for key, hint in hints.items()}
    bounds = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
    model = create_model(kind.__name__, __config__=bounds, **fields)
    given = {key: value for key, value in config.items() if key not in unset}
    checked_as(given, model, f"{folder / CONFIG}", remedy=REMEDY, is_json=True)
    return given


def _as_written(hint: Any) -> Any:
    """Let numbers have a fraction: peft declares `alpha` and others as integers, and takes both."""
    return {int: float, int | None: float | None}.get(hint, hint)


def _takes_none(hint: Any) -> bool:
    try:
        TypeAdapter(hint).validate_python(None)
    except ValidationError:
        return False
    return True


def check_sizes(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
    """Refuse a configuration whose sizes are not those of the tensors in the file.

    Args:
        folder: of the adapter, for the message.
        config: as `read_config` returns it.
        shapes: of the tensors of the file, by name.

    Raises:
        CheckpointError: names the key and the tensor.
    """

    def refuse(key: str, name: str) -> NoReturn:
        raise CheckpointError(
            f"{folder / CONFIG}: {key} is {config.get(key)}, but {name} has the shape "
            f"{shapes[name]}. The configuration and the weights belong to different adapters; copy "
            "both again."
        )

    ranks = {shape[0]: name for name, shape in shapes.items() if _is_a(name) and shape}
    if config.get("peft_type") == "LORA" and ranks and not config.get("target_parameters"):
        patterns = (config.get("rank_pattern") or {}).values()
        rank = config.get("r") or DEFAULT_RANK
        if not patterns and ranks.keys() != {rank}:
            refuse("r", next(name for found, name in ranks.items() if found != rank))
        if max(rank, *patterns, 1) > MANY_TIMES * max(ranks):  # a pattern may match no layer
            refuse("rank_pattern", ranks[max(ranks)])
    vectors = {shape[0]: name for name, shape in shapes.items() if "vera_lambda_d" in name}
    if config.get("peft_type") == "VERA" and vectors and config.get("r", 256) not in vectors:
        refuse("r", next(iter(vectors.values())))
    tokens = shapes.get("prompt_embeddings")
    if tokens is not None and config.get("num_virtual_tokens") is not None:
        submodules = config.get("num_transformer_submodules") or 1
        if not tokens or tokens[0] != config["num_virtual_tokens"] * submodules:
            refuse("num_virtual_tokens", "prompt_embeddings")
        _check_width(config, tokens, refuse)


def _is_a(name: str) -> bool:
    return "lora_A" in name or "lora_embedding_A" in name


def _check_width(
    config: Mapping[str, Any], tokens: Shape, refuse: Callable[[str, str], NoReturn]
) -> None:
    width, dim = tokens[1] if len(tokens) > 1 else 0, config.get("token_dim")
    if dim is None:
        return
    if config.get("peft_type") != "PREFIX_TUNING":
        if dim != width:
            refuse("token_dim", "prompt_embeddings")
    elif (layers := config.get("num_layers")) is not None and 2 * layers * dim != width:
        refuse("num_layers", "prompt_embeddings")
