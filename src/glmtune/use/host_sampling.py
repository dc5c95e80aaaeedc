"""Sample the next token of each sequence on the host, by transformers' processors.

This is the path of a CPU, and on a GPU that of sequences with a constraint, or whose scores are
asked for; the others are sampled on the device (`glmtune.use.device_sampling`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from glmtune.use.generate import Slot


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How likely a token was, by the model's own scores.

    Attributes:
        token_id: of the token.
        logprob: the natural logarithm of its probability, before temperature and penalties.
        top: the most likely tokens in its place, with theirs.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def sample(scores: Tensor, slots: Sequence["Slot"]) -> list[int]:
    """Sample the next token of every slot from (slots, vocab)."""
    if all(s.sampling.is_plain_greedy and not s.constraint and s.num_top is None for s in slots):
        likeliest: list[int] = scores.argmax(-1).tolist()
        return likeliest
    tokens = [-1] * len(slots)
    alike: dict[tuple[float, float, int], list[int]] = {}
    for index, slot in enumerate(slots):
        if slot.is_plainly_sampled:
            own = slot.sampling
            alike.setdefault((own.temperature, own.top_p, own.top_k), []).append(index)
        elif not slot.failure:
            tokens[index] = _sample_one(scores[index], slot)
    no_ids = torch.empty(0, dtype=torch.long, device=scores.device)  # no warper reads them
    for members in alike.values():
        processed = slots[members[0]].processors(no_ids, scores[members])  # type: ignore[arg-type]
        for index, probabilities in zip(members, processed.softmax(-1), strict=True):
            generator = slots[index].request.generator
            tokens[index] = int(torch.multinomial(probabilities, 1, generator=generator))
    return tokens


def _sample_one(scores: Tensor, slot: "Slot") -> int:
    """Sample the next token of a slot from (vocab,)."""
    sampling, raw = slot.sampling, scores
    if sampling.presence_penalty or sampling.frequency_penalty:
        used = torch.tensor(slot.completion, dtype=torch.long, device=scores.device)
        counts = torch.bincount(used, minlength=scores.numel())
        scores = scores - sampling.frequency_penalty * counts
        scores = scores - sampling.presence_penalty * (counts > 0)
    if slot.constraint is not None:
        scores = slot.constraint.restrict(slot.completion, scores)
    ids = torch.tensor([slot.ids], device=scores.device)  # (1, seq)
    processed = slot.processors(ids, scores[None])  # type: ignore[arg-type]  # typed as LongTensor
    if sampling.temperature == 0:
        token = int(processed.argmax(-1))
    else:
        generator = slot.request.generator
        token = int(torch.multinomial(processed.softmax(-1), 1, generator=generator))
    if slot.num_top is not None:
        logprobs = raw.log_softmax(-1)
        values, top = logprobs.topk(slot.num_top) if slot.num_top else (raw[:0], raw[:0])
        pairs = tuple(zip(top.long().tolist(), values.tolist(), strict=True))
        slot.scores.append(TokenScore(token, float(logprobs[token]), pairs))
    return token


def explain_not_finite(slot: "Slot", dtype: torch.dtype) -> str:
    """Say why a sequence cannot be continued, and what may help."""
    return (
        f"the model's scores for token {len(slot.completion) + 1} of the answer "
        f"are not finite, in {dtype}. float16 may have overflowed: try "
        "--dtype bfloat16. Otherwise the weights, or the adapter's, are damaged."
    )
