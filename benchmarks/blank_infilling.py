"""How fast texts become packs of GLM's objective, beside how fast a model learns them.

    python -m benchmarks.blank_infilling [--length 512] [--texts 4] [--seconds 3]

The texts are random ids, the model is random and small (8 layers, 320 wide), so that the collator
has the least time there could be. The model's column is forward and backward of a pack; the peer is
the same model with who sees whom spelled out as one boolean mask for `sdpa`. All three take turns,
and what is printed is the median of many turns.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

import glmtune.kernels.packed_attention  # noqa: F401
from glmtune.data.batches import MicroBatch
from glmtune.kernels.packed_attention import dense_mask
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.objective.blank_infilling import BlankInfilling, Ids, Marks, pack_infillings
from glmtune.objective.next_token import next_token_loss
from glmtune.recipe.sections import ObjectiveSection

VOCAB = 8000
LEVELS = ("token", "sentence", "document", "causal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=512, help="tokens of a text")
    parser.add_argument("--texts", type=int, default=4, help="in a pack")
    parser.add_argument("--seconds", type=float, default=3, help="for each objective")
    arguments = parser.parse_args()
    model = make_model()
    generator = np.random.default_rng(0)
    texts = [generator.integers(20, VOCAB - 10, arguments.length) for _ in range(arguments.texts)]
    print(f"{arguments.texts} texts of {arguments.length} tokens in a pack, tokens per second")
    print(f"{'':<10}{'collator':>12}{'model':>12}{'ratio':>9}{'one mask':>12}{'of it':>7}")
    for level in LEVELS:
        rates = measure(model, level, texts, arguments.seconds)
        collator, packed, dense = rates
        print(
            f"{level:<10}{collator:>12,.0f}{packed:>12,.0f}{collator / packed:>9,.0f}"
            f"{dense:>12,.0f}{packed / dense:>7.2f}"
        )


def measure(model: Any, level: str, texts: list[Ids], seconds: float) -> list[float]:
    """Give tokens per second of the collator, of the model, and of the model with one mask."""
    weights = {**dict.fromkeys(LEVELS, 0.0), level: 1.0}
    ends_sentence = np.arange(VOCAB) % 20 == 0
    marks = Marks(VOCAB - 9, VOCAB - 8, VOCAB - 7, VOCAB - 6, VOCAB - 5, 2, ends_sentence)
    objective = BlankInfilling(ObjectiveSection(**weights), marks)
    generator = np.random.default_rng(0)

    def collate() -> MicroBatch:
        return pack_infillings(objective.batch(texts, generator))

    packed = collate()
    parts: tuple[Callable[[], object], ...] = (
        collate,
        lambda: learn(model, packed, "packed"),
        lambda: learn(model, packed, "sdpa"),
    )
    times: list[list[float]] = [[] for _ in parts]
    end = time.perf_counter() + seconds
    for part in parts:
        part()  # once to warm up
    while time.perf_counter() < end or len(times[0]) < 5:
        for part, spent in zip(parts, times, strict=True):
            spent.append(timed(part))
    num_tokens = packed.input_ids.numel()
    return [num_tokens / median(spent) for spent in times]


def learn(model: Any, packed: MicroBatch, attention: str) -> None:
    """Forward and backward."""
    model.zero_grad()
    if attention == "sdpa":
        assert packed.cu_seq_lens is not None
        assert packed.prefix_lengths is not None
        mask = dense_mask(packed.cu_seq_lens, packed.prefix_lengths)[None, None]
        packed = MicroBatch(
            packed.input_ids, packed.labels, packed.position_ids, mask,
            block_position_ids=packed.block_position_ids,
        )  # fmt: skip
    model.set_attn_implementation(attention)
    next_token_loss(model, packed).backward()


def timed(part: Callable[[], Any]) -> float:
    start = time.perf_counter()
    part()
    return time.perf_counter() - start


def make_model() -> Any:
    torch.manual_seed(0)
    config = ChatGLMConfig(
        num_layers=8, hidden_size=320, ffn_hidden_size=864, kv_channels=64,
        num_attention_heads=5, multi_query_attention=True, multi_query_group_num=1,
        padded_vocab_size=VOCAB, add_qkv_bias=True,
    )  # fmt: skip
    model = ChatGLMForConditionalGeneration(config)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")
    return model.train()


if __name__ == "__main__":
    main()
