"""A model folder -> its parameters by name, and the memory that they take.

No weights are read: the network is built on the meta device, and names, shapes and dtypes come from
the headers of the files. So 12 GB take seconds, and a config.json alone is enough for everything
but the dtypes.

    transformer.encoder.layers.{0..27}.mlp.dense_4h_to_h.weight   4096 x 13696   bfloat16   28 x
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import glmtune.auto  # noqa: F401  # makes ChatGLM known to transformers
from glmtune.errors import CheckpointError, GlmtuneError
from glmtune.inspect.adapter import DTYPES
from glmtune.methods import layers, lora
from glmtune.model.files import locate, weight_files
from glmtune.model.load import load_config, load_shapes, load_tokenizer
from glmtune.recipe.methods import LoraSection
from glmtune.template.select import template_for


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
class LoraFacts:
    """The cost of a LoRA adapter.

    Attributes:
        r: the rank.
        target_modules: the layers it changes.
        trainable: numbers in the adapter.
        total: numbers in the model and the adapter.
        file_bytes: of the adapter's float32 file.
    """

    r: int
    target_modules: tuple[str, ...]
    trainable: int
    total: int
    file_bytes: int


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
    config = load_config(name)
    model = load_shapes(name)
    folder = Path(locate(name))
    stored = stored_tensors(folder) if folder.is_dir() else {}
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    tokenizer, problem = _describe_tokenizer(name)
    rope_ratio = getattr(config, "rope_ratio", None)
    facts: dict[str, Any] = {
        "name": name,
        "kind": f"{config.model_type} ({type(model).__name__})",
        "groups": group_parameters(parameters, stored),
        "num_tensors": len(parameters),
        "numel": sum(parameter.numel() for parameter in parameters.values()),
        "buffers": tuple(n for n in stored if n in buffers),
        "unexpected": tuple(n for n in stored if n not in parameters and n not in buffers),
        "memory_bytes": memory_bytes(model),
        "cache_bytes_per_token": cache_bytes_per_token(config),
        "context_length": getattr(config, "max_position_embeddings", None),
        "rope_ratio": None if rope_ratio is None else float(rope_ratio),
        "tokenizer": tokenizer,
        "tokenizer_problem": problem,
    }
    lora = _describe_lora(model, lora_r, target_modules)  # last, since it changes the model
    return ModelFacts(**facts, lora=lora)


def memory_bytes(model: Any) -> dict[str, int]:
    """Compute the size of a model's weights by dtype or quantization.

    Quantization applies to the matrices of the layers; embeddings, the output layer, norms and
    biases stay in 16 bit. The scales of its blocks, a few percent more, are not counted.
    """
    numel = sum(parameter.numel() for parameter in model.parameters())
    output_layer = model.get_output_embeddings()
    quantized = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not output_layer
    )
    rest = 2 * (numel - quantized)
    return {
        "float32": 4 * numel,
        "bfloat16": 2 * numel,
        "int8": quantized + rest,
        "4 bit": quantized // 2 + rest,
    }


def cache_bytes_per_token(config: Any) -> int:
    """Compute the size of one token's keys and values of all layers, in 16 bit."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * 2)


# ---- parameters by name ------------------------------------------------------------------


def group_parameters(
    parameters: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> tuple[ParameterGroup, ...]:
    """Group the parameters that differ only in the number of their layer.

    Args:
        parameters: of the network, by name.
        stored: tensors in the files, by name, on the meta device; empty without files.
    """
    members: dict[tuple[str, tuple[int, ...], str], list[str]] = {}
    for name, parameter in parameters.items():
        dtype = "" if not stored else "missing"
        if name in stored:
            dtype = str(stored[name].dtype).removeprefix("torch.")
        key = (re.sub(r"\.\d+\.", ".{}.", name), tuple(parameter.shape), dtype)
        members.setdefault(key, []).append(name)
    return tuple(
        ParameterGroup(
            name=_collapse(names),
            shape=shape,
            dtype=dtype,
            count=len(names),
            numel=sum(parameters[name].numel() for name in names),
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


# ---- the files ---------------------------------------------------------------------------


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Read names, shapes and dtypes of the weights in a folder; tensors on the meta device.

    safetensors take precedence over `.bin`, as in loading. Return {} for a folder without weights.

    Raises:
        CheckpointError: an index names a missing file, or a file is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        if not file.is_file():
            raise CheckpointError(
                f"{file}: the index names this file, but it is not there. Copy it again."
            )
        read = _safetensors_header if file.suffix == ".safetensors" else _bin_header
        tensors |= read(file)
    return tensors


def _safetensors_header(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(str(file), framework="pt") as content:
            for name in content.keys():  # noqa: SIM118  # not a mapping
                part = content.get_slice(name)
                dtype = getattr(torch, DTYPES[part.get_dtype()])
                tensors[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{file}: damaged or half written ({error}). Copy it again."
        ) from None
    return tensors


def _bin_header(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # torch names no common base of what a damaged file raises
        raise CheckpointError(
            f"{file}: damaged, half written, or not plain weights ({error}). Copy it again."
        ) from None
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


# ---- adapter and tokenizer ---------------------------------------------------------------


def _describe_lora(model: nn.Module, r: int, target_modules: tuple[str, ...] | None) -> LoraFacts:
    tuned = lora.attach(model, LoraSection(r=r, target_modules=target_modules))
    trainable, total = tuned.get_nb_trainable_parameters()
    targets = {name.rpartition(".")[2] for name, _ in layers.adapted_layers(tuned)}
    return LoraFacts(r, tuple(sorted(targets)), trainable, total, file_bytes=4 * trainable)


def _describe_tokenizer(name: str) -> tuple[TokenizerFacts | None, str]:
    try:
        tokenizer = load_tokenizer(name)
    except GlmtuneError as error:
        return None, str(error)
    template, problem = None, ""
    try:
        template = template_for(tokenizer)
    except GlmtuneError as error:
        problem = str(error)
    tokens = tokenizer.all_special_tokens
    special: dict[str, Any] = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}
    return (
        TokenizerFacts(
            kind=type(tokenizer).__name__,
            size=len(tokenizer),
            special_ids=dict(sorted(special.items(), key=lambda item: item[1])),
            stop_ids=() if template is None else tuple(template.stop_ids),
            template=None if template is None else template.description,
            fingerprint="" if template is None else template.fingerprint,
            problem=problem,
        ),
        "",
    )
