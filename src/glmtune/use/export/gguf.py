"""Write a model as a GGUF, which llama.cpp, Ollama, LM Studio and others run.

folder -> shape, tokenizer, tensors one at a time -> model.gguf

Checked against llama.cpp's own converter and server; its f16 cache of keys and values rounds more
than anything here (f16 weights: 0.008 of a logit).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from glmtune.model.load import load_config, load_tokenizer
from glmtune.model.stored import check_stored
from glmtune.recipe.choices import Layout
from glmtune.use.export.gguf_axes import Axes
from glmtune.use.export.gguf_file import GgufType, check_type, new_gguf, write_tensors
from glmtune.use.export.gguf_names import gguf_name, shape_of
from glmtune.use.export.gguf_vocabulary import add_vocabulary
from glmtune.use.export.weights import Weights

if TYPE_CHECKING:
    from gguf import GGUFWriter


def write_gguf(
    model_folder: Path, out: Path, dtype: str = "f16", *, layout: Layout = "official"
) -> Path:
    """Write the model in a folder as a GGUF.

    Args:
        model_folder: a complete model, in ChatGLM's layout or in `glm`'s, with tokenizer.model.
        out: file to make; it must not exist.
        dtype: of the matrices: f32, f16, bf16 or q8_0.
        layout: of the prompts, for the chat template.

    Returns:
        The file.

    Raises:
        CheckpointError: the folder holds another family, or is damaged.
        OutputError: the file exists, or cannot be written.
        RecipeError: the package gguf is missing, or does not write the type.
    """
    check_type(dtype)
    config = load_config(model_folder)
    check_stored(model_folder, config)
    weights = Weights(model_folder)
    return write_gguf_of(
        out,
        config=config,
        tokenizer=load_tokenizer(model_folder),
        shapes={name: each.shape for name, each in weights.stored.items()},
        tensors=((name, weights.read(name)) for name in weights.stored),
        dtype=dtype,
        layout=layout,
        name=model_folder.resolve().name,
    )


def write_gguf_of(
    out: Path,
    *,
    config: Any,
    tokenizer: Any,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: str = "f16",
    layout: Layout = "official",
    name: str = "",
) -> Path:
    """Write tensors as a GGUF, wherever they come from.

    Args:
        out: file to make; it must not exist.
        config: of the model.
        tokenizer: ChatGLM's.
        shapes: of the tensors, by their names in the checkpoint.
        tensors: the same, in the same order; one is in memory at a time.
        dtype: of the matrices.
        layout: of the prompts, for the chat template.
        name: of the model, for people.

    Raises:
        CheckpointError: it is another family, or has a tensor that llama.cpp lacks.
        OutputError: the file exists, or cannot be written.
        RecipeError: the package gguf is missing, or does not write the type.
    """
    kind, axes = check_type(dtype), Axes(shape_of(config))
    names = {name: new for name in shapes if (new := gguf_name(name)) is not None}
    written = {new: axes.new_shape(new, shapes[name]) for name, new in names.items()}
    with new_gguf(out) as writer:
        _add_shape(writer, axes, kind, name)
        add_vocabulary(writer, tokenizer, axes.shape.vocab, layout)
        renamed = ((names[name], tensor) for name, tensor in tensors if name in names)
        fitted = ((name, axes.apply(name, tensor)) for name, tensor in renamed)
        write_tensors(writer, written, fitted, kind)
    return out


def _add_shape(writer: "GGUFWriter", axes: Axes, dtype: GgufType, name: str) -> None:
    shape = axes.shape
    from gguf import GGML_QUANT_VERSION, GGUFType, LlamaFileType, RopeScalingType

    writer.add_type(GGUFType.MODEL)
    writer.add_name(name)
    prefix = "ALL" if dtype == "f32" else "MOSTLY"
    writer.add_file_type(LlamaFileType[f"{prefix}_{dtype.upper()}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(axes.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_block_count(shape.layers)
    writer.add_head_count(axes.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(axes.epsilon)
    writer.add_vocab_size(shape.vocab)
    writer.add_rope_dimension_count(shape.head_dim // 2)
    writer.add_rope_freq_base(shape.rope_base)
    if shape.rope_divisor != 1:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.rope_divisor)
