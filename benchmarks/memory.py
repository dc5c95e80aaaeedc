"""Memory of a micro-batch besides the weights, and growth of time and memory with its rows.

    python -m benchmarks.memory [--quick]

Forward and backward in bfloat16, LoRA r 8 on query_key_value, random weights at full width.

Memory is the peak that tensors hold beyond what was there before, summed over the allocations
that torch's profiler records: nothing is sampled, and runs differ by 2 %. 28 layers are
extrapolated.
The peer is the padded batch of 2 rows that a Trainer would take, per real token, all logits at
once.

Growth is measured on one row of a given length (short ones are packed to 512 tokens) through 2
layers. Its floor is the matrix products at the rate of this run plus torch's own causal attention,
measured separately, so a constant share of the floor means that only attention makes time grow.
"""

import statistics
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import peft
import torch
from tests.padding import pad_examples
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from benchmarks.figures import Figure, run
from benchmarks.generation import slice_of
from benchmarks.slices import (
    HIDDEN,
    MAX_LENGTH,
    PACK_TOKENS,
    WHOLE,
    blocks_of,
    layers_of,
    product_rates,
    row_of,
    rows_of,
    seconds,
    show_layers,
    title,
    with_whole,
    work_per_token,
)
from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.methods import lora
from glmtune.objective.next_token import next_token_loss
from glmtune.recipe.methods import LoraSection

MIB = 2**20
LENGTHS = (128, 512, 2048, 8192)
HEAD_DIM, KV_HEADS = 128, 2


def learn(model: Any, pack: MicroBatch) -> None:
    """Forward and backward of a pack."""
    next_token_loss(model, pack).backward()


def learn_padded(model: Any, batch: MicroBatch) -> None:
    """Forward and backward as a Trainer has it: the model's own loss over all logits."""
    model(input_ids=batch.input_ids, labels=batch.labels, use_cache=False).loss.backward()


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that tensors hold during `work`, beyond what they hold before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = seen.profiler.kineto_results.events()  # seen.events() folds them into operations
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes), default=0)


def per_token(models: dict[str, Any], slices: Sequence[int]) -> list[Figure]:
    """Memory of a micro-batch, without and with checkpointing."""
    rows = rows_of(64)
    pack = pack_examples([row_of(MAX_LENGTH)] * 2, range(2))
    pair = rows[:2]
    padded, real = pad_examples(pair, 0), sum(len(row.input_ids) for row in pair)
    blocks = {name: blocks_of(model) for name, model in models.items()}
    ours: dict[bool, dict[int, float]] = {False: {}, True: {}}
    peer: dict[int, float] = {}
    for layers in slices:
        for name, model in models.items():
            show_layers(model, blocks[name], layers)
        for checkpointing, found in ours.items():
            base = models["ours"].get_base_model()
            if checkpointing:
                base.activation_checkpointing_enable({"use_reentrant": False})
            base.train(checkpointing)
            found[layers] = peak_bytes(lambda: learn(models["ours"], pack))
            base.gradient_checkpointing_disable()
        peer[layers] = peak_bytes(lambda: learn_padded(models["peer"], padded))
    peer = with_whole(peer)
    goals = {False: 3.0, True: 0.4}
    return [
        Figure(
            "memory",
            title(layers) + ", checkpointing" * checkpointing,
            "MB/token",
            num_bytes / PACK_TOKENS / 1e6,
            None if checkpointing else peer[layers] / real / 1e6,
            "" if checkpointing else "padded, all logits",
            limit=goals[checkpointing] if layers == WHOLE else None,
            less_is_better=True,
        )
        for checkpointing, found in ours.items()
        for layers, num_bytes in with_whole(found).items()
    ]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Causal attention of a row, forward and backward."""
    F.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    ).sum().backward()


def attention_seconds(length: int) -> float:
    """What the attention of one row takes in one layer, with nothing around it."""
    query, key, value = (
        torch.randn(1, heads, length, HEAD_DIM, dtype=torch.bfloat16, requires_grad=True)
        for heads in (HIDDEN // HEAD_DIM, KV_HEADS, KV_HEADS)
    )
    attend(query, key, value)
    return statistics.median(seconds(lambda: attend(query, key, value)) for _ in "123")


def growth(model: Any, layers: int, lengths: Sequence[int], turns: int) -> list[Figure]:
    """Time and memory per token of longer and longer rows."""
    rate = product_rates(["bfloat16"])["bfloat16"] * 1e9
    figures = []
    packs = {}
    for length in lengths:
        rows = [row_of(length)] * max(1, PACK_TOKENS // length)
        packs[length] = pack_examples(rows, range(len(rows)))
    learn(model, packs[lengths[0]])  # the first products choose their kernels
    taken: dict[int, list[float]] = {length: [] for length in packs}
    for _ in range(turns):
        for length, pack in packs.items():
            taken[length].append(seconds(partial(learn, model, pack)))
    for length, pack in packs.items():
        tokens = pack.input_ids.numel()
        memory = peak_bytes(partial(learn, model, pack))
        per_token = work_per_token(layers) / rate + layers * attention_seconds(length) / length
        what, now = f"rows of {length:,} tokens", statistics.median(taken[length])
        figures.append(Figure("growth", what, "tokens/s", tokens / now, floor=1 / per_token))
        figures.append(Figure("growth", what, "MB/token", memory / tokens / 1e6))
    return figures


def measure(quick: bool) -> list[Figure]:
    """Memory per token on 2 and 4 layers (with --quick on 2), then growth on 2."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    slices = layers_of(quick)
    mine, theirs = slice_of(max(slices)), slice_of(max(slices))
    mine.set_attn_implementation("packed")
    theirs.set_attn_implementation("sdpa")
    config = peft.LoraConfig(r=8, target_modules=["query_key_value"], task_type="CAUSAL_LM")
    models = {
        "ours": lora.attach(mine, LoraSection(r=8, target_modules=("query_key_value",))),
        "peer": peft.get_peft_model(theirs, config),
    }
    figures = per_token(models, slices)
    show_layers(models["ours"], blocks_of(models["ours"]), min(slices))
    lengths, turns = (LENGTHS[:2], 2) if quick else (LENGTHS, 3)
    return figures + growth(models["ours"], min(slices), lengths, turns)


if __name__ == "__main__":
    run(measure, __doc__)
