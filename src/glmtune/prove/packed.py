"""Proof that training scores a row as answering does, before the first step.

    training     a few rows in one pack, by the run's own micro-batch and objective
    answering    each row alone, in a plain forward pass: its own positions, nothing before it

Rows of a pack that see each other, or positions that do not start again, teach something that no
prompt will ever show. The loss curve looks as usual.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glmtune.data.batches import MicroBatch
from glmtune.errors import TrainingError
from glmtune.objective.next_token import NextToken
from glmtune.prove.proof import PACKED, Proof
from glmtune.prove.streamed import percent, rounded_input
from glmtune.template.base import IGNORE, Example

TOLERANCE = 0.01  # of the loss: sums in another order
SMALLEST_LOSS = 0.1  # nats of all tokens, or a share of it would be one of rounding
ALLOWED_ROUNDINGS = 4  # largest difference, in multiples of what rounding the input once more does


@torch.no_grad()
def check_packed(model: Any, packed: MicroBatch, examples: Sequence[Example]) -> Proof:
    """Compare the loss of each token in a pack with that in its row alone, dropout off.

    Args:
        model: about to be trained; its training mode is restored afterwards.
        packed: the rows as training sees them, on the model's device.
        examples: the same rows in the same order, encoded.

    Returns:
        The proof; it is not run where the base itself gives no finite loss, since the first step
        names the module at fault.

    Raises:
        TrainingError: the losses differ by more than rounding.
    """
    was_training = model.training
    model.eval()
    try:
        together, alone = _in_a_pack(model, packed), _alone(model, examples)
        apart = _share(together, alone)
        allowed = TOLERANCE
        if not apart <= allowed:
            with rounded_input(model):
                allowed = max(allowed, ALLOWED_ROUNDINGS * _share(_alone(model, examples), alone))
    finally:
        model.train(was_training)
    if not alone.isfinite().all():
        return Proof(PACKED, "not run", "the loss of the base is not finite")
    measured = (
        f"{len(alone)} tokens of {len(examples)} rows cost {together.sum():.5g} nats in a pack of "
        f"{len(together)} and {alone.sum():.5g} one by one; token by token they differ by "
        f"{percent(apart)}"
    )
    if apart <= allowed:
        return Proof(PACKED, "passed", measured)
    raise TrainingError(
        f"{measured}, of which rounding explains {percent(allowed)}. The rows of a pack see each "
        "other, or their positions or labels are wrong, so the model would learn what it is never "
        "asked. Report this with the recipe; training.per_device_train_batch_size=1 with "
        "average=micro_batches packs no rows together."
    )


def _share(found: Tensor, expected: Tensor) -> float:
    """Return the difference of losses as a share of their sum; infinite for other tokens."""
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).abs().sum() / expected.sum().clamp(min=SMALLEST_LOSS))


def _in_a_pack(model: Any, packed: MicroBatch) -> Tensor:
    """Return the loss of each learned token, by the objective of training: float32, (tokens,)."""
    parts: list[Tensor] = []

    def note(logits: Tensor, targets: Tensor) -> Tensor:
        parts.append(F.cross_entropy(logits.float(), targets, reduction="none"))
        return parts[-1].sum()

    NextToken(note).loss(model, replace(packed, weights=None))  # in the order of the tokens
    return torch.cat(parts)


def _alone(model: Any, examples: Sequence[Example]) -> Tensor:
    """Return the same, one row at a time, without a pack and without a cache."""
    losses = []
    for example in examples:
        ids = torch.tensor([example.input_ids], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0]
        scores = logits[-len(example.input_ids) :].float().log_softmax(-1)  # no virtual tokens
        labels = example.labels[1:]
        learned = [position for position, label in enumerate(labels) if label != IGNORE]
        losses.append(-scores[learned, [labels[position] for position in learned]])
    return torch.cat(losses)
