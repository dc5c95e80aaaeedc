"""ChatGLM in the layout of transformers' own `glm` classes, which need no code of ours.

    transformer.encoder.layers.N.self_attention.query_key_value   rows of queries, keys and values
      -> model.layers.N.self_attn.q_proj, .k_proj, .v_proj        the same rows, apart
    all other matrices keep their numbers and get other names

The two networks compute the same: glm's rotation takes neighboring channels too, and its
gate_up_proj holds the gate first. It has no bias but that of queries, keys and values.

Source: transformers, models/glm/modeling_glm.py.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.errors import CheckpointError
from glmtune.use.export.job import Job
from glmtune.use.export.update import Survival

NAMES = {  # by the last part of a module's name; a layer's own parts keep their order
    "word_embeddings": ("embed_tokens",),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "dense": ("o_proj",),
    "dense_h_to_4h": ("gate_up_proj",),
    "dense_4h_to_h": ("down_proj",),
    "input_layernorm": ("input_layernorm",),
    "post_attention_layernorm": ("post_attention_layernorm",),
    "output_layer": ("lm_head",),
    "self_attention": ("self_attn",),
    "mlp": ("mlp",),
    "final_layernorm": ("model.norm",),
}
_LAYER = re.compile(r"transformer\.encoder\.layers\.(\d+)\.(.+)")
_DROPPED = "transformer.rotary_pos_emb.inv_freq"  # computed by both classes
PIPELINE = (  # which needs nothing but transformers
    "from transformers import pipeline; "
    "print(pipeline('text-generation', {model!r})([{{'role': 'user', 'content': '你好'}}])"
    "[0]['generated_text'][-1]['content'])"
)


def glm_names(path: str) -> tuple[str, ...]:
    """Return the names in glm's layout of a module of ChatGLM: three of query_key_value.

    >>> glm_names("transformer.encoder.layers.0.self_attention.dense")
    ('model.layers.0.self_attn.o_proj',)

    Raises:
        CheckpointError: glm has no such module.
    """
    last = path.rpartition(".")[2]
    if last not in NAMES:
        raise CheckpointError(
            f"{path}: transformers' glm has no such module. Use --to chatglm, which keeps it."
        )
    if (layer := _LAYER.fullmatch(path)) is not None:
        inner = layer[2].removesuffix(last).replace("self_attention", "self_attn")
        return tuple(f"model.layers.{layer[1]}.{inner}{name}" for name in NAMES[last])
    [name] = NAMES[last]
    return (f"model.{name}",) if last == "word_embeddings" else (name,)


def split_rows(config: Any, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split the rows of query_key_value, (width, ...), into those of queries, keys and values.

    The width is [all queries | all keys | all values] when heads share keys and values, and
    [query, key, value] head by head when they do not.
    """
    head_dim, heads = config.kv_channels, config.num_attention_heads
    if config.multi_query_attention:
        kv = config.multi_query_group_num * head_dim
        query, key, value = torch.split(fused, [heads * head_dim, kv, kv])
    else:
        by_head = fused.reshape(heads, 3, head_dim, *fused.shape[1:])
        query, key, value = (part.flatten(0, 1) for part in by_head.unbind(1))
    return query.clone(), key.clone(), value.clone()  # a view would share memory with the others


def relay_tensors(
    config: Any, tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Give the tensors of a ChatGLM the names and the rows of glm's layout."""
    for name, tensor in tensors:
        if name == _DROPPED:
            continue
        path, _, leaf = name.rpartition(".")
        names = glm_names(path)
        parts = split_rows(config, tensor) if len(names) == 3 else (tensor,)
        for new, part in zip(names, parts, strict=True):
            yield f"{new}.{leaf}", part


def glm_config(job: Job) -> dict[str, Any]:
    """Return config.json of the same network as `glm`.

    `rope_theta` and `partial_rotary_factor` beside `rope_parameters` are for transformers 4.
    """
    old = job.config
    ratio = float(old.rope_ratio)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0 * ratio}
    if old.rope_interpolation:
        rope = {"rope_type": "linear", "factor": ratio, "rope_theta": 10000.0}
    config = {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "hidden_size": old.hidden_size,
        "intermediate_size": old.ffn_hidden_size,
        "num_hidden_layers": old.num_layers,
        "num_attention_heads": old.num_attention_heads,
        "num_key_value_heads": old.num_key_value_heads,
        "head_dim": old.kv_channels,
        "attention_bias": bool(old.add_qkv_bias or old.add_bias_linear),
        "attention_dropout": old.attention_dropout,
        "hidden_act": "silu",
        "rms_norm_eps": old.layernorm_epsilon,
        "max_position_embeddings": old.seq_length,
        "rope_parameters": {**rope, "partial_rotary_factor": 0.5},
        "rope_theta": rope["rope_theta"],
        "partial_rotary_factor": 0.5,
        "vocab_size": old.padded_vocab_size,
        "initializer_range": old.initializer_range,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": list(job.template.stop_ids),
        "pad_token_id": old.pad_token_id or 0,
        "torch_dtype": job.dtype if job.dtype != "auto" else _dtype_of(old),
    }
    if old.rope_interpolation:
        config["rope_scaling"] = {"type": "linear", "rope_type": "linear", "factor": ratio}
    return config


def _dtype_of(config: Any) -> str:
    return str(config.dtype or "float32").removeprefix("torch.")


def check_relayable(job: Job) -> None:
    """Refuse a model that has no place in glm's layout.

    Raises:
        CheckpointError: names what it has, and the format to use instead.
    """
    check_chatglm(job, "transformers' glm")
    if job.config.add_bias_linear:
        raise CheckpointError(
            f"{job.base_name}: add_bias_linear is true, and transformers' glm has no bias there. "
            "Use --to chatglm."
        )


def check_chatglm(job: Job, reader: str) -> None:
    """Refuse a model of another family, or with a prefix before every text.

    Args:
        job: what is exported.
        reader: what will read the result, for the message.

    Raises:
        CheckpointError: names what it has, and the format to use instead.
    """
    kind = job.config.model_type
    if kind != "chatglm":
        raise CheckpointError(
            f"{job.base_name}: model_type is {kind!r}, and only ChatGLM has another layout: "
            f"{reader} reads this model as it is. Add an adapter to it by `glmtune merge`, which "
            "keeps the layout of any model."
        )
    if job.config.pre_seq_len:
        raise CheckpointError(
            f"{job.base_name}: it has a P-Tuning v2 prefix (pre_seq_len "
            f"{job.config.pre_seq_len}), which {reader} does not have. Use --to chatglm."
        )


def write_glm(job: Job, folder: Path) -> Survival:
    """Write a ChatGLM, with the adapter in its weights, in glm's layout.

    Raises:
        CheckpointError: the model has no place in this layout, or cannot be merged.
        OutputError: the disk has too little space.
    """
    check_relayable(job)
    survival = job.write_weights(folder, lambda tensors: relay_tensors(job.config, tensors))
    job.write_prompt_files(folder)
    (folder / "config.json").write_text(json.dumps(glm_config(job), indent=2) + "\n", "utf-8")
    return survival


def start_glm(job: Job, target: Path) -> str:
    """Return the command that answers with the result."""
    return python_line(PIPELINE.format(model=str(target)))


def python_line(code: str) -> str:
    """Return the command line that runs some code, quoted for a shell, and readable if possible."""
    is_plain = not set(code) & set('"$`\\!')
    return f'python -c "{code}"' if is_plain else f"python -c {shlex.quote(code)}"
