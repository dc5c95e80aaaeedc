"""Proof that what was saved, streamed as chat does, answers as the trained model does.

    on disk     prompt -> answer, token by token with a key-value cache, and its scores
    in memory   prompt + answer -> scores of the same tokens, in one pass without a cache

Both must agree up to rounding, since a cache sums in another order.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.errors import TrainingError
from glmtune.methods import method
from glmtune.prove.answers import Prompt
from glmtune.template.base import Template
from glmtune.use.generate import Request, Sampling, generate_stepwise, make_cache

PROBE_TOKENS = 8  # of an answer that is streamed, and then scored in one pass
ALLOWED_ROUNDINGS = 2  # largest difference, in multiples of what rounding the input does


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between two computations of the same scores.

    Attributes:
        largest: the largest difference of two scores, as a share of the standard deviation
            (spread) of the scores of a token; NaN if a score is not finite.
        num_tokens: that were scored.
        num_same: tokens for which both computations have the same first choice. If they do not,
            the scores of the two choices were closer than twice the largest difference.
    """

    largest: float
    num_tokens: int
    num_same: int

    def __str__(self) -> str:
        return (
            f"{self.num_same} of {self.num_tokens} first choices are the same, and scores differ "
            f"by {percent(self.largest)} of their spread at most"
        )


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt, the answer that was streamed from disk, and its scores on disk and in memory.

    Attributes:
        prompt: its ids.
        answer: ids, generated one by one with a cache, greedily.
        streamed: the scores they were chosen by, float32, (answer, vocab).
        trained: scores by the model in memory, all in one pass.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    streamed: Tensor
    trained: Tensor


def percent(share: float) -> str:
    """Write a share as a percentage of about three digits."""
    return f"{100 * share:,.0f}%" if share >= 1 else f"{100 * share:.3g}%"


def probe(model: Any, folder: Path, template: Template, prompts: Sequence[Prompt]) -> list[Probe]:
    """Answer prompts with what is on disk, as chat does, and score the answers with the model.

    Args:
        model: that was trained; in evaluation mode afterwards.
        folder: where it was saved.
        template: defines the stop tokens.
        prompts: to answer.
    """
    model.eval()
    with method.as_saved(model, folder) as saved:
        streamed = [_stream(saved, template, prompt.ids) for prompt in prompts]
    return [
        Probe(prompt.ids, answer, scores, score_answer(model, prompt.ids, answer))
        for prompt, (answer, scores) in zip(prompts, streamed, strict=True)
    ]


def _stream(
    model: Any, template: Template, prompt: Sequence[int]
) -> tuple[tuple[int, ...], Tensor]:
    """Answer as a chat session does; gives ids, and the scores of each, (answer, vocab)."""
    scores: list[Tensor] = []
    hook = model.register_forward_hook(
        lambda _, __, output: scores.append(output.logits[0, -1].float())
    )
    try:
        for completion, _ in generate_stepwise(
            model,
            [Request(prompt, PROBE_TOKENS)],
            make_cache(model),
            stop_ids=template.stop_ids,
            sampling=Sampling(temperature=0),
        ):
            answer = completion.ids
    finally:
        hook.remove()
    return tuple(answer), torch.stack(scores)


@torch.no_grad()
def score_answer(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Score the tokens of an answer in one pass without a cache; float32, (answer, vocab)."""
    input_ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
    last = torch.arange(-len(answer), 0, device=model.device)  # torch copies the weight for a slice
    output = model(input_ids=input_ids, use_cache=False, logits_to_keep=last)
    return output.logits[0].float()  # type: ignore[no-any-return]


def compare(pairs: Sequence[tuple[Tensor, Tensor]]) -> Difference:
    """Measure how far scores are from the expected ones.

    Args:
        pairs: (found, expected), each (answer, vocab).
    """
    found, expected = (torch.cat(each) for each in zip(*pairs, strict=True))
    apart = (found - expected).abs().amax(-1) / expected.std(-1)  # (answer,)
    same = found.argmax(-1) == expected.argmax(-1)
    return Difference(apart.max().item(), len(same), int(same.sum()))


def check_streamed(model: Any, probes: Sequence[Probe], tolerance: float) -> str:
    """Prove that what was saved, streamed with a cache, answers as the trained model does.

    A model of many layers in int8 or bfloat16 may amplify the last bit of its input beyond the
    tolerance. Then this is measured, without a cache, and twice as much is allowed; a position
    that is off by one moves scores by more.

    Args:
        model: that was trained.
        probes: made with it.
        tolerance: a share of the spread of a token's scores.

    Returns:
        What was measured, as a sentence.

    Raises:
        TrainingError: the scores differ by more.
    """
    difference = compare([(each.streamed, each.trained) for each in probes])
    if difference.largest <= tolerance:
        return f"{difference} (tolerance {tolerance:.0%}: a cache sums in another order)"
    noise = rounding_noise(model, probes)
    measured = (
        f"{difference} (tolerance {tolerance:.0%}, or {ALLOWED_ROUNDINGS} times the "
        f"{percent(noise)} that rounding its input once more does to this model)"
    )
    if difference.largest <= ALLOWED_ROUNDINGS * noise:
        return measured
    raise TrainingError(
        f"{measured}. Chat would not answer as the trained model does; the key-value cache of this "
        "model, or what was saved, is at fault. Report this."
    )


def rounding_noise(model: Any, probes: Sequence[Probe]) -> float:
    """Measure how far scores move when the embedded input is rounded once more."""
    plain = [score_answer(model, each.prompt, each.answer) for each in probes]
    with rounded_input(model):
        rounded = [score_answer(model, each.prompt, each.answer) for each in probes]
    return compare(list(zip(rounded, plain, strict=True))).largest


@contextlib.contextmanager
def rounded_input(model: Any) -> Iterator[None]:
    """Temporarily move each number of the embedded input up or down by one rounding.

    The rounding is that of the weights' dtype. On a CPU without bfloat16 arithmetic, activations
    are float32 while an answer is scored, and are rounded to the weights' bfloat16 while it is
    streamed (`kernels.half_precision.WideLinear`).
    """
    embeddings = model.get_input_embeddings()
    eps = torch.finfo(embeddings.weight.dtype).eps
    generator = torch.Generator().manual_seed(0)

    def move(_: Any, __: Any, embedded: Tensor) -> Tensor:
        sign = torch.randint(0, 2, embedded.shape, generator=generator).to(embedded) * 2 - 1
        return embedded * (1 + eps * sign)

    hook = embeddings.register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()
