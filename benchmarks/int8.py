"""How much faster is a step on int8 weights, and a written token, than in bfloat16.

    python -m benchmarks.int8 [--quick]

Slices of 4 and 2 layers at the full width of ChatGLM3-6B with random weights, LoRA r 8 on
query_key_value, packs of 512 tokens with the lengths of real rows (log-normal, cut at 256, six
sevenths of a row are learned). Forward and backward of the same packs, both kinds in turn; 28
layers are extrapolated by the cost of a layer, which is half the difference of the slices.
The floor is what the products alone would take, at the rates of this run. Needs 6 GiB.
"""

import copy
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import glmtune.attention  # noqa: F401  # registers attention over packs
from benchmarks.figures import Figure, run
from benchmarks.generation import GREEDY, slice_of
from glmtune import adapter
from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.generate import Request, write
from glmtune.int8 import quantise
from glmtune.loss import next_token_loss
from glmtune.recipe import LoraSection
from glmtune.template import IGNORE, Example

LAYERS, PACK_TOKENS = 28, 512
KINDS = ("bfloat16", "int8")
HIDDEN, FFN, FUSED = 4096, 13696, 4608
PRODUCTS_PER_LAYER = FUSED * HIDDEN + HIDDEN * HIDDEN + 2 * FFN * HIDDEN + HIDDEN * FFN


def packs_of(number: int) -> list[MicroBatch]:
    """Packs of at most 512 tokens, as real rows fill them."""
    draw = random.Random(0)
    packs = []
    while len(packs) < number:
        examples: list[Example] = []
        while True:
            length = max(16, min(256, round(draw.lognormvariate(4.6, 0.6))))
            if sum(len(each.input_ids) for each in examples) + length > PACK_TOKENS:
                break
            ids = [draw.randrange(1000, 60000) for _ in range(length)]
            prompt = length // 7
            examples.append(Example(ids, [IGNORE] * prompt + ids[prompt:]))
        packs.append(pack_examples(examples, range(len(examples))))
    return packs


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def learn(model: Any, pack: MicroBatch) -> None:
    """Forward and backward of a pack."""
    next_token_loss(model, pack).backward()


def in_turn(models: dict[str, Any], packs: list[MicroBatch]) -> dict[str, list[float]]:
    """Seconds of each pack, by kind; the first pack warms up and is left out."""
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for pack in [packs[0], *packs]:
        for kind in KINDS:
            times[kind].append(seconds(lambda kind=kind, pack=pack: learn(models[kind], pack)))
    return {kind: measured[1:] for kind, measured in times.items()}


def answer(model: Any, num_tokens: int) -> None:
    """Write one answer to a prompt of 20 tokens."""
    request = Request(list(range(1000, 1020)), num_tokens)
    list(write(model, [request], stop_ids=(), sampling=GREEDY))


def seconds_per_written_token(model: Any) -> float:
    """What a token costs after the first, for which the prompt is read."""
    answer(model, 2)
    times = [(seconds(lambda: answer(model, 13)), seconds(lambda: answer(model, 1))) for _ in "123"]
    return statistics.median(long - short for long, short in times) / 12


def rates() -> dict[str, float]:
    """Products of the largest layer a second, both ways, as 10^9 multiplications and additions."""
    weight = torch.randint(-127, 128, (2 * FFN, HIDDEN), dtype=torch.int8)
    x = torch.randint(-127, 128, (PACK_TOKENS, HIDDEN), dtype=torch.int8)
    dy = torch.randint(-127, 128, (PACK_TOKENS, 2 * FFN), dtype=torch.int8)
    wide, wide_x, wide_dy = weight.bfloat16(), x.bfloat16(), dy.bfloat16()
    both: dict[str, Callable[[], object]] = {
        "bfloat16": lambda: (wide_x @ wide.T, wide_dy @ wide),
        "int8": lambda: (torch._int_mm(x, weight.T), torch._int_mm(dy, weight)),
    }
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(6):
        for kind in KINDS:
            times[kind].append(seconds(both[kind]))
    work = 2 * 2 * PACK_TOKENS * weight.numel() / 1e9
    return {kind: work / statistics.median(measured[1:]) for kind, measured in times.items()}


def measure(quick: bool) -> list[Figure]:
    """Measure both kinds in turn, on 4 layers and then on their first two."""
    torch.manual_seed(0)
    plain = slice_of(4)
    plain.set_attn_implementation("packed")
    rounded = copy.deepcopy(plain)
    quantise(rounded, torch.bfloat16)
    section = LoraSection(r=8, target_modules=("query_key_value",))
    models = {"bfloat16": adapter.attach(plain, section), "int8": adapter.attach(rounded, section)}
    packs = packs_of(3 if quick else 9)
    tokens = [pack.input_ids.numel() for pack in packs]
    peak = rates()
    learned, written = {}, {}  # seconds a token, by kind and layers
    for num_layers in (4, 2):
        for model in models.values():
            encoder = model.base_model.model.transformer.encoder
            encoder.layers = encoder.layers[:num_layers]
        for kind, times in in_turn(models, packs).items():
            learned[kind, num_layers] = statistics.median(
                taken / number for taken, number in zip(times, tokens, strict=True)
            )
            written[kind, num_layers] = seconds_per_written_token(models[kind])
    for found in (learned, written):
        for kind in KINDS:
            layer = (found[kind, 4] - found[kind, 2]) / 2
            found[kind, LAYERS] = found[kind, 4] + (LAYERS - 4) * layer
    floor = peak["int8"] / (2 * 2 * PRODUCTS_PER_LAYER * LAYERS / 1e9)
    figures = [Figure("int8 products", "", "GOP/s", peak["int8"], peak["bfloat16"], "bfloat16")]
    for point, found in (("int8 step", learned), ("int8 writing", written)):
        for num_layers in (2, 4, LAYERS):
            is_goal = num_layers == LAYERS and found is learned
            figures.append(
                Figure(
                    point,
                    f"{num_layers} layers" + ", extrapolated" * (num_layers == LAYERS),
                    "tokens/s",
                    1 / found["int8", num_layers],
                    1 / found["bfloat16", num_layers],
                    "our bfloat16",
                    floor=floor if is_goal else None,
                    goal=1.6 if is_goal else None,
                )
            )
    return figures


if __name__ == "__main__":
    run(measure, __doc__)
