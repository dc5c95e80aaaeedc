"""Tiny models, the reference's and our own, for the tests of the network."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration

INPUTS = ("input_ids", "attention_mask", "position_ids")
SIX_B = {
    "add_qkv_bias": True,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "seq_length": 8192,
}


def load(golden: Path, **settings: Any) -> ChatGLMForConditionalGeneration:
    """Load the reference's tiny model, with other settings than its config has."""
    folder = golden / "tiny-model"
    dtype = settings.pop("dtype", torch.float32)
    attention = settings.pop("attn_implementation", "sdpa")
    config = ChatGLMConfig.from_pretrained(folder, **settings)
    model: ChatGLMForConditionalGeneration = ChatGLMForConditionalGeneration.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention
    )
    return model.eval()


def load_with_prefix(golden: Path, kind: str) -> ChatGLMForConditionalGeneration:
    """Load the tiny model with one of the reference's P-Tuning v2 prefixes over it."""
    model = load(golden, pre_seq_len=5, prefix_projection=kind == "ptuning_projection")
    stored = load_file(golden / "tiny-model" / "prefix_encoders.safetensors")
    prefix = {
        key.removeprefix(f"{kind}/"): value
        for key, value in stored.items()
        if key.startswith(f"{kind}/")
    }
    result = model.load_state_dict(prefix, strict=False)
    assert not result.unexpected_keys
    return model


def inputs_of(vectors: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    return {name: vectors[f"{case}.{name}"] for name in INPUTS if f"{case}.{name}" in vectors}


def errors(
    vectors: dict[str, Tensor], case: str, model: nn.Module, **kwargs: Any
) -> tuple[float, float]:
    """Give the largest and the mean difference of the logits at real tokens."""
    inputs = inputs_of(vectors, case)
    with torch.no_grad():
        logits = model(**inputs, **kwargs).logits.float()
    difference = (logits - vectors[f"{case}.logits"]).abs()[real(inputs)]
    return difference.max().item(), difference.mean().item()


def real(inputs: dict[str, Tensor]) -> Tensor:
    """Where the tokens of this chunk are not padding, (batch, seq)."""
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    return torch.ones_like(ids).bool() if mask is None else mask[:, -ids.shape[1] :].bool()


def tiny_config(**settings: Any) -> ChatGLMConfig:
    return ChatGLMConfig(
        **{
            "num_layers": 2,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "num_attention_heads": 4,
            "kv_channels": 8,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "add_qkv_bias": True,
            "padded_vocab_size": 64,
            "initializer_range": 0.2,
            **settings,
        }
    )


def tiny_model(**settings: Any) -> ChatGLMForConditionalGeneration:
    torch.manual_seed(0)
    return ChatGLMForConditionalGeneration(tiny_config(**settings)).eval()
