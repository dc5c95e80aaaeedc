"""The next-token loss, as a sum and a count.

A step's loss is the sum over its learned tokens divided by their number, however the step
was split into micro-batches: an answer of one token weighs a quarter of an answer of four.

    input_ids   A  B  C  D        the logits at A, B and C predict B, C and D;
    labels      .  .  C  D        only B and C predict something learned, so only their
    predicts    .  C  D           logits, (2, vocab), are ever computed
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glmtune.data.batches import MicroBatch
from glmtune.template import IGNORE

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(logits (tokens, vocab), targets (tokens,)) -> the sum of their losses in nats, a scalar."""


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross-entropy in float32, whatever the logits are.

    Args:
        logits: (tokens, vocab).
        targets: int64, (tokens,).
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def count_learned_tokens(labels: Tensor) -> int:
    """Count the tokens a loss is taken over; the first of a row is predicted by nothing.

    Args:
        labels: (batch, seq), not shifted.
    """
    return int((labels[:, 1:] != IGNORE).sum())


def next_token_loss(
    model: Callable[..., Any],
    micro_batch: MicroBatch,
    loss_function: LossFunction = cross_entropy_sum,
) -> Tensor:
    """Sum the loss over the learned tokens of a micro-batch.

    Args:
        model: a causal language model whose `forward` takes `logits_to_keep` as a boolean
            (batch, seq), as transformers' do.
        micro_batch: its rows.
        loss_function: what to sum.

    Returns:
        A float32 scalar in nats. Divide it by the learned tokens of the whole step.
    """
    following = micro_batch.labels.new_full(micro_batch.labels.shape, IGNORE)
    following[:, :-1] = micro_batch.labels[:, 1:]
    predicts_learned = following != IGNORE  # (batch, seq)
    logits = model(
        **micro_batch.inputs(), use_cache=False, logits_to_keep=predicts_learned
    ).logits  # (tokens, vocab)
    return loss_function(logits, following[predicts_learned]).to(torch.float32)
