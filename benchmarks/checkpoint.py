"""Checkpoints of ChatGLM3-6B's shape with random weights, in the published layout.

    python -m benchmarks.checkpoint FOLDER TOKENIZER_FOLDER [--layers 28]

A shard holds one block, and is sampled, written and released before the next one, so the 12.5 GB
of 28 layers are never in memory at once.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig

SPREAD = 0.02  # standard deviation of a weight
FILES = ("tokenizer.model", "tokenizer_config.json")


def config_of(num_layers: int) -> ChatGLMConfig:
    """The published configuration with `num_layers` blocks."""
    return ChatGLMConfig(
        num_layers=num_layers,
        seq_length=8192,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=2,
        dtype=torch.bfloat16,
        architectures=["ChatGLMForConditionalGeneration"],
    )


def shards(config: ChatGLMConfig) -> Iterator[dict[str, Tensor]]:
    """Draw the tensors, a block at a time."""
    hidden, ffn = config.hidden_size, config.ffn_hidden_size
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    fused = heads * config.kv_channels
    yield {"transformer.embedding.word_embeddings.weight": draw(config.padded_vocab_size, hidden)}
    for index in range(config.num_layers):
        block = {
            "input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            "self_attention.query_key_value.weight": draw(fused, hidden),
            "self_attention.query_key_value.bias": draw(fused),
            "self_attention.dense.weight": draw(
                hidden, config.num_attention_heads * config.kv_channels
            ),
            "post_attention_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            "mlp.dense_h_to_4h.weight": draw(2 * ffn, hidden),
            "mlp.dense_4h_to_h.weight": draw(hidden, ffn),
        }
        yield {f"transformer.encoder.layers.{index}.{name}": t for name, t in block.items()}
    yield {
        "transformer.encoder.final_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        "transformer.output_layer.weight": draw(config.padded_vocab_size, hidden),
    }


def draw(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, SPREAD)


def write_checkpoint(folder: Path, tokenizer: Path, num_layers: int, seed: int = 0) -> None:
    """Write a folder that `from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(num_layers)
    config.save_pretrained(folder)
    for name in FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    torch.manual_seed(seed)
    number, size = num_layers + 2, 0
    where: dict[str, str] = {}
    for index, tensors in enumerate(shards(config), start=1):
        file = f"model-{index:05}-of-{number:05}.safetensors"
        save_file(tensors, str(folder / file), metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer", type=Path, help="folder of ChatGLM3's tokenizer")
    parser.add_argument("--layers", type=int, default=28)
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, arguments.tokenizer, arguments.layers)


if __name__ == "__main__":
    main()
