"""Generation speed: many answers at once and a single one, next to transformers and a floor.

    python -m benchmarks.generation [--quick]

Two layers at the full width of ChatGLM3-6B, bfloat16, random weights. Such a model never ends an
answer, so every answer reaches its limit; the limits are sampled like the lengths of real answers
(log-normal, median 100 tokens, cut at 256; with --quick scaled down to at most 12). A prompt has
20 tokens. All methods run in turn; figures are medians. The floor of one row is the time to read
the weights once, at the rate at which this machine sums a large tensor in the same run.
"""

import random
import statistics
import time
from typing import Any

import torch

from benchmarks.checkpoint import config_of
from benchmarks.figures import Figure, run
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.use.generate import BATCH_SIZE, Request, Sampling, generate

PROMPT_TOKENS = 20
DRAWN = 2**22 - 3  # no multiple of a row, so that no two rows of a weight are alike
GREEDY = Sampling(temperature=0)


def slice_of(num_layers: int) -> Any:
    """The model with random weights: a few million numbers, repeated."""
    with torch.device("meta"):
        model: Any = ChatGLMForConditionalGeneration(config_of(num_layers))
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval().requires_grad_(False)
    drawn = torch.empty(DRAWN, dtype=torch.bfloat16).uniform_(-0.02, 0.02)
    for tensor in (*model.parameters(), *model.buffers()):
        for part in tensor.view(-1).split(DRAWN):
            part.copy_(drawn[: len(part)])
    return model


def requests_of(number: int, longest: int) -> list[Request]:
    draw = random.Random(0)
    return [
        Request(
            [draw.randrange(1000, 60000) for _ in range(PROMPT_TOKENS)],
            max(2, min(longest, round(draw.lognormvariate(4.6, 0.8) * longest / 256))),
        )
        for _ in range(number)
    ]


def rate(model: Any, requests: list[Request], num_rows: int) -> float:
    """Tokens/s of ours."""
    began = time.perf_counter()
    written = list(generate(model, requests, stop_ids=(), sampling=GREEDY, batch_size=num_rows))
    return sum(len(each.ids) for each in written) / (time.perf_counter() - began)


def peer_rate(model: Any, request: Request) -> float:
    """Tokens/s of transformers' `generate`, one row."""
    input_ids = torch.tensor([request.ids])
    began = time.perf_counter()
    written = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=request.max_new_tokens,
        min_new_tokens=request.max_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return (written.shape[1] - input_ids.shape[1]) / (time.perf_counter() - began)


def weights_per_second(model: Any) -> float:
    """How often all weights but the embedding could be read in a second."""
    embedding = model.get_input_embeddings().weight
    num_bytes = sum(p.nbytes for p in model.parameters()) - embedding.nbytes
    large = torch.ones(2**26, dtype=torch.float32)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        large.sum()
        times.append(time.perf_counter() - began)
    return large.nbytes / statistics.median(times) / num_bytes


def measure(quick: bool) -> list[Figure]:
    """Measure all ways in turn."""
    model = slice_of(2)
    longest = 12 if quick else 256
    many = requests_of(BATCH_SIZE if quick else 2 * BATCH_SIZE, longest)
    one = Request(many[0].ids, longest)
    short = Request(one.ids, 2)
    rate(model, [short], 1)  # the first products choose their kernels
    peer_rate(model, short)
    rates: dict[str, list[float]] = {"alone": [], "peer": [], "together": []}
    for _ in range(1 if quick else 2):
        rates["alone"].append(rate(model, [one], 1))
        rates["peer"].append(peer_rate(model, one))
        rates["together"].append(rate(model, many, BATCH_SIZE))
    alone, together = statistics.median(rates["alone"]), statistics.median(rates["together"])
    floor = weights_per_second(model)
    return [
        Figure(
            "generation", f"2 layers, {BATCH_SIZE} rows at once", "tokens/s", together, alone,
            "ours, one row", goal=3.0,
        ),
        Figure(
            "generation", "2 layers, one row", "tokens/s", alone,
            statistics.median(rates["peer"]), "transformers", floor=floor,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    run(measure, __doc__)
