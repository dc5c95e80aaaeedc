"""Sample the next token of many sequences on the device, without waiting for it.

transformers' processors and `torch.multinomial` handle sequences one by one, and each of them waits
for the device. Here every sequence is a row with settings of its own:

    scores  ->  penalties  ->  / temperature  ->  sorted  ->  top_k, top_p  ->  token

A token is chosen by one uniform number u of its sequence: it is the first, from the most likely on,
at which the cumulative probability exceeds u. Number i of a sequence is for its token i, and comes
from its own generator, so that it does not depend on who else is in the batch, nor on how often
the sequence has left it. The numbers are not those that `torch.multinomial` draws from the same
generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from glmtune.use.generate import Sampling

BLOCK = 256  # uniform numbers that are drawn at a time


class UniformNumbers:
    """Number i of a sequence, drawn from its generator in blocks.

    Args:
        generator: of the sequence; None is that of torch.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator
        self._drawn = torch.empty(0)

    def after(self, index: int) -> Tensor:
        """Return `BLOCK` numbers from one on, float32, on the CPU."""
        generator = self._generator
        device = "cpu" if generator is None else generator.device
        while len(self._drawn) < index + BLOCK:
            block = torch.rand(BLOCK, generator=generator, device=device)
            self._drawn = torch.cat((self._drawn, block.cpu()))
        return self._drawn[index : index + BLOCK]


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A sequence that is about to be continued.

    Attributes:
        settings: how it is sampled.
        uniform: its uniform numbers.
        ids: prompt and completion so far.
        completion: the tokens so far.
    """

    settings: "Sampling"
    uniform: UniformNumbers
    ids: Sequence[int]
    completion: Sequence[int]


class RowSampler:
    """Samples up to `BLOCK` tokens of each of some sequences, which stay the same.

    Args:
        rows: the sequences.
        device: of the scores.
    """

    def __init__(self, rows: Sequence[SampledRow], device: torch.device) -> None:
        own = [row.settings for row in rows]
        is_sampled = [each.temperature > 0 for each in own]
        self._samples = any(is_sampled)
        if self._samples:
            limits = [
                [each.temperature or 1.0, each.top_p, each.top_k or torch.inf] for each in own
            ]
            self._limits = torch.tensor(limits).to(device)  # (rows, 3)
            self._is_sampled = torch.tensor(is_sampled).to(device)
            none = torch.zeros(BLOCK)
            numbers = [
                row.uniform.after(len(row.completion)) if sampled else none
                for row, sampled in zip(rows, is_sampled, strict=True)
            ]
            self._uniform = torch.stack(numbers, dim=1).to(device)  # (BLOCK, rows)
        self._num_sampled = 0
        penalties = [
            [each.repetition_penalty, each.presence_penalty, each.frequency_penalty] for each in own
        ]
        self._penalizes = any(each != [1, 0, 0] for each in penalties)
        if self._penalizes:
            self._penalties = torch.tensor(penalties).to(device)  # (rows, 3)
            self._ids = [[*row.ids] for row in rows]
            self._completions = [[*row.completion] for row in rows]
        self._counts: Tensor | None = None

    @property
    def is_plain_greedy(self) -> bool:
        """Whether every row takes the likeliest token, as the model scores it."""
        return not (self._samples or self._penalizes)

    def sample(self, scores: Tensor) -> Tensor:
        """Choose the next tokens by (rows, vocab), float32: int64, (rows,)."""
        if self._penalizes:
            scores = self._penalize(scores)
        tokens = scores.argmax(-1)
        if self._samples:
            temperature, top_p, top_k = self._limits.unbind(1)
            order, cumulative, num_kept = sorted_nucleus(scores, temperature, top_p, top_k)
            uniform = self._uniform[self._num_sampled][:, None]
            index = torch.searchsorted(cumulative, uniform, right=True)  # the first above it
            drawn = order.gather(1, torch.minimum(index, num_kept - 1))[:, 0]
            tokens = torch.where(self._is_sampled, drawn, tokens)
        self._num_sampled += 1
        if self._counts is not None:
            self._count(tokens)
        return tokens

    def _penalize(self, scores: Tensor) -> Tensor:
        """Lower the scores of tokens that a sequence has already, as transformers does."""
        if self._counts is None:
            vocab = scores.size(1)
            self._counts = _counts(self._completions, vocab, scores.device)
            self._has_token = _counts(self._ids, vocab, scores.device) > 0
        repetition, presence, frequency = self._penalties[:, :, None].unbind(1)  # (rows, 1)
        scores = scores - frequency * self._counts
        scores = scores - presence * (self._counts > 0)
        repeated = torch.where(scores < 0, scores * repetition, scores / repetition)
        return torch.where(self._has_token, repeated, scores)

    def _count(self, tokens: Tensor) -> None:
        assert self._counts is not None
        each = tokens[:, None]
        self._counts.scatter_add_(1, each, torch.ones_like(each, dtype=self._counts.dtype))
        self._has_token.scatter_(1, each, True)


def _counts(ids: Sequence[Sequence[int]], vocab: int, device: torch.device) -> Tensor:
    """Count the tokens of each sequence: float32, (sequences, vocab)."""
    row = torch.arange(len(ids)).repeat_interleave(torch.tensor([len(each) for each in ids]))
    token = torch.tensor([token for each in ids for token in each], dtype=torch.long)
    index = (row * vocab + token).to(device)
    counts = torch.zeros(len(ids) * vocab, device=device)
    return counts.index_add_(0, index, torch.ones(len(index), device=device)).view(-1, vocab)


def sorted_nucleus(
    scores: Tensor, temperature: Tensor, top_p: Tensor, top_k: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the most likely tokens of each sequence.

    They are the `top_k` most likely ones, and of these as few as together have the probability
    `top_p` among them.

    Args:
        scores: float32, (rows, vocab).
        temperature, top_p, top_k: (rows,); a `top_k` of infinity keeps all.

    Returns:
        The tokens from the most likely on and the cumulative probability of those that are kept,
        each (rows, vocab), and how many those are, (rows, 1).
    """
    ordered, order = (scores / temperature[:, None]).sort(-1, descending=True)
    rank = torch.arange(scores.size(1), device=scores.device)
    is_kept = rank < top_k[:, None]
    probability = ordered.masked_fill(~is_kept, -torch.inf).softmax(-1)
    before = probability.cumsum(-1) - probability
    is_kept &= (before < top_p[:, None]) | (top_p[:, None] >= 1) | (rank == 0)
    cumulative = torch.where(is_kept, probability, 0).cumsum(-1)
    return order, cumulative / cumulative[:, -1:], is_kept.sum(-1, keepdim=True)
