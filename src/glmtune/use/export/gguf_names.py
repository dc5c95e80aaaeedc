"""The shape of a ChatGLM, and the names of its tensors, in a GGUF.

    transformer.encoder.layers.N.self_attention.query_key_value    blk.N.attn_qkv
    model.layers.N.self_attn.q_proj, k_proj, v_proj                blk.N.attn_q, attn_k, attn_v

Both layouts of a checkpoint are read: ChatGLM's own, and the `glm` of transformers. llama.cpp
rotates neighboring channels as ChatGLM does, and its `ffn_up` holds gate and up in the order of
`dense_h_to_4h`.

Source: https://github.com/ggml-org/llama.cpp, gguf-py/gguf/tensor_mapping.py, src/models.
"""

import re
from dataclasses import dataclass
from typing import Any

from glmtune.errors import CheckpointError

_NAMES = {
    "transformer.embedding.word_embeddings": "token_embd",
    "transformer.output_layer": "output",
    "transformer.encoder.final_layernorm": "output_norm",
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_MAY_HAVE_BIAS = ("attn_qkv", "attn_q", "attn_k", "attn_v")  # in llama.cpp's chatglm
_LAYER = re.compile(r"(?:transformer\.encoder|model)\.layers\.(\d+)\.(.+)")
_COMPUTED = re.compile(r"(.*\.)?rotary_\w+\.inv_freq")  # llama.cpp computes it


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a ChatGLM that a GGUF names.

    Attributes:
        layers, hidden, ffn, heads, kv_heads, head_dim: of the decoder.
        vocab: rows of the embedding.
        context: nominal length.
        epsilon: of every RMSNorm.
        rope_base: of the rotary angles.
        rope_divisor: of the positions; 1 leaves them as they are.
        is_interleaved: whether the rows of query_key_value are in the order of heads.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    epsilon: float
    rope_base: float
    rope_divisor: float
    is_interleaved: bool


def shape_of(config: Any) -> Shape:
    """Read the configuration of a ChatGLM, or of a `glm`.

    Raises:
        CheckpointError: it is of another family, or rotates otherwise.
    """
    if config.model_type not in ("chatglm", "glm"):
        raise CheckpointError(
            f"a GGUF is written of ChatGLM2 and ChatGLM3, and this is a {config.model_type!r} "
            "model. llama.cpp's own convert_hf_to_gguf.py converts other families."
        )
    base, divisor = _rope_of_glm(config) if config.model_type == "glm" else _rope(config)
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        ffn=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=config.head_dim,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        epsilon=config.rms_norm_eps,
        rope_base=base,
        rope_divisor=divisor,
        is_interleaved=not getattr(config, "multi_query_attention", True),
    )


def _rope(config: Any) -> tuple[float, float]:
    ratio = float(config.rope_ratio)
    return (10_000.0, ratio) if config.rope_interpolation else (10_000.0 * ratio, 1.0)


def _rope_of_glm(config: Any) -> tuple[float, float]:
    rope = config.rope_parameters
    kind, share = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 0.5)
    if kind not in ("default", "linear") or share != 0.5:
        raise CheckpointError(
            f"rope_parameters are {kind!r} over {share:g} of each head, and a ChatGLM has "
            "'default' or 'linear' over 0.5. Only such a glm becomes a GGUF here."
        )
    return float(rope["rope_theta"]), float(rope.get("factor", 1.0))


def gguf_name(name: str) -> str | None:
    """Return the name of a tensor in a GGUF; None for one that llama.cpp computes itself.

    Raises:
        CheckpointError: llama.cpp's ChatGLM has no such tensor.
    """
    if _COMPUTED.fullmatch(name):
        return None
    path, _, leaf = name.rpartition(".")
    if (found := module_name(path)) and (leaf == "weight" or _has_bias(found, leaf)):
        return f"{found}.{leaf}"
    raise CheckpointError(
        f"{name}: llama.cpp's ChatGLM has no such tensor, so it cannot be written to a GGUF. "
        "Export to glm or vllm instead."
    )


def module_name(path: str) -> str | None:
    """Return the name of a layer in a GGUF; None if llama.cpp's ChatGLM lacks it."""
    if found := _LAYER.fullmatch(path):
        number, inner = found.groups()
        return f"blk.{number}.{_IN_LAYER[inner]}" if inner in _IN_LAYER else None
    return _NAMES.get(path)


def _has_bias(name: str, leaf: str) -> bool:
    return leaf == "bias" and name.rpartition(".")[2] in _MAY_HAVE_BIAS
