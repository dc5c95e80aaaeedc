"""config.json -> the names and shapes of the network, by arithmetic alone.

    {"num_layers": 28, ...} -> transformer.encoder.layers.0.mlp.dense_4h_to_h.weight  (4096, 13696)

The network itself would say the same, but importing torch and transformers takes seconds, and
`glmtune info` needs neither for a table of shapes. A test compares both for many configurations.

Only what is understood completely is outlined: a key that is not in the table below, or a value
that `ChatGLMConfig` would refuse or convert, gives no outline, and the caller builds the network.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
_LAYER = "transformer.encoder.layers"
_PREFIX = "transformer.prefix_encoder"


@dataclass(frozen=True, slots=True)
class Outline:
    """What a configuration says about the network.

    Attributes:
        class_name: of the network.
        parameters: shapes by name, in the order of the network.
        buffers: names.
        linear: names of the weights of linear layers, without the output layer.
        cache_bytes_per_token: of keys and values in 16 bit.
        context_length: tokens.
        rope_ratio: factor of the rotary base.
    """

    class_name: str
    parameters: Mapping[str, Shape]
    buffers: tuple[str, ...]
    linear: tuple[str, ...]
    cache_bytes_per_token: int
    context_length: int
    rope_ratio: float


def outline(config: Mapping[str, Any]) -> Outline | None:
    """Outline the network of a configuration, or return None if only the network can tell.

    Args:
        config: the content of config.json.
    """
    if config.get("model_type") != "chatglm":
        return None
    if not all(key in _IS_VALID and _IS_VALID[key](value) for key, value in config.items()):
        return None
    c = {**DEFAULTS, **config}
    kv_heads = _kv_heads(c)
    vocab_size = c["padded_vocab_size"]
    ids = (c.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id"))
    if (
        vocab_size == GLM4_PADDED_VOCAB_SIZE
        or c["num_attention_heads"] % kv_heads
        or any(index is not None and index >= vocab_size for index in ids)
    ):
        return None
    parameters = dict(_parameters(c))
    embeddings = (
        "word_embeddings.weight",
        "output_layer.weight",
        "prefix_encoder.embedding.weight",
    )
    return Outline(
        class_name="ChatGLMForConditionalGeneration",
        parameters=parameters,
        buffers=("transformer.rotary_pos_emb.inv_freq",),
        linear=tuple(
            name
            for name, shape in parameters.items()
            if len(shape) == 2 and not name.endswith(embeddings)
        ),
        cache_bytes_per_token=2 * 2 * c["num_layers"] * kv_heads * c["kv_channels"],
        context_length=c["seq_length"],
        rope_ratio=float(c["rope_ratio"]),
    )


def _kv_heads(c: Mapping[str, Any]) -> int:
    number: int = c["num_attention_heads"]
    if c["multi_query_attention"]:
        number = c["multi_query_group_num"]
    return number


def _parameters(c: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Yield the parameters in the order in which the network registers them."""
    hidden, ffn, head_dim = c["hidden_size"], c["ffn_hidden_size"], c["kv_channels"]
    query = c["num_attention_heads"] * head_dim
    kv = 2 * _kv_heads(c) * head_dim
    bias = c["add_bias_linear"]
    yield "transformer.embedding.word_embeddings.weight", (c["padded_vocab_size"], hidden)
    for index in range(c["num_layers"]):
        layer = f"{_LAYER}.{index}"
        attention, mlp = f"{layer}.self_attention", f"{layer}.mlp"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield from _linear(
            f"{attention}.query_key_value", hidden, query + kv, bias or c["add_qkv_bias"]
        )
        yield from _linear(f"{attention}.dense", query, hidden, bias)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield from _linear(f"{mlp}.dense_h_to_4h", hidden, 2 * ffn, bias)
        yield from _linear(f"{mlp}.dense_4h_to_h", ffn, hidden, bias)
    yield "transformer.encoder.final_layernorm.weight", (hidden,)
    yield from _linear("transformer.output_layer", hidden, c["padded_vocab_size"], False)
    if c["pre_seq_len"]:
        width = c["num_layers"] * kv
        yield f"{_PREFIX}.embedding.weight", (c["pre_seq_len"], width)
        if c["prefix_projection"]:
            yield from _linear(f"{_PREFIX}.trans.0", width, hidden, True)
            yield from _linear(f"{_PREFIX}.trans.2", hidden, width, True)


def _linear(name: str, inputs: int, outputs: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


# ---- the keys of config.json -------------------------------------------------------------

MAX_LAYERS, MAX_SIZE, MAX_CONTEXT, MAX_ROPE_RATIO = 1000, 2**24, 2**31, 1_000_000
GLM4_PADDED_VOCAB_SIZE = 151552  # every GLM-4 9B has it, and no ChatGLM
PUBLISHED_VALUES = {  # others are not implemented
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "tie_word_embeddings": False,
}
DEFAULTS = {  # of `ChatGLMConfig`, for the keys that are used here
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "seq_length": 2048,
    "multi_query_attention": False,
    "multi_query_group_num": 1,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "rope_ratio": 1,
    "pre_seq_len": None,
    "prefix_projection": False,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_Check = Callable[[Any], bool]


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_SIZE


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is(expected: bool) -> _Check:
    return lambda value: value is expected


def _is_switch(value: Any) -> bool:
    return type(value) is bool


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # no NaN either


def _is_id(value: Any) -> bool:
    return value is None or (type(value) is int and value >= 0)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dtype(value: Any) -> bool:
    return value in ("float32", "float16", "bfloat16")


_IS_VALID: Mapping[str, _Check] = {
    **dict.fromkeys(("padded_vocab_size", "hidden_size", "ffn_hidden_size"), _is_size),
    **dict.fromkeys(("num_attention_heads", "multi_query_group_num"), _is_size),
    "num_layers": lambda value: _is_size(value) and value <= MAX_LAYERS,
    "kv_channels": lambda value: _is_size(value) and value % 4 == 0,
    "seq_length": lambda value: type(value) is int and 0 < value <= MAX_CONTEXT,
    **dict.fromkeys(("add_bias_linear", "add_qkv_bias", "multi_query_attention"), _is_switch),
    **dict.fromkeys(("bias_dropout_fusion", "prefix_projection", "original_rope"), _is_switch),
    **dict.fromkeys(("apply_query_key_layer_scaling", "attention_softmax_in_fp32"), _is_switch),
    **dict.fromkeys(("use_cache", "interleaved_qkv"), _is_switch),
    **dict.fromkeys(("hidden_dropout", "attention_dropout"), _is_share),
    "layernorm_epsilon": lambda value: _is_number(value) and 0 < value <= 1,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _is_id),
    **dict.fromkeys(("dtype", "torch_dtype"), _is_dtype),
    **dict.fromkeys(("model_type", "transformers_version", "_name_or_path"), _is_text),
    **{key: _is(published) for key, published in PUBLISHED_VALUES.items()},
    "architectures": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "auto_map": lambda value: isinstance(value, dict),
    "classifier_dropout": lambda value: value is None or _is_number(value),
    "initializer_range": lambda value: type(value) is float,
    "pre_seq_len": lambda value: value is None or _is_size(value),
    "quantization_bit": lambda value: type(value) is int and value == 0,
    "rope_interpolation": lambda value: value is None or _is_switch(value),
    "rope_ratio": lambda value: _is_number(value) and 0 < value <= MAX_ROPE_RATIO,
}
