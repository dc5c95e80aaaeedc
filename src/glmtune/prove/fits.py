"""Do answers fit their questions, and end where one should? Asked of the base, before training.

Rows can be wrong in ways that their texts do not show. The base knows the language, so it finds an
answer likelier after its own question than after another row's, and a stop token likelier at the
end of an answer than within it:

    own       [gMASK]sop<|user|> 北京在哪里 <|assistant|> 北京在华北。 </s>       1.9 nats per token
    another   [gMASK]sop<|user|> 水的沸点  <|assistant|> 北京在华北。 </s>       2.6
    gain      0.7; about 0 in all rows where answers were shifted, shuffled or made constant

Not every base can judge: one with random weights finds nothing likelier than anything else. So it
is asked about the general rows of the package first, whose answers are known to fit. Where it does
not see that, nothing is said of the data.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glmtune.data.batches import Examples, pack_examples
from glmtune.data.packing import group_rows
from glmtune.errors import TrainingError
from glmtune.objective.next_token import NextToken
from glmtune.template.base import IGNORE, Example

FEWEST, MOST = 8, 24  # rows of a sample
COST = 0.02  # of an epoch, in which a token costs three forward passes
MOST_TOKENS = 512  # of a sampled row
LEAST_ANSWER = 4  # tokens, with the stop token
MAX_TOKENS = 2048  # of one forward pass
SURE = 3.0  # standard errors by which a mean gain is above zero, for a base that can judge
LEAST_GAIN = 0.05  # nats per token, for the same
DOUBTFUL = 2.0  # standard errors; a sample below it shows no gain
SHARP = 2.0  # nats by which the stop token is likelier at the end than within an answer
KNOWS_ENDS, DOUBTFUL_ENDS = 0.8, 0.4  # share of answers with such an end


@dataclass(frozen=True, slots=True)
class Scored:
    """What the base finds of one answer.

    Attributes:
        row: its index.
        loss: after its own question, in nats per token.
        gain: by which another row's question makes it dearer.
        sharpness: of its end: how much likelier a stop token is there than within the answer.
    """

    row: int
    loss: float
    gain: float
    sharpness: float


def sample_rows(examples: Examples, rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Choose rows by a fixed seed, as many as cost no more than `COST` of an epoch.

    Args:
        examples: encoded rows.
        rows: which of them are learned.
        lengths: tokens of every example, by index.

    Returns:
        Their indices; none where fewer than `FEWEST` would do.
    """
    budget = COST * 3 * sum(lengths[row] for row in rows) / 2  # each is scored twice
    chosen: list[int] = []
    for row in random.Random(0).sample(list(rows), min(len(rows), 10 * MOST)):
        if lengths[row] <= MOST_TOKENS and len(chosen) < MOST and lengths[row] <= budget:
            prompt, answer = split(examples[row])
            if prompt and len(answer) >= LEAST_ANSWER:
                budget -= lengths[row]
                chosen.append(row)
    return chosen if len(chosen) >= FEWEST else []


def split(example: Example) -> tuple[list[int], list[int]]:
    """Return the ids before the first answer, and those of the answer; both empty without one."""
    labels = example.labels
    start = next((i for i, label in enumerate(labels) if label != IGNORE), None)
    if start is None:
        return [], []
    end = next((i for i in range(start, len(labels)) if labels[i] == IGNORE), len(labels))
    return example.input_ids[:start], example.input_ids[start:end]


@torch.no_grad()
def score_fit(
    model: Any, examples: Examples, rows: Sequence[int], stop_ids: Sequence[int]
) -> list[Scored]:
    """Score each answer after its own question, and after that of another row.

    Args:
        model: the base; its training mode is restored afterwards.
        examples: encoded rows.
        rows: which of them, as `sample_rows` chose them.
        stop_ids: of the template.

    Raises:
        TrainingError: a loss is not finite.
    """
    pairs = [split(examples[row]) for row in rows]
    # The other question has another answer, or nothing could be said of it.
    others = [_other(pairs, index) for index in range(len(pairs))]
    was_training = model.training
    model.eval()
    try:
        own = _score(model, [(prompt, answer) for prompt, answer in pairs], stop_ids)
        other = _score(
            model,
            [(pairs[at][0], answer) for (_, answer), at in zip(pairs, others, strict=True)],
            stop_ids,
        )
    finally:
        model.train(was_training)
    scored = []
    for index, (losses, stops) in enumerate(own):
        loss = losses.mean().item()
        if not torch.isfinite(losses).all():
            raise TrainingError("the loss of the base is not finite")
        gain = other[index][0].mean().item() - loss if others[index] != index else 0.0
        sharpness = (stops[-1] - stops[:-1].mean()).item()
        scored.append(Scored(rows[index], loss, gain, sharpness))
    return scored


