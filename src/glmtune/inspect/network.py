"""config.json -> the shapes of a network, and the cost of an adapter for it.

For a local ChatGLM both follow by arithmetic (`model.chatglm.outline`), without torch. A model of
any other family, and whatever else only the network itself can tell, is built on the meta device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import CheckpointError
from glmtune.files import read_json_object
from glmtune.model.chatglm.outline import Outline, Shape, outline
from glmtune.model.files import locate
from glmtune.model.load import load_config, load_shapes

if TYPE_CHECKING:
    from torch import nn

# the layers of ChatGLM that an adapter may change; the first is peft's choice
CHATGLM_TARGETS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


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
class Network:
    """What follows from the configuration of a model.

    Attributes:
        kind: `model_type` and the class that reads it.
        parameters: shapes by name, in the order of the network.
        buffers: names.
        linear_numel: numbers in the matrices of the layers, which can be quantized.
        cache_bytes_per_token: of keys and values in 16 bit.
        context_length: tokens, None if the configuration does not say.
        rope_ratio: factor of the rotary base; None for families without it.
        lora: the cost of an adapter.
    """

    kind: str
    parameters: Mapping[str, Shape]
    buffers: tuple[str, ...]
    linear_numel: int
    cache_bytes_per_token: int
    context_length: int | None
    rope_ratio: float | None
    lora: LoraFacts


def describe_network(
    name: str, lora_r: int, target_modules: tuple[str, ...] | None = None
) -> Network:
    """Describe the network of a model, and the cost of an adapter.

    Args:
        name: a folder with at least a config.json, or a hub id.
        lora_r: the rank of the adapter.
        target_modules: its layers; None for peft's choice for this family.

    Raises:
        CheckpointError: transformers does not know this kind of model.
        RecipeError: the model has no such layers.
    """
    targets = CHATGLM_TARGETS[:1] if target_modules is None else target_modules
    if targets and lora_r > 0 and set(targets) <= set(CHATGLM_TARGETS):
        found = read_outline(Path(locate(name)))
        if found is not None:
            return _outlined(found, lora_r, targets)
    return _built(name, lora_r, target_modules)


def read_outline(folder: Path) -> Outline | None:
    """Read the outline of a local ChatGLM; None where the network must be built."""
    try:
        return outline(read_json_object(folder / "config.json"))
    except CheckpointError:  # which `load_config` explains
        return None


def count_numbers(shapes: Mapping[str, Shape]) -> int:
    """Count the numbers in all tensors of these shapes."""
    return sum(map(math.prod, shapes.values()))


def _outlined(found: Outline, lora_r: int, targets: tuple[str, ...]) -> Network:
    return Network(
        kind=f"chatglm ({found.class_name})",
        parameters=found.parameters,
        buffers=found.buffers,
        linear_numel=count_numbers({name: found.parameters[name] for name in found.linear}),
        cache_bytes_per_token=found.cache_bytes_per_token,
        context_length=found.context_length,
        rope_ratio=found.rope_ratio,
        lora=_lora_of(found, lora_r, targets),
    )


def _lora_of(found: Outline, r: int, targets: tuple[str, ...]) -> LoraFacts:
    """Count the numbers in A, (r, inputs), and B, (outputs, r), of every adapted layer."""
    shapes = [found.parameters[n] for n in found.linear if n.split(".")[-2] in targets]
    trainable = r * sum(map(sum, shapes))
    total = count_numbers(found.parameters) + trainable
    return LoraFacts(r, tuple(sorted(set(targets))), trainable, total, file_bytes=4 * trainable)


def _built(name: str, lora_r: int, target_modules: tuple[str, ...] | None) -> Network:
    """Describe a model of any family by building it on the meta device."""
    from torch import nn

    config = load_config(name)
    model = load_shapes(name)
    output_layer: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    rope_ratio = getattr(config, "rope_ratio", None)
    facts: dict[str, Any] = {
        "kind": f"{config.model_type} ({type(model).__name__})",
        "parameters": {n: tuple(parameter.shape) for n, parameter in model.named_parameters()},
        "buffers": tuple(n for n, _ in model.named_buffers()),
        "linear_numel": sum(
            module.weight.numel()
            for module in model.modules()
            if isinstance(module, nn.Linear) and module is not output_layer
        ),
        "cache_bytes_per_token": cache_bytes_per_token(config),
        "context_length": getattr(config, "max_position_embeddings", None),
        "rope_ratio": None if rope_ratio is None else float(rope_ratio),
    }
    lora = _attached_lora(model, lora_r, target_modules)  # last, since it changes the model
    return Network(**facts, lora=lora)


def _attached_lora(model: "nn.Module", r: int, target_modules: tuple[str, ...] | None) -> LoraFacts:
    from glmtune.methods import layers, lora
    from glmtune.recipe.methods import LoraSection

    targets = _all_linear(model) if target_modules is None else target_modules
    tuned = lora.attach(model, LoraSection(r=r, target_modules=targets))
    trainable, total = tuned.get_nb_trainable_parameters()
    found = {name.rpartition(".")[2] for name, _ in layers.adapted_layers(tuned)}
    return LoraFacts(r, tuple(sorted(found)), trainable, total, file_bytes=4 * trainable)


def _all_linear(model: Any) -> tuple[str, ...] | None:
    """Name all linear layers of a family for which peft has no choice of its own."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    from torch import nn

    if model.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        return None
    output_layer = model.get_output_embeddings()
    linear = (
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output_layer
    )
    return tuple(sorted(set(linear)))


def cache_bytes_per_token(config: Any) -> int:
    """Compute the size of one token's keys and values of all layers, in 16 bit."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * 2)
