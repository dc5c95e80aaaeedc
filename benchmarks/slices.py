"""Slices of ChatGLM3-6B at full width, rows for them, and extrapolation to 28 layers.

A slice of a few layers overstates the output layer, which is a third of the work of 2 layers and
4 % of 28. So every figure is taken on 2 and on 4 layers with the same rows, in turn:

    a layer = (4 layers - 2 layers) / 2            28 layers = 4 layers + 24 times a layer

`--quick` looks at 2 layers only: an error of one step, times 12, says nothing of 28.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.data.packing import group_rows
from glmtune.template.base import IGNORE, Example

SLICES, WHOLE = (2, 4), 28
MAX_LENGTH, PACK_TOKENS = 256, 512
HIDDEN, FFN, FUSED, VOCAB = 4096, 13696, 4608, 65024
MLP = 2 * FFN * HIDDEN + HIDDEN * FFN
PRODUCTS_PER_LAYER = FUSED * HIDDEN + HIDDEN * HIDDEN + MLP
"""Multiplications and additions of one token in one layer, attention's own apart."""


def rows_of(number: int, seed: int = 0) -> list[Example]:
    """Rows with the lengths of real ones: log-normal, cut at 256, six sevenths of it learned."""
    draw = random.Random(seed)
    examples = []
    for _ in range(number):
        length = max(16, min(MAX_LENGTH, round(draw.lognormvariate(4.6, 0.6))))
        examples.append(row_of(length, draw.random()))
    return examples


def row_of(length: int, seed: float = 0) -> Example:
    """A row of random tokens, of which the first seventh is the prompt."""
    draw = random.Random(seed)
    ids = [draw.randrange(1000, 60000) for _ in range(length)]
    return Example(ids, [IGNORE] * (length // 7) + ids[length // 7 :])


def packs_of(examples: Sequence[Example]) -> list[MicroBatch]:
    """Packs of at most 512 tokens, as training makes them."""
    lengths = [len(each.input_ids) for each in examples]
    groups = group_rows(range(len(examples)), lengths, PACK_TOKENS)
    return [pack_examples(examples, rows) for rows in groups]


def layers_of(quick: bool) -> tuple[int, ...]:
    """How many layers the slices of a run have."""
    return SLICES[:1] if quick else SLICES


def show_layers(model: Any, blocks: Any, number: int) -> None:
    """Let a model, wrapped or not, run its first blocks only.

    Args:
        model: changed in place.
        blocks: all of its blocks.
        number: how many to run.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.transformer.encoder.layers = blocks[:number]


def blocks_of(model: Any) -> Any:
    """The blocks of a model, wrapped or not."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.transformer.encoder.layers


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def whole(taken: Mapping[int, float]) -> float:
    """What 28 layers take, from what 2 and 4 do."""
    few, more = SLICES
    return taken[more] + (WHOLE - more) * (taken[more] - taken[few]) / (more - few)


def with_whole(taken: Mapping[int, float]) -> dict[int, float]:
    """What was measured by the number of layers, and 28 of them where both slices were."""
    return {**taken, WHOLE: whole(taken)} if len(taken) == len(SLICES) else dict(taken)


def title(layers: int) -> str:
    """What the table calls a slice."""
    return f"{layers} layers" + ", extrapolated" * (layers == WHOLE)


def work_per_token(layers: int) -> float:
    """Operations that cannot be left out: the products of a token, forward and input gradient.

    Below the lowest adapter there is no gradient. Six sevenths of the tokens are scored, and go
    through the MLP of the last layer.
    """
    learned = 6 / 7
    in_layers = layers * PRODUCTS_PER_LAYER - (1 - learned) * MLP
    return 2 * (2 * (in_layers + learned * HIDDEN * VOCAB) - FUSED * HIDDEN)


def product_rates(kinds: Sequence[str]) -> dict[str, float]:
    """Products of the largest layer, forward and backward: 10^9 multiplications and additions/s.

    Args:
        kinds: of "bfloat16" and "int8".
    """
    weight = torch.randint(-127, 128, (2 * FFN, HIDDEN), dtype=torch.int8)
    x = torch.randint(-127, 128, (PACK_TOKENS, HIDDEN), dtype=torch.int8)
    dy = torch.randint(-127, 128, (PACK_TOKENS, 2 * FFN), dtype=torch.int8)
    wide, wide_x, wide_dy = weight.bfloat16(), x.bfloat16(), dy.bfloat16()
    both: dict[str, Callable[[], object]] = {
        "bfloat16": lambda: (wide_x @ wide.T, wide_dy @ wide),
        "int8": lambda: (torch._int_mm(x, weight.T), torch._int_mm(dy, weight)),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(6):
        for kind in kinds:
            times[kind].append(seconds(both[kind]))
    work = 2 * 2 * PACK_TOKENS * weight.numel() / 1e9
    return {kind: work / statistics.median(measured[1:]) for kind, measured in times.items()}
