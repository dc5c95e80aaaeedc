"""What tuning costs elsewhere: the loss on a few general rows, before and after.

A model that learns one task by heart may lose what it could do before, and no curve of that
task shows it. `general_rows.json` holds 12 questions in Chinese and 12 in English, of many
kinds, with short answers. They were written for this purpose, are under the project's licence,
and are never learned. A base that hardly knows such rows, as a small one, has little to lose in
them: `checks.general_rows` names others.

    before   1.31 nats per token, the base as it was loaded
    after    1.44 nats per token, with the adapter that is published
    rise     0.13, which is to be below checks.forgetting
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from glmtune.conversation import Conversation
from glmtune.data.formats import FORMATS, convert
from glmtune.data.rows import Row
from glmtune.objective.held_out import held_out_loss
from glmtune.prove.proof import FORGETS, Proof
from glmtune.template.base import Example

METRIC = "general_loss"
_MAX_TOKENS = 2048  # that go through the model together


@cache
def general_conversations() -> tuple[Conversation, ...]:
    """Read the rows that come with the package."""
    name = "general_rows.json"
    rows = json.loads((files("glmtune.prove") / name).read_text(encoding="utf-8"))
    return tuple(
        convert(Row(row, name, number), FORMATS["alpaca"])
        for number, row in enumerate(rows, start=1)
    )


def general_loss(model: Any, examples: Sequence[Example], device: torch.device) -> float:
    """Give the loss on general rows, in nats per learned token.

    Args:
        model: a causal language model.
        examples: the rows, encoded.
        device: where the model is.

    Raises:
        TrainingError: it is not finite.
    """
    total, count = held_out_loss(
        model,
        examples,
        range(len(examples)),
        max_tokens=_MAX_TOKENS,
        device=device,
        lengths=[len(example.input_ids) for example in examples],
    )
    return total / count


def check_forgetting(
    before: float, after: float, limit: float, *, num_rows: int, vocab_size: int
) -> Proof:
    """Judge how far the loss on general rows has risen.

    Args:
        before, after: in nats per token.
        limit: of the rise.
        num_rows: their number.
        vocab_size: guessing among so many tokens costs its logarithm.
    """
    told = f"{before:.3f} nats per token before, {after:.3f} after, on {num_rows:,} general rows"
    if after - before <= limit:
        return Proof(FORGETS, "passed", told)
    if before >= math.log(vocab_size):
        guess = f"guessing costs {math.log(vocab_size):.3f}, so the base had nothing to forget"
        return Proof(FORGETS, "not run", f"{told}; {guess}")
    return Proof(
        FORGETS,
        "failed",
        f"{told}: it rose by more than {limit:g}. Lower training.learning_rate or the number of "
        "epochs, or mix general rows in: data.replay={path: general.jsonl, ratio: 0.1}.",
    )
