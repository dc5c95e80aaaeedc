"""A model folder -> its parameters by name, and the memory that they take.

No weights are read: names, shapes and dtypes come from the headers of the files, so 12 GB take as
long as 12 MB, and a config.json alone is enough for everything but the dtypes. A local ChatGLM is
described in well under a second, without torch and transformers; other models take seconds.

    transformer.encoder.layers.{0..27}.mlp.dense_4h_to_h.weight   4096 x 13696   bfloat16   28 x
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from glmtune.errors import GlmtuneError, TemplateError
from glmtune.inspect.network import LoraFacts, count_numbers, describe_network, read_outline
from glmtune.model.chatglm import piece_tokenizer
from glmtune.model.chatglm.outline import Shape
from glmtune.model.config_file import why_no_tokenizer
from glmtune.model.files import locate
from glmtune.model.load import load_tokenizer
from glmtune.model.stored import StoredTensor, stored_tensors
from glmtune.template.base import Template
from glmtune.template.select import chatglm_template, template_for

if TYPE_CHECKING:
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that differ only in the number of their layer.

    Attributes:
        name: with the layer numbers as `{first..last}`.
        shape: of each.
        dtype: as stored, "" without weight files, "missing" if the files lack these parameters.
        count: parameters in the group.
        numel: numbers in all of them.
        stored_bytes: of all of them, 0 without weight files.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    numel: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """A tokenizer and the template that goes with it.

    Attributes:
        kind: the class of the tokenizer.
        size: number of ids.
        special_ids: special tokens and their ids.
        stop_ids: ids that end an answer.
        template: how prompts are built, None if no template fits the tokenizer.
        fingerprint: of that template.
        problem: why there is no template, "" if there is one.
    """

    kind: str
    size: int
    special_ids: Mapping[str, int]
    stop_ids: tuple[int, ...]
    template: Mapping[str, Any] | None
    fingerprint: str
    problem: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Everything that `glmtune info` shows of a model.

    Attributes:
        name: the folder or hub id.
        kind: `model_type` and the class that reads it.
        groups: the parameters, in the order of the network.
        num_tensors: number of parameters.
        numel: numbers in them.
        buffers: names of stored tensors that are buffers of the network.
        unexpected: names of stored tensors that the network does not have.
        memory_bytes: of the weights, by dtype or quantization.
        cache_bytes_per_token: of keys and values in 16 bit.
        context_length: tokens, None if the configuration does not say.
        rope_ratio: factor of the rotary base; None for families without it.
        lora: the cost of an adapter.
        tokenizer: None if the folder has none.
        tokenizer_problem: why there is no tokenizer.
    """

    name: str
    kind: str
    groups: tuple[ParameterGroup, ...]
    num_tensors: int
    numel: int
    buffers: tuple[str, ...]
    unexpected: tuple[str, ...]
    memory_bytes: Mapping[str, int]
    cache_bytes_per_token: int
    context_length: int | None
    rope_ratio: float | None
    lora: LoraFacts
    tokenizer: TokenizerFacts | None
    tokenizer_problem: str


def describe_model(
    name: str, *, lora_r: int = 8, target_modules: tuple[str, ...] | None = None
) -> ModelFacts:
    """Describe a model without reading its weights.

    Args:
        name: a folder with at least a config.json, or a hub id.
        lora_r: the rank of the adapter to estimate.
        target_modules: its layers; None for peft's choice for this family.

    Raises:
        CheckpointError: transformers does not know this kind of model, or a file is damaged.
        RecipeError: the model has no such layers.
    """
    folder = Path(locate(name))
    network = describe_network(name, lora_r, target_modules)
    parameters, buffers = network.parameters, network.buffers
    numel = count_numbers(parameters)
    stored = stored_tensors(folder) if folder.is_dir() else {}
    tokenizer, problem = _describe_tokenizer(name)
    return ModelFacts(
        name=name,
        kind=network.kind,
        groups=group_parameters(parameters, stored),
        num_tensors=len(parameters),
        numel=numel,
        buffers=tuple(n for n in stored if n in buffers),
        unexpected=tuple(n for n in stored if n not in parameters and n not in buffers),
        memory_bytes=memory_bytes(numel, network.linear_numel),
        cache_bytes_per_token=network.cache_bytes_per_token,
        context_length=network.context_length,
        rope_ratio=network.rope_ratio,
        lora=network.lora,
        tokenizer=tokenizer,
        tokenizer_problem=problem,
    )


