"""Rows that a GPU samples by itself are sampled as transformers' processors say."""

from typing import Any

import pytest
import torch

from glmtune.use.device_sampling import (
    BLOCK,
    RowSampler,
    SampledRow,
    UniformNumbers,
    sorted_nucleus,
)
from glmtune.use.generate import Request, Sampling, Slot
from glmtune.use.host_sampling import sample

VOCAB = 50
CPU = torch.device("cpu")
SETTINGS = [
    Sampling(temperature=1.0, top_p=1.0),
    Sampling(temperature=0.7, top_p=0.8),
    Sampling(temperature=1.5, top_p=0.95, top_k=10),
    Sampling(temperature=1.0, top_p=1.0, top_k=1),
    Sampling(temperature=0.5, top_p=0.01),
]


def scores_of(rows: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampling", SETTINGS)
def test_probabilities_are_those_of_the_processors(sampling: Sampling) -> None:
    scores = scores_of(4)
    expected = sampling.processors()(torch.empty(0, dtype=torch.long), scores).softmax(-1)  # type: ignore[arg-type]

    limits = [torch.full((4,), float(value)) for value in (sampling.temperature, sampling.top_p)]
    top_k = torch.full((4,), float(sampling.top_k or torch.inf))
    order, cumulative, num_kept = sorted_nucleus(scores, *limits, top_k)

    found = torch.zeros(4, VOCAB).scatter_(1, order, cumulative.diff(prepend=torch.zeros(4, 1)))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert num_kept[:, 0].tolist() == (expected > 0).sum(-1).tolist()


class Given:
    """Uniform numbers that a test chooses."""

    def __init__(self, value: float) -> None:
        self.value = value

    def after(self, index: int) -> torch.Tensor:
        return torch.full((BLOCK,), self.value)


def test_a_token_is_drawn_as_often_as_it_is_likely() -> None:
    scores, number = scores_of(1), 4000
    sampling = Sampling(temperature=1.0, top_p=0.9)
    expected = sampling.processors()(torch.empty(0, dtype=torch.long), scores).softmax(-1)[0]  # type: ignore[arg-type]
    rows: Any = [
        SampledRow(sampling, Given((index + 0.5) / number), [], [])
        for index in range(number)  # type: ignore[arg-type]
    ]

    tokens = RowSampler(rows, CPU).sample(scores.expand(number, -1))

    share = torch.bincount(tokens, minlength=VOCAB) / number
    torch.testing.assert_close(share, expected, atol=2 / number, rtol=0)


def test_the_last_number_before_one_draws_a_token_that_is_kept() -> None:
    sampling = Sampling(temperature=1.0, top_p=0.5)
    row: Any = SampledRow(sampling, Given(1 - 2**-24), [], [])  # type: ignore[arg-type]
    scores = scores_of(20)
    order, _, num_kept = sorted_nucleus(
        scores, *(torch.full((20,), v) for v in (1.0, 0.5, torch.inf))
    )

    tokens = RowSampler([row] * 20, CPU).sample(scores)

    assert tokens.tolist() == order.gather(1, num_kept - 1)[:, 0].tolist()


def test_penalties_count_the_tokens_that_are_chosen() -> None:
    """Step by step as transformers' processors on the host, for a greedy row."""
    samplings = [
        Sampling(temperature=0, repetition_penalty=1.5),
        Sampling(temperature=0, presence_penalty=1.0, frequency_penalty=0.7),
        Sampling(temperature=0),
    ]
    slots = [Slot(Request([3, 4, 5], 9), sampling, ()) for sampling in samplings]
    sampler = RowSampler(
        [SampledRow(s.sampling, s.uniform, s.ids, s.completion) for s in slots], CPU
    )
    chosen = []
    for step in range(6):
        scores = scores_of(1, seed=step % 2).expand(3, -1)
        expected = sample(scores, slots)
        assert sampler.sample(scores).tolist() == expected
        chosen.append(expected)
        for slot, token in zip(slots, expected, strict=True):
            slot.ids.append(token)
            slot.completion.append(token)

    assert len({token for _, token, _ in chosen}) > 2  # of the two that are likeliest


def test_a_row_draws_the_same_numbers_whatever_stands_beside_it_and_whenever_it_pauses() -> None:
    sampling, scores = Sampling(temperature=1.2, top_p=0.9, seed=5), scores_of(2 * BLOCK)

    def drawn(pauses: set[int], beside: int) -> list[int]:
        slot = Slot(Request([1], 9, sampling.generator(CPU, 1)), sampling, ())
        rows = [SampledRow(sampling, UniformNumbers(sampling.generator(CPU, 9)), [], [])] * beside
        sampler = None
        for index in range(BLOCK + 20):
            if sampler is None or index in pauses or index % BLOCK == 0:
                own = SampledRow(sampling, slot.uniform, slot.ids, slot.completion)
                sampler = RowSampler([*rows, own], CPU)
            token = int(sampler.sample(scores[index].expand(beside + 1, -1))[-1])
            slot.completion.append(token)
        return slot.completion

    assert drawn(set(), 0) == drawn({3, 100, BLOCK - 1}, 2)
