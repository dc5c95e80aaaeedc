"""A configuration whose shapes hide no mistake, and its logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.methods.adapter_folder import CARD, CONFIG
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig

ALL_LINEAR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
IDS = torch.arange(3, 25)[None]
MakeModel = Callable[..., Path]
MakeAdapter = Callable[..., Path]


def odd_config(**changes: Any) -> ChatGLMConfig:
    """Heads that are wider together than the model, three groups, another rotary base."""
    fields: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 64,
        "ffn_hidden_size": 96,
        "num_attention_heads": 6,
        "kv_channels": 16,
        "multi_query_attention": True,
        "multi_query_group_num": 3,
        "add_qkv_bias": True,
        "padded_vocab_size": 512,
        "seq_length": 512,
        "rope_ratio": 7.5,
        "initializer_range": 0.2,
        "dtype": "float32",
    }
    return ChatGLMConfig(**(fields | changes))


def name_base(adapter: Path, base: str) -> None:
    """Let an adapter name another base, as when it was trained elsewhere."""
    config = json.loads((adapter / CONFIG).read_text("utf-8"))
    config["base_model_name_or_path"] = base
    (adapter / CONFIG).write_text(json.dumps(config), "utf-8")
    (adapter / CARD).unlink()  # it may hold a checksum


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    """Score some ids: (seq, vocab)."""
    scores: Tensor = model.eval()(input_ids=IDS, use_cache=False).logits[0]
    return scores.float()