def _other(pairs: Sequence[tuple[list[int], list[int]]], index: int) -> int:
    """Return the next row with another question and another answer; the row itself if none has."""
    prompt, answer = pairs[index]
    after = (at % len(pairs) for at in range(index + 1, index + len(pairs)))
    return next((at for at in after if pairs[at][0] != prompt and pairs[at][1] != answer), index)


def _score(
    model: Any, pairs: Sequence[tuple[list[int], list[int]]], stop_ids: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """Return for each answer the loss of its tokens, and the log probability to stop at each."""
    examples = [Example(p + a, [IGNORE] * len(p) + a) for p, a in pairs]
    lengths = [len(example.input_ids) for example in examples]
    stops, losses = list(stop_ids), list[tuple[Tensor, Tensor]]()

    def note(logits: Tensor, targets: Tensor) -> Tensor:
        scores = logits.float().log_softmax(-1)
        losses.append(
            (F.nll_loss(scores, targets, reduction="none"), scores[:, stops].logsumexp(-1))
        )
        return losses[-1][0].sum()

    order: list[int] = []
    for rows in group_rows(range(len(examples)), lengths, MAX_TOKENS):
        NextToken(note).loss(model, pack_examples(examples, rows).to(model.device))
        order += rows
    each, at_end = (torch.cat([part[i].cpu() for part in losses]) for i in range(2))
    scored, start = dict[int, tuple[Tensor, Tensor]](), 0
    for row in order:
        end = start + len(pairs[row][1])
        scored[row], start = (each[start:end], at_end[start:end]), end
    return [scored[row] for row in range(len(pairs))]


# --- What it shows ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fit:
    """What the base says of a sample of rows.

    Attributes:
        scored: the sample.
        can_judge_questions, can_judge_ends: whether it judged the general rows right.
    """

    scored: Sequence[Scored]
    can_judge_questions: bool
    can_judge_ends: bool

    @property
    def doubts(self) -> list[tuple[str, str]]:
        """The checks that found something, each with a sentence that says cause and remedy."""
        found, number = [], len(self.scored)
        compared = [each.gain for each in self.scored if each.gain != 0.0]
        if self.can_judge_questions and len(compared) >= FEWEST and surety(compared) < DOUBTFUL:
            gain = statistics.fmean(compared)
            found.append((
                "misfit",
                f"the base finds {len(compared)} sampled answers no likelier after their own "
                f"questions than after others ({gain:+.2f} nats per token, where general rows "
                "gain clearly). Answers that were shifted, shuffled or filled with one text look "
                "like this: compare some rows with their source, as `glmtune inspect` shows them",
            ))  # fmt: skip
        ends = [each for each in self.scored if each.sharpness > SHARP]
        if self.can_judge_ends and len(ends) < DOUBTFUL_ENDS * number:
            found.append((
                "no-end",
                f"the base expects an end at the end of {len(ends)} of {number} sampled answers "
                "only. Answers that were cut look like this: compare them with their source, and "
                "look for a limit of characters or tokens on the way",
            ))  # fmt: skip
        return found

    def describe(self) -> str:
        """Say in one line what was seen, and of which kind of base."""
        gains = [each.gain for each in self.scored]
        ends = sum(each.sharpness > SHARP for each in self.scored)
        line = (
            f"{len(self.scored)} sampled answers gain {statistics.fmean(gains):.2f} nats per token "
            f"from their own questions, and {ends} of them end where the base expects an end"
        )
        blind = [
            what
            for what, can in (
                ("questions", self.can_judge_questions), ("ends", self.can_judge_ends)
            )
            if not can
        ]  # fmt: skip
        return line + (f"; of {' and '.join(blind)} this base cannot tell" if blind else "")


def surety(gains: Sequence[float]) -> float:
    """Return a mean gain in standard errors of the mean."""
    spread = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return statistics.fmean(gains) / max(spread, 1e-6)


def judge(scored: Sequence[Scored], known: Sequence[Scored]) -> Fit:
    """Judge a sample by a base that first judged rows that are known to be right.

    Args:
        scored: of the data.
        known: of general rows.
    """
    gains = [each.gain for each in known]
    can_judge = surety(gains) >= SURE and statistics.fmean(gains) >= LEAST_GAIN
    ends = sum(each.sharpness > SHARP for each in known)
    return Fit(scored, can_judge, ends >= KNOWS_ENDS * len(known))
