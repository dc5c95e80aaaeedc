"""The speedup of a training step and of a generated token by int8 weights over bfloat16.

    python -m benchmarks.int8 [--quick]

Slices of 4 and 2 layers (with --quick 2) at the full width of ChatGLM3-6B with random weights, LoRA
r 8 on query_key_value. Forward and backward of the same packs, both kinds and both slices in turn.
The floor is the matrix products alone at the rate of this run. Needs 6 GiB.
"""

import copy
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from benchmarks.figures import Figure, run
from benchmarks.generation import GREEDY, slice_of
from benchmarks.slices import (
    PRODUCTS_PER_LAYER,
    WHOLE,
    blocks_of,
    layers_of,
    packs_of,
    product_rates,
    rows_of,
    seconds,
    show_layers,
    title,
    with_whole,
)
from glmtune.data.batches import MicroBatch
from glmtune.kernels.int8 import quantize
from glmtune.methods import lora
from glmtune.objective.next_token import next_token_loss
from glmtune.recipe.methods import LoraSection
from glmtune.use.generate import Request, generate

KINDS = ("bfloat16", "int8")


def learn(model: Any, pack: MicroBatch) -> None:
    """Forward and backward of a pack."""
    next_token_loss(model, pack).backward()


def answer(model: Any, num_tokens: int) -> None:
    """Write one answer to a prompt of 20 tokens."""
    request = Request(list(range(1000, 1020)), num_tokens)
    list(generate(model, [request], stop_ids=(), sampling=GREEDY))


def seconds_per_written_token(model: Any) -> float:
    """What a token costs after the first, for which the prompt is read."""
    return (seconds(lambda: answer(model, 13)) - seconds(lambda: answer(model, 1))) / 12


def in_turn(
    models: dict[str, Any], slices: Sequence[int], works: Iterable[Callable[[Any], float]]
) -> dict[str, dict[int, float]]:
    """Let each model do every work with so many layers; the first work warms up.

    Returns:
        Medians of what `works` return, by kind of model and number of layers.
    """
    blocks = {kind: blocks_of(model) for kind, model in models.items()}
    found: dict[str, dict[int, list[float]]] = {k: {n: [] for n in slices} for k in models}
    for work in works:
        for layers in slices:
            for kind, model in models.items():
                show_layers(model, blocks[kind], layers)
                found[kind][layers].append(work(model))
    for kind, model in models.items():
        show_layers(model, blocks[kind], len(blocks[kind]))
    return {
        kind: {layers: statistics.median(values[1:]) for layers, values in by_layers.items()}
        for kind, by_layers in found.items()
    }


def measure(quick: bool) -> list[Figure]:
    """Measure both kinds in turn, on 4 layers and on their first two."""
    torch.manual_seed(0)
    slices = layers_of(quick)
    plain = slice_of(max(slices))
    plain.set_attn_implementation("packed")
    rounded = copy.deepcopy(plain)
    quantize(rounded, torch.bfloat16)
    section = LoraSection(r=8, target_modules=("query_key_value",))
    models = {"bfloat16": lora.attach(plain, section), "int8": lora.attach(rounded, section)}
    packs = packs_of(rows_of(8 if quick else 40))

    def seconds_per_learned_token(pack: MicroBatch) -> Callable[[Any], float]:
        return lambda model: seconds(lambda: learn(model, pack)) / pack.input_ids.numel()

    rates = [product_rates(KINDS)]
    learned = in_turn(models, slices, map(seconds_per_learned_token, [packs[0], *packs]))
    written = in_turn(models, slices, [seconds_per_written_token] * (2 if quick else 6))
    if not quick:
        rates.append(product_rates(KINDS))
    rate = {kind: statistics.mean(each[kind] for each in rates) for kind in KINDS}
    floor = rate["int8"] / (2 * 2 * PRODUCTS_PER_LAYER * WHOLE / 1e9)
    figures = [Figure("int8 products", "", "GOP/s", rate["int8"], rate["bfloat16"], "bfloat16")]
    for point, found in (("int8 step", learned), ("int8 writing", written)):
        rounded_times, wide_times = (with_whole(found[kind]) for kind in ("int8", "bfloat16"))
        for layers in wide_times:
            is_goal = layers == WHOLE and found is learned
            figures.append(
                Figure(
                    point,
                    title(layers),
                    "tokens/s",
                    1 / rounded_times[layers],
                    1 / wide_times[layers],
                    "our bfloat16",
                    floor=floor if is_goal else None,
                    goal=1.6 if is_goal else None,
                )
            )
    return figures


if __name__ == "__main__":
    run(measure, __doc__)
