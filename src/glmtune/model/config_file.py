"""config.json and the tokenizer's files, checked before a library reads them.

Libraries read these files without bounds: `"num_labels": 1000000000` makes as many names, a size
of 10^9 allocates until the process is killed, and a list in place of a number ends in a traceback
far from the file. Here each file is an object of bounded size and depth, and the keys that every
family has are typed and bounded. What only ChatGLM has is checked by `ChatGLMConfig`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from glmtune.errors import CheckpointError
from glmtune.files import read_json_as, read_json_object

CONFIG = "config.json"
PIECES = "tokenizer.model"
GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
REMEDY = "It may be half written; copy it again."
MAX_LAYERS = 1000  # the largest published model has 126
MAX_SIZE = 2**24  # of a dimension or a vocabulary
MAX_CONTEXT = 2**31
LAYER_KEYS = ("num_layers", "num_hidden_layers", "n_layer", "n_layers", "pre_seq_len")
SIZE_KEYS = (
    *("hidden_size", "intermediate_size", "ffn_hidden_size", "n_embd", "n_inner", "d_model"),
    *("num_attention_heads", "num_key_value_heads", "multi_query_group_num", "n_head"),
    *("head_dim", "kv_channels", "vocab_size", "padded_vocab_size"),
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size"),
)
FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")
NUMBERS_PER_BYTE = 8  # the most that any quantization stores

Text = Annotated[str, Field(max_length=10_000)]


class _Object(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class ConfigFile(_Object):
    """The keys of config.json that every family has, and that are dangerous in other types."""

    model_type: Text | None = None
    name_or_path: Text | None = Field(None, alias="_name_or_path")
    architectures: list[Text] | None = None
    auto_map: dict[str, Any] | None = None
    dtype: Any = None
    torch_dtype: Any = None
    id2label: dict[str, Any] | None = None
    label2id: dict[str, Any] | None = None
    num_labels: Annotated[int, Field(ge=0, le=MAX_SIZE)] | None = None
    per_layer_config: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None

    @field_validator("dtype", "torch_dtype")
    @classmethod
    def _is_float(cls, value: Any) -> Any:
        """Accept the dtypes that weights are computed in."""
        names = (*FLOAT_DTYPES, "auto", *(f"torch.{name}" for name in FLOAT_DTYPES))
        if value is None or isinstance(value, dict) or value in names:
            return value
        raise ValueError(f"one of {', '.join(FLOAT_DTYPES)}")

    @model_validator(mode="before")
    @classmethod
    def _sizes(cls, content: Any) -> Any:
        """Bound the numbers that decide how much is allocated."""
        if isinstance(content, dict):
            bounds = dict.fromkeys(SIZE_KEYS, MAX_SIZE) | dict.fromkeys(LAYER_KEYS, MAX_LAYERS)
            bounds["pre_seq_len"] = MAX_SIZE
            for key, limit in bounds.items():
                value = content.get(key)
                if isinstance(value, int | float) and not 0 <= value <= limit:
                    raise ValueError(f"{key} is {_short(value)}, expected 0 to {limit:,}")
        return content


class _Token(_Object):
    content: Text
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class TokenizerConfigFile(_Object):
    """The keys of tokenizer_config.json and special_tokens_map.json that decide ids."""

    tokenizer_class: Text | None = None
    added_tokens_decoder: dict[str, _Token] | None = None
    additional_special_tokens: list[Text | _Token] | None = None
    extra_special_tokens: list[Text | _Token] | dict[str, Text | _Token] | None = None
    bos_token: Text | _Token | None = None
    eos_token: Text | _Token | None = None
    unk_token: Text | _Token | None = None
    pad_token: Text | _Token | None = None
    padding_side: Text | None = None
    truncation_side: Text | None = None
    model_max_length: int | float | None = None
    auto_map: dict[str, Any] | None = None


def _short(value: float) -> str:
    return str(value) if isinstance(value, float) or abs(value) < 10**20 else "a larger number"


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json: an object of bounded size, with the types that every family has.

    Raises:
        CheckpointError: names the file, the key, its value and what was expected.
    """
    _, content = read_json_as(folder / CONFIG, ConfigFile, remedy=REMEDY)
    return content


def check_tokenizer_files(folder: Path) -> None:
    """Check the JSON files beside a tokenizer that libraries read unchecked.

    Raises:
        CheckpointError: names the file, the key, its value and what was expected.
    """
    for name in (TOKENIZER_CONFIG, "special_tokens_map.json"):
        if (folder / name).is_file():
            read_json_as(folder / name, TokenizerConfigFile, remedy=REMEDY)
    if (folder / "added_tokens.json").is_file():
        added = read_json_object(folder / "added_tokens.json", remedy=REMEDY)
        for token, index in added.items():
            if type(index) is not int or not 0 <= index < MAX_SIZE:
                raise CheckpointError(
                    f"{folder / 'added_tokens.json'}: {token} is {index!r}, expected an id from 0 "
                    f"to {MAX_SIZE:,}. {REMEDY}"
                )


def why_no_tokenizer(folder: Path) -> str | None:
    """Explain that the folder of a ChatGLM has no tokenizer; None for all other folders.

    Raises:
        CheckpointError: config.json cannot be used.
    """
    if not (folder / CONFIG).is_file() or (folder / PIECES).exists():
        return None
    if read_config(folder).get("model_type") != "chatglm":
        return None
    return (
        f"{folder} has no {PIECES}, which ChatGLM needs to turn text into token ids. Copy it from "
        "the checkpoint into this folder (ChatGLM3's has 1,018,370 bytes)."
    )


def check_generation_file(folder: Path) -> None:
    """Check that generation_config.json, if there is one, is an object.

    Raises:
        CheckpointError: it is something else.
    """
    if (folder / GENERATION).is_file():
        read_json_object(folder / GENERATION, remedy=REMEDY)


def least_numbers(config: Mapping[str, Any]) -> int:
    """Return a number of parameters that a network of this configuration has at least.

    It counts the embedding and one matrix per layer, so it holds for every family.
    """

    def of(*keys: str) -> int:
        return next((config[key] for key in keys if type(config.get(key)) is int), 0)

    hidden = of("hidden_size", "n_embd", "d_model")
    layers = of("num_layers", "num_hidden_layers", "n_layer", "n_layers")
    return hidden * (of("vocab_size", "padded_vocab_size") + layers * math.isqrt(hidden))
