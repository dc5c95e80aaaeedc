"""The outline of config.json says what the network says, or nothing."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from glmtune.model.chatglm import configuration_chatglm
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.outline import (
    DEFAULTS,
    GLM4_PADDED_VOCAB_SIZE,
    PUBLISHED_VALUES,
    outline,
)
from glmtune.model.load import load_config, load_shapes

SMALL: dict[str, Any] = {
    "model_type": "chatglm",
    "num_layers": 2,
    "padded_vocab_size": 96,
    "hidden_size": 24,
    "ffn_hidden_size": 40,
    "kv_channels": 8,
    "num_attention_heads": 4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {"model_type": "chatglm"},
    "small": SMALL,
    "one layer": {**SMALL, "num_layers": 1, "seq_length": 77},
    "shared keys": {**SMALL, "multi_query_attention": True, "multi_query_group_num": 2},
    "one shared key": {**SMALL, "multi_query_attention": True},
    "groups that are not used": {**SMALL, "multi_query_group_num": 3},
    "wide heads": {**SMALL, "kv_channels": 32},
    "all biases": {**SMALL, "add_bias_linear": True},
    "a bias of queries, keys and values": {**SMALL, "add_qkv_bias": True},
    "both biases": {**SMALL, "add_bias_linear": True, "add_qkv_bias": True},
    "prefix": {**SMALL, "pre_seq_len": 5},
    "computed prefix": {**SMALL, "pre_seq_len": 5, "prefix_projection": True},
    "computed prefix of shared keys": {
        **SMALL,
        "pre_seq_len": 3,
        "prefix_projection": True,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
    },
    "no prefix to compute": {**SMALL, "pre_seq_len": None, "prefix_projection": True},
    "stretched": {**SMALL, "rope_ratio": 2.5, "rope_interpolation": True},
    "published keys": {
        **SMALL,
        **PUBLISHED_VALUES,
        "_name_or_path": "THUDM/chatglm2-6b-32k",
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
        "classifier_dropout": None,
        "interleaved_qkv": False,
        "layernorm_epsilon": 1e-05,
        "rope_ratio": 16,
        "torch_dtype": "float16",
        "transformers_version": "4.30.2",
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "a number beyond float64": {**SMALL, "attention_dropout": 10**400},
    "another model": {"model_type": "llama"},
    "no kind of model": {"num_layers": 2},
    "an unknown key": {**SMALL, "rope_scaling": 2},
    "a name of transformers": {**SMALL, "num_hidden_layers": 3},
    "text for a number": {**SMALL, "num_layers": "2"},
    "a fraction of a layer": {**SMALL, "num_layers": 2.0},
    "a switch for a number": {**SMALL, "num_layers": True},
    "no layers": {**SMALL, "num_layers": 0},
    "null for a number": {**SMALL, "hidden_size": None},
    "a number for a switch": {**SMALL, "add_qkv_bias": 1},
    "LayerNorm": {**SMALL, "rmsnorm": False},
    "tied embeddings": {**SMALL, "tie_word_embeddings": True},
    "no final norm": {**SMALL, "post_layer_norm": False},
    "packed weights": {**SMALL, "quantization_bit": 4},
    "groups that do not divide": {
        **SMALL,
        "multi_query_attention": True,
        "multi_query_group_num": 3,
    },
    "GLM-4": {**SMALL, "padded_vocab_size": GLM4_PADDED_VOCAB_SIZE},
    "ChatGLM-6B": {**SMALL, "position_encoding_2d": True},
    "an id that warns": {**SMALL, "pad_token_id": 96},
    "a dtype that torch lacks": {**SMALL, "torch_dtype": "float12"},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_an_outline_is_that_of_the_network(case: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[case]))
    model, config = load_shapes(tmp_path), load_config(tmp_path)

    found = outline(CONFIGS[case])

    assert found is not None
    assert found.class_name == type(model).__name__
    shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    assert list(found.parameters.items()) == shapes
    assert found.buffers == tuple(name for name, _ in model.named_buffers())
    output_layer = model.get_output_embeddings()
    assert found.linear == tuple(
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output_layer
    )
    assert isinstance(config, ChatGLMConfig)
    assert (found.context_length, found.rope_ratio) == (config.seq_length, config.rope_ratio)
    kv = config.num_layers * config.num_key_value_heads * config.kv_channels
    assert found.cache_bytes_per_token == 4 * kv


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_the_network_can_tell_has_no_outline(case: str) -> None:
    assert outline(REFUSED[case]) is None


def test_defaults_and_refusals_are_those_of_the_configuration() -> None:
    defaults = {field.name: field.default for field in fields(ChatGLMConfig)}

    assert {name: defaults[name] for name in DEFAULTS} == DEFAULTS
    assert configuration_chatglm._PUBLISHED_VALUES == PUBLISHED_VALUES
    assert configuration_chatglm.GLM4_PADDED_VOCAB_SIZE == GLM4_PADDED_VOCAB_SIZE


def test_what_the_configuration_writes_has_an_outline(tmp_path: Path) -> None:
    ChatGLMConfig(**SMALL).save_pretrained(tmp_path)

    assert outline(json.loads((tmp_path / "config.json").read_text())) == outline(SMALL)
