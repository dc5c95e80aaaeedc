"""Write a LoRA adapter as a GGUF, which llama.cpp adds to the model while it runs.

    base_model.model.LAYER.lora_A.weight  (r, in)     blk.N.NAME.weight.lora_a
    base_model.model.LAYER.lora_B.weight  (out, r)    blk.N.NAME.weight.lora_b

llama.cpp scales every layer by adapter.lora.alpha / r. peft may scale layers differently (rsLoRA,
rank_pattern, alpha_pattern), so each lora_b is multiplied by what is missing.

Source: https://github.com/ggml-org/llama.cpp, convert_lora_to_gguf.py, src/llama-adapter.cpp.
"""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from glmtune.errors import CheckpointError, some
from glmtune.methods.adapter_folder import (
    by_peft_names,
    check_folder,
    read_peft_config,
    read_tensors,
)
from glmtune.model.load import load_config
from glmtune.use.export.gguf_axes import Axes
from glmtune.use.export.gguf_file import check_type, new_gguf, write_tensors
from glmtune.use.export.gguf_names import module_name, shape_of
from glmtune.use.export.weights import Weights

_PREFIX = "base_model.model."
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # values of init_lora_weights
_ADVICE = "Merge the adapter first (glmtune merge), and export the result to gguf."


def write_lora_gguf(adapter_folder: Path, base_folder: Path, out: Path) -> Path:
    """Write the adapter in a folder as a GGUF; it is used with a GGUF of its base.

    Args:
        adapter_folder: a LoRA adapter in peft's format.
        base_folder: of its base, for the shape.
        out: file to make; it must not exist.

    Returns:
        The file.

    Raises:
        CheckpointError: llama.cpp has no such adapter; says which way is left.
        OutputError: the file exists, or cannot be written.
        RecipeError: the package gguf is missing.
    """
    check_type("f32")
    from gguf import GGUFType

    check_folder(adapter_folder)
    config = read_peft_config(adapter_folder)
    _refuse_other_methods(adapter_folder, config)
    axes = Axes(shape_of(load_config(base_folder)))
    _, stored = read_tensors(adapter_folder)
    pairs = _pairs(adapter_folder, by_peft_names(stored))
    _check_fit(adapter_folder, base_folder, pairs)
    alpha = float(config.lora_alpha)
    tensors: dict[str, Tensor] = {}
    for layer, (a, b) in pairs.items():
        name = module_name(layer)
        assert name is not None  # `_pairs` has refused it
        scale = _scale(config, layer, a.shape[0]) / (alpha / a.shape[0])
        for half, tensor in (("lora_a", a.float()), ("lora_b", b.float() * scale)):
            full = f"{name}.weight.{half}"
            tensors[full] = axes.apply(full, tensor)
    with new_gguf(out) as writer:
        writer.add_type(GGUFType.ADAPTER)
        writer.add_name(adapter_folder.resolve().name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        write_tensors(writer, shapes, tensors.items(), "f32")
    return out


def _refuse_other_methods(folder: Path, config: Any) -> None:
    """Refuse what llama.cpp cannot add: anything but the product of two matrices.

    Raises:
        CheckpointError: names what it is.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    problem = ""
    if kind != "LORA":
        problem = f"it is a {kind} adapter"
    elif getattr(config, "use_dora", False):
        problem = "it is a DoRA adapter"
    elif config.bias not in ("none", None):
        problem = f"it has trained biases (bias: {config.bias})"
    elif config.modules_to_save:
        problem = f"it holds complete layers ({some(sorted(config.modules_to_save))})"
    elif str(config.init_lora_weights).lower().startswith(_CHANGES_BASE):
        problem = f"it changes the base when it is loaded ({config.init_lora_weights})"
    elif not config.lora_alpha:
        problem = "its lora_alpha is 0"
    if problem:
        raise CheckpointError(f"{folder}: {problem}, and llama.cpp adds plain LoRA only. {_ADVICE}")


def _pairs(folder: Path, tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of every adapted layer, by the layer's name in the base.

    Raises:
        CheckpointError: there is another tensor, one is missing, or a layer has no counterpart.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.removeprefix(_PREFIX).rpartition(".lora_")
        if leaf not in ("A.weight", "B.weight") or module_name(layer) is None:
            raise CheckpointError(
                f"{folder}: llama.cpp's ChatGLM has no place for {name}. {_ADVICE}"
            )
        halves.setdefault(layer, {})[leaf[0]] = tensor
    if alone := sorted(layer for layer, both in halves.items() if len(both) != 2):
        raise CheckpointError(
            f"{folder}: {some(alone)} lack one of lora_A and lora_B. Copy the adapter again."
        )
    return {layer: (both["A"], both["B"]) for layer, both in halves.items()}


def _scale(config: Any, layer: str, rank: int) -> float:
    """Return by what peft scales a layer."""
    from peft.utils.other import get_pattern_key

    patterns: dict[str, float] = config.alpha_pattern or {}
    key = get_pattern_key(list(patterns), layer)
    alpha = float(patterns.get(key, config.lora_alpha))
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _check_fit(folder: Path, base_folder: Path, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Refuse an adapter of a base with other layers.

    Raises:
        CheckpointError: names the layer and both shapes.
    """
    shapes = {name: each.shape for name, each in Weights(base_folder).stored.items()}
    for layer, (a, b) in pairs.items():
        expected, found = shapes.get(f"{layer}.weight"), (b.shape[0], a.shape[1])
        if expected == found:
            continue
        there = "has no such layer" if expected is None else f"has {expected[0]} x {expected[1]}"
        raise CheckpointError(
            f"{folder}: adapts {layer} of {found[0]} x {found[1]}, and {base_folder} {there}. "
            "Give the base that the adapter was trained on."
        )
