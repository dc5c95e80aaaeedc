"""How much faster is a step on int8 weights, and a written token, than in bfloat16.

    python -m benchmarks.int8 [--quick]

Slices of 4 and 2 layers at the full width of ChatGLM3-6B with random weights, LoRA r 8 on
query_key_value. Forward and backward of the same packs, both kinds and both slices in turn. The
floor is the products alone at the rate of this run. Needs 6 GiB.
"""

import copy
import statistics
from typing import Any

import torch

import glmtune.attention  # noqa: F401  # registers attention over packs
from benchmarks.figures import Figure, run
from benchmarks.generation import GREEDY, slice_of
from benchmarks.slices import (
    PRODUCTS_PER_LAYER,
    SLICES,
    WHOLE,
    blocks_of,
    packs_of,
    product_rates,
    rows_of,
    seconds,
    show_layers,
    whole,
)
from glmtune import adapter
from glmtune.data.batches import MicroBatch
from glmtune.generate import Request, write
from glmtune.int8 import quantise
from glmtune.loss import next_token_loss
from glmtune.recipe import LoraSection

KINDS = ("bfloat16", "int8")


def learn(model: Any, pack: MicroBatch) -> None:
    """Forward and backward of a pack."""
    next_token_loss(model, pack).backward()


def answer(model: Any, num_tokens: int) -> None:
    """Write one answer to a prompt of 20 tokens."""
    request = Request(list(range(1000, 1020)), num_tokens)
    list(write(model, [request], stop_ids=(), sampling=GREEDY))


def seconds_per_written_token(model: Any) -> float:
    """What a token costs after the first, for which the prompt is read."""
    answer(model, 2)
    times = [(seconds(lambda: answer(model, 13)), seconds(lambda: answer(model, 1))) for _ in "123"]
    return statistics.median(long - short for long, short in times) / 12


def measure(quick: bool) -> list[Figure]:
    """Measure both kinds in turn, on 4 layers and on their first two."""
    torch.manual_seed(0)
    plain = slice_of(max(SLICES))
    plain.set_attn_implementation("packed")
    rounded = copy.deepcopy(plain)
    quantise(rounded, torch.bfloat16)
    section = LoraSection(r=8, target_modules=("query_key_value",))
    models = {"bfloat16": adapter.attach(plain, section), "int8": adapter.attach(rounded, section)}
    blocks = {kind: blocks_of(model) for kind, model in models.items()}
    packs = packs_of(rows_of(12 if quick else 40))
    rates = product_rates(KINDS)
    learned: dict[tuple[str, int], float] = {}  # seconds a token, by kind and layers
    written: dict[tuple[str, int], float] = {}
    times: dict[tuple[str, int], list[float]] = {}
    for pack in [packs[0], *packs]:  # the first pack warms up
        for layers in SLICES:
            for kind, model in models.items():
                show_layers(model, blocks[kind], layers)
                taken = seconds(lambda model=model, pack=pack: learn(model, pack))
                times.setdefault((kind, layers), []).append(taken / pack.input_ids.numel())
    for key, measured in times.items():
        learned[key] = statistics.median(measured[1:])
    for layers in SLICES:
        for kind, model in models.items():
            show_layers(model, blocks[kind], layers)
            written[kind, layers] = seconds_per_written_token(model)
    for found in (learned, written):
        for kind in KINDS:
            found[kind, WHOLE] = whole({layers: found[kind, layers] for layers in SLICES})
    floor = rates["int8"] / (2 * 2 * PRODUCTS_PER_LAYER * WHOLE / 1e9)
    figures = [Figure("int8 products", "", "GOP/s", rates["int8"], rates["bfloat16"], "bfloat16")]
    for point, found in (("int8 step", learned), ("int8 writing", written)):
        for layers in (*SLICES, WHOLE):
            is_goal = layers == WHOLE and found is learned
            figures.append(
                Figure(
                    point,
                    f"{layers} layers" + ", extrapolated" * (layers == WHOLE),
                    "tokens/s",
                    1 / found["int8", layers],
                    1 / found["bfloat16", layers],
                    "our bfloat16",
                    floor=floor if is_goal else None,
                    goal=1.6 if is_goal else None,
                )
            )
    return figures


if __name__ == "__main__":
    run(measure, __doc__)
