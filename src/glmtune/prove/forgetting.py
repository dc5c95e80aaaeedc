"""Proof that tuning did not cost general abilities: the loss on general rows, before and after.

A model that memorizes one task may lose other abilities, which the loss curve of that task does not
show (catastrophic forgetting). `general_rows.json` holds questions of many kinds with short
answers, half in Chinese and half in English. They were written for this purpose, are under the
project's license, and are never trained on. A small base that hardly knows such answers has little
to forget: `checks.general_rows` names other rows.

    before   1.31 nats per token, the base as it was loaded
    after    1.44 nats per token, with the adapter that is published
    rise     0.13, which must not exceed checks.forgetting
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
_MAX_TOKENS = 2048  # in one forward pass


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
    """Compute the loss on general rows, in nats per learned token.

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
    """Return the verdict on how far the loss on general rows has risen.

    Args:
        before, after: in nats per token.
        limit: of the rise.
        num_rows: how many general rows there are.
        vocab_size: its logarithm is the loss of guessing.
    """
    measured = (
        f"{before:.3f} nats per token before, {after:.3f} after, on {num_rows:,} general rows"
    )
    if after - before <= limit:
        return Proof(FORGETS, "passed", measured)
    if before >= math.log(vocab_size):
        guess = f"guessing costs {math.log(vocab_size):.3f}, so the base had nothing to forget"
        return Proof(FORGETS, "not run", f"{measured}; {guess}")
    return Proof(
        FORGETS,
        "failed",
        f"{measured}: it rose by more than {limit:g}. Lower training.learning_rate or the number "
        "of epochs, or mix general rows in: data.replay={path: general.jsonl, ratio: 0.1}.",
    )