def memory_bytes(numel: int, quantized: int) -> dict[str, int]:
    """Compute the size of a model's weights by dtype or quantization.

    Quantization applies to the matrices of the layers; embeddings, the output layer, norms and
    biases stay in 16 bit. The scales of its blocks, a few percent more, are not counted.

    Args:
        numel: numbers in the model.
        quantized: numbers in the matrices of its layers.
    """
    rest = 2 * (numel - quantized)
    return {
        "float32": 4 * numel,
        "bfloat16": 2 * numel,
        "int8": quantized + rest,
        "4 bit": quantized // 2 + rest,
    }


# ---- parameters by name ------------------------------------------------------------------


def group_parameters(
    parameters: Mapping[str, Shape], stored: Mapping[str, StoredTensor]
) -> tuple[ParameterGroup, ...]:
    """Group the parameters that differ only in the number of their layer.

    Args:
        parameters: shapes in the network, by name.
        stored: tensors in the files, by name; empty without files.
    """
    members: dict[tuple[str, tuple[int, ...], str], list[str]] = {}
    for name, shape in parameters.items():
        dtype = "" if not stored else "missing"
        if name in stored:
            dtype = stored[name].dtype
        key = (re.sub(r"\.\d+\.", ".{}.", name), shape, dtype)
        members.setdefault(key, []).append(name)
    return tuple(
        ParameterGroup(
            name=_collapse(names),
            shape=shape,
            dtype=dtype,
            count=len(names),
            numel=len(names) * math.prod(shape),
            stored_bytes=sum(stored[name].nbytes for name in names if name in stored),
        )
        for (_, shape, dtype), names in members.items()
    )


def _collapse(names: list[str]) -> str:
    """Write the numbers that differ between the names as `{0..27}`, or `{0,3,5}` with gaps."""
    parts = [re.split(r"\.(\d+)\.", name) for name in names]
    result = parts[0][0]
    for index in range(1, len(parts[0]), 2):
        numbers = sorted({int(part[index]) for part in parts})
        result += f".{_range(numbers)}.{parts[0][index + 1]}"
    return result


def _range(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"


# ---- the tokenizer -----------------------------------------------------------------------


def _describe_tokenizer(name: str) -> tuple[TokenizerFacts | None, str]:
    template: Template | None = None
    problem = ""
    folder = Path(locate(name))
    if (why := why_no_tokenizer(folder)) is not None:
        return None, why
    light = _light_tokenizer(folder)
    if light is not None:
        try:
            template = chatglm_template(cast("ChatGLMTokenizer", light))
        except TemplateError as error:
            problem = str(error)
        return _tokenizer_facts(
            piece_tokenizer.CLASS_NAME, len(light), light.special_ids, template, problem
        ), ""
    try:
        tokenizer = load_tokenizer(name)
    except GlmtuneError as error:
        return None, str(error)
    try:
        template = template_for(tokenizer)
    except GlmtuneError as error:
        problem = str(error)
    tokens = tokenizer.all_special_tokens
    special: dict[str, Any] = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}
    kind = type(tokenizer).__name__
    return _tokenizer_facts(kind, len(tokenizer), special, template, problem), ""


def _light_tokenizer(folder: Path) -> piece_tokenizer.PieceTokenizer | None:
    """Open ChatGLM's tokenizer without transformers, where that tells the same."""
    return None if read_outline(folder) is None else piece_tokenizer.open_pieces(folder)


def _tokenizer_facts(
    kind: str, size: int, special_ids: Mapping[str, int], template: Template | None, problem: str
) -> TokenizerFacts:
    return TokenizerFacts(
        kind=kind,
        size=size,
        special_ids=dict(sorted(special_ids.items(), key=lambda item: item[1])),
        stop_ids=() if template is None else tuple(template.stop_ids),
        template=None if template is None else template.description,
        fingerprint="" if template is None else template.fingerprint,
        problem=problem,
    )
