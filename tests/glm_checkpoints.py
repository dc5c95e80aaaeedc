"""Tiny random checkpoints of GLM-4 and later, in transformers' own layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.template.glm_templates import TEMPLATES, glm_tokenizer
from tests.tiny_model import SENTENCES

KINDS = {"glm": "glm-4-9b", "glm4": "glm-4-0414", "glm4_moe": "glm-4.5"}
STOPS = ("<|endoftext|>", "<|user|>", "<|observation|>")  # of generation_config.json


def write_glm_checkpoint(kind: str, folder: Path, **changes: Any) -> Path:
    """Write a model of two layers with the tokenizer and the files of the published ones.

    Args:
        kind: `glm` (glm-4-9b-chat-hf), `glm4` (GLM-4-9B-0414) or `glm4_moe` (GLM-4.5-Air).
        folder: to write to.
        **changes: of config.json.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = glm_tokenizer(TEMPLATES[KINDS[kind]], SENTENCES, 420)
    stops = tokenizer.convert_tokens_to_ids(list(STOPS))
    sizes: dict[str, Any] = {
        "vocab_size": 448,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": stops,
    }
    if kind == "glm4_moe":
        sizes |= {"moe_intermediate_size": 32, "num_experts_per_tok": 2, "n_routed_experts": 4}
    config = AutoConfig.for_model(kind, **sizes | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = stops
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
