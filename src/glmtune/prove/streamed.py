r"""What a finished run has to show of what it trained, and of its prompts.

What was trained is the same in memory, on disk, streamed and merged. Answers end by themselves.
Chat asks as training did.

Each proof has a verdict and one sentence; a proof that nobody ran is "not run", never passed.

Prompts come from encoded rows, which are ids alone. The ids before the first learned token
are a prompt: an answer is learned from the very token that the model writes first, so what
stands before it is what `Template.prompt_ids` gives for the turns before that answer.

    ids       [gMASK] sop <|user|> ▁ \n ▁你 好 <|assistant|> ▁ \n ▁很 好 </s>
    labels       -     -     -     - -   -  -       -        ▁ \n ▁很 好 </s>
              ------------------ prompt ------------------   --- expected ---
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
from glmtune.use.generate import Request, Sampling, draw, make_cache

PROBE_TOKENS = 8  # of an answer that is streamed, and then scored in one pass
MOVED = 2  # times what one rounding of its input does to a model, streamed scores may differ


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two computations of the same scores are apart.

    Attributes:
        largest: the largest difference of two scores, as a share of how far the scores of a
            token spread (their standard deviation); NaN if a score is not finite.
        num_tokens: how many were scored.
        num_same: at how many of them both put the same token first. Where they do not, the two
            tokens were closer than twice the largest difference.
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
    """A prompt, the answer that was streamed from disk, and what the trained model thinks of it.

    Attributes:
        prompt: its ids.
        answer: ids, drawn one by one with a cache, greedily.
        streamed: the scores they were drawn from, float32, (answer, vocab).
        trained: of what is in memory, all in one pass.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    streamed: Tensor
    trained: Tensor


def percent(share: float) -> str:
    return f"{100 * share:,.0f}%" if share >= 1 else f"{100 * share:.3g}%"


def probe(model: Any, folder: Path, template: Template, prompts: Sequence[Prompt]) -> list[Probe]:
    """Let what is on disk answer prompts, as chat does, and what is in memory score that.

    Args:
        model: what was trained; in evaluation mode afterwards.
        folder: where it was saved.
        template: says what ends an answer.
        prompts: what to ask.
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
    """Draw an answer as a chat session does; its ids, and the scores of each, (answer, vocab)."""
    scores: list[Tensor] = []
    hook = model.register_forward_hook(
        lambda _, __, output: scores.append(output.logits[0, -1].float())
    )
    try:
        for written, _ in draw(
            model,
            [Request(prompt, PROBE_TOKENS)],
            make_cache(model),
            stop_ids=template.stop_ids,
            sampling=Sampling(temperature=0),
        ):
            answer = written.ids
    finally:
        hook.remove()
    return tuple(answer), torch.stack(scores)


@torch.no_grad()
def score_answer(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Score the tokens of an answer in one pass without a cache; float32, (answer, vocab)."""
    input_ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
    last = torch.arange(-len(answer), 0, device=model.device)  # of a slice torch copies the weight
    output = model(input_ids=input_ids, use_cache=False, logits_to_keep=last)
    return output.logits[0].float()  # type: ignore[no-any-return]


def compare(pairs: Sequence[tuple[Tensor, Tensor]]) -> Difference:
    """Say how far scores are from those that they should be.

    Args:
        pairs: (found, expected), each (answer, vocab).
    """
    found, expected = (torch.cat(each) for each in zip(*pairs, strict=True))
    apart = (found - expected).abs().amax(-1) / expected.std(-1)  # (answer,)
    same = found.argmax(-1) == expected.argmax(-1)
    return Difference(apart.max().item(), len(same), int(same.sum()))


def check_streamed(model: Any, probes: Sequence[Probe], tolerance: float) -> str:
    """Prove that what was saved, streamed with a cache, says what the trained model would.

    A model of many layers in int8 or bfloat16 may turn the last bit of its input into more than
    the tolerance. Then it is measured how much, without a cache, and twice that is let pass; a
    position that is off by one moves scores by more.

    Args:
        model: what was trained.
        probes: made with it.
        tolerance: a share of the spread of a token's scores.

    Raises:
        TrainingError: the scores differ by more.
    """
    difference = compare([(each.streamed, each.trained) for each in probes])
    told = f"{difference} (tolerance {tolerance:.0%}: a cache sums in another order)"
    if difference.largest <= tolerance:
        return told
    with _moved_input(model):
        moved = [(score_answer(model, each.prompt, each.answer), each.trained) for each in probes]
    noise = compare(moved).largest
    told = f"{difference} (tolerance {tolerance:.0%}, or {MOVED} times the {percent(noise)} that "
    told += "rounding its input once more does to this model)"
    if difference.largest <= MOVED * noise:
        return told
    raise TrainingError(
        f"{told}. Chat would not answer as the trained model does; the key-value cache of this "
        "model, or what was saved, is at fault. Report this."
    )


@contextlib.contextmanager
def _moved_input(model: Any) -> Iterator[None]:
    """Move each number of the embedded input up or down by one rounding, for a while."""
    chance = torch.Generator().manual_seed(0)

    def move(_: Any, __: Any, embedded: Tensor) -> Tensor:
        sign = torch.randint(0, 2, embedded.shape, generator=chance).to(embedded) * 2 - 1
        return embedded * (1 + torch.finfo(embedded.dtype).eps * sign)

    hook = model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()
