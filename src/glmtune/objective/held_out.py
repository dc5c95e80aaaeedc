"""The loss on held-out rows."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from glmtune.data.batches import Examples, MakeMicroBatch, idle_micro_batch, rows_as_they_are
from glmtune.data.packing import group_rows
from glmtune.errors import TrainingError
from glmtune.kernels.packed_attention import without_cudnn
from glmtune.objective.next_token import NeedsWholeStep, NextToken, Objective

PENDING_LOSSES = 32  # of packs on a GPU, before it is waited for


@torch.no_grad()
@without_cudnn()
def held_out_loss(
    model: Any,
    examples: Examples,
    rows: Sequence[int],
    *,
    max_tokens: int,
    device: torch.device,
    lengths: Sequence[int],
    objective: Objective | None = None,
    make: MakeMicroBatch = rows_as_they_are,
    process_index: int = 0,
    num_processes: int = 1,
    total_of: Callable[[float], float] = float,
) -> tuple[float, float]:
    """Sum the loss over held-out rows, dropout off.

    Each of several processes takes every `num_processes`-th pack, and as many as any other, since
    a sharded model communicates in each.

    Args:
        model: a causal language model; its training mode is restored afterwards.
        examples: encoded rows.
        rows: which of them.
        max_tokens: the most tokens of rows that go through the model together.
        device: where the model is.
        lengths: tokens of every example, by index.
        objective: what to sum; None is the next-token loss.
        make: makes the micro-batch of some rows; it is called for step 0.
        process_index, num_processes: which share of the packs this process takes.
        total_of: sums a number over all processes.

    Returns:
        The sum in nats and the number of learned tokens (or pairs) it is over, of this process's
        packs.

    Raises:
        TrainingError: the loss is not finite.
    """
    objective = objective or NextToken()
    was_training = model.training
    model.eval()
    total, count = 0.0, 0.0
    packs = group_rows(rows, lengths, max_tokens)
    packs += [[]] * (-len(packs) % num_processes)
    packs = packs[process_index::num_processes]
    if isinstance(objective, NeedsWholeStep):
        own = (make(examples, chosen, 0) for chosen in packs if chosen)
        objective.begin(model, own, device, total_of)
    pending: list[tuple[Sequence[int], Tensor]] = []
    for chosen in packs:
        part = make(examples, chosen or rows[:1], 0)
        part = part if chosen else idle_micro_batch(part)
        count += objective.count(part)
        pending.append((chosen, objective.loss(model, part.to(device))))
        if device.type == "cpu" or len(pending) == PENDING_LOSSES:
            total = _add_up(pending, total)
    total = _add_up(pending, total)
    model.train(was_training)
    return total, count


def _add_up(pending: list[tuple[Sequence[int], Tensor]], total: float) -> float:
    """Read the losses of some packs at once, add them to the total, and forget them.

    Raises:
        TrainingError: a loss is not finite.
    """
    if not pending:
        return total
    losses: list[float] = torch.stack([loss for _, loss in pending]).tolist()
    for (rows, _), loss in zip(pending, losses, strict=True):
        if not math.isfinite(loss):
            raise TrainingError(
                f"the evaluation loss is {loss} on held-out rows {rows}. "
                "The model has diverged; lower training.learning_rate and resume from the last "
                "checkpoint."
            )
        total += loss
    pending.clear()
    return total
