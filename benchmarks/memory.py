"""What a micro-batch needs besides the weights, and how time and memory grow with its rows.

    python -m benchmarks.memory [--quick]

Forward and backward in bfloat16, LoRA r 8 on query_key_value, random weights at full width.

Memory is the most that tensors hold beyond what was there before, added up from the allocations
that torch's profiler sees: nothing is sampled, and runs differ by 2 %. 28 layers are extrapolated.
The peer is the padded batch of 2 rows that a Trainer would take, per real token, all logits at
once.

Growth is one row of so many tokens (short ones are packed to 512) through 2 layers. Its floor is
the products and the causal attention alone, at the product rate of this run, so that a share that
stays level means a time that grows by attention alone.
"""

import statistics
import warnings
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import peft
import torch
from torch.profiler import ProfilerActivity, profile

import glmtune.attention  # noqa: F401  # registers attention over packs
from benchmarks.figures import Figure, run
from benchmarks.generation import slice_of
from benchmarks.slices import (
    HIDDEN,
    MAX_LENGTH,
    PACK_TOKENS,
    SLICES,
    WHOLE,
    blocks_of,
    product_rates,
    row_of,
    rows_of,
    seconds,
    show_layers,
    whole,
    work_per_token,
)
from glmtune import adapter
from glmtune.data.batches import MicroBatch, pack_examples, pad_examples
from glmtune.loss import next_token_loss
from glmtune.recipe import LoraSection

MIB = 2**20
LENGTHS = (128, 512, 2048, 8192)
BACKWARD = 2.5  # of attention: its scores are made again


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


def per_token(models: dict[str, Any]) -> list[Figure]:
    """Memory of a micro-batch, without and with checkpointing."""
    rows = rows_of(64)
    pack = pack_examples([row_of(MAX_LENGTH)] * 2, range(2))
    pair = rows[:2]
    padded, real = pad_examples(pair, 0), sum(len(row.input_ids) for row in pair)
    blocks = {name: blocks_of(model) for name, model in models.items()}
    ours: dict[bool, dict[int, float]] = {False: {}, True: {}}
    peer: dict[int, float] = {}
    for layers in SLICES:
        for name, model in models.items():
            show_layers(model, blocks[name], layers)
        for checkpointing, found in ours.items():
            base = models["ours"].get_base_model()
            if checkpointing:
                base.gradient_checkpointing_enable({"use_reentrant": False})
            base.train(checkpointing)
            found[layers] = peak_bytes(lambda: learn(models["ours"], pack))
            base.gradient_checkpointing_disable()
        peer[layers] = peak_bytes(lambda: learn_padded(models["peer"], padded))
    for found in (*ours.values(), peer):
        found[WHOLE] = whole(found)
    goals = {False: 3.0, True: 0.4}
    return [
        Figure(
            "memory",
            f"{layers} layers"
            + ", extrapolated" * (layers == WHOLE)
            + ", checkpointing" * checkpointing,
            "MB/token",
            found[layers] / PACK_TOKENS / 1e6,
            None if checkpointing else peer[layers] / real / 1e6,
            "" if checkpointing else "padded, all logits",
            limit=goals[checkpointing] if layers == WHOLE else None,
            less_is_better=True,
        )
        for checkpointing, found in ours.items()
        for layers in (*SLICES, WHOLE)
    ]


def growth(model: Any, longest: int) -> list[Figure]:
    """Time and memory per token of longer and longer rows, in 2 layers."""
    rate = product_rates(["bfloat16"])["bfloat16"] * 1e9
    layers = min(SLICES)
    figures = []
    for length in LENGTHS:
        if length > longest:
            break
        rows = [row_of(length)] * max(1, PACK_TOKENS // length)
        pack = pack_examples(rows, range(len(rows)))
        tokens = pack.input_ids.numel()
        learn(model, pack)
        taken = statistics.median(seconds(lambda pack=pack: learn(model, pack)) for _ in "123")
        memory = peak_bytes(lambda pack=pack: learn(model, pack))
        attention = (1 + BACKWARD) * 2 * length * HIDDEN * layers  # half of it is masked
        floor = rate / (work_per_token(layers) + attention)
        figures.append(
            Figure("growth", f"rows of {length:,} tokens", "tokens/s", tokens / taken, floor=floor)
        )
        figures.append(
            Figure("growth", f"rows of {length:,} tokens", "MB/token", memory / tokens / 1e6)
        )
    return figures


def measure(quick: bool) -> list[Figure]:
    """Memory per token on 2 and 4 layers, then growth on 2."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    mine, theirs = slice_of(max(SLICES)), slice_of(max(SLICES))
    mine.set_attn_implementation("packed")
    theirs.set_attn_implementation("sdpa")
    lora = peft.LoraConfig(r=8, target_modules=["query_key_value"], task_type="CAUSAL_LM")
    models = {
        "ours": adapter.attach(mine, LoraSection(r=8, target_modules=("query_key_value",))),
        "peer": peft.get_peft_model(theirs, lora),
    }
    figures = per_token(models)
    show_layers(models["ours"], blocks_of(models["ours"]), min(SLICES))
    return figures + growth(models["ours"], 512 if quick else max(LENGTHS))


if __name__ == "__main__":
    run(measure, __doc__)
