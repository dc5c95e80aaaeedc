"""How well a model predicts rows that it did not learn."""

from collections.abc import Sequence
from typing import Any

import torch

from glmtune.data.batches import Examples, collate
from glmtune.errors import TrainingError
from glmtune.loss import LossFunction, count_learned_tokens, cross_entropy_sum, next_token_loss


@torch.no_grad()
def held_out_loss(
    model: Any,
    examples: Examples,
    rows: Sequence[int],
    *,
    batch_size: int,
    pad_id: int,
    device: torch.device,
    lengths: Sequence[int],
    loss_function: LossFunction = cross_entropy_sum,
) -> tuple[float, int]:
    """Sum the loss over held-out rows, dropout off.

    Args:
        model: a causal language model; its training mode is put back afterwards.
        examples: encoded rows.
        rows: which of them.
        batch_size: rows at a time; the longest go first, so that trouble with memory shows
            at once.
        pad_id: what fills the shorter rows.
        device: where the model is.
        lengths: tokens of every example, by index.
        loss_function: what to sum.

    Returns:
        The sum in nats and the number of learned tokens it is over.

    Raises:
        TrainingError: the loss is not finite.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    order = sorted(rows, key=lambda row: -lengths[row])
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        micro_batch = collate([examples[row] for row in chosen], pad_id, chosen).to(device)
        loss = next_token_loss(model, micro_batch, loss_function)
        if not loss.isfinite():
            raise TrainingError(
                f"the evaluation loss is {loss.item()} on held-out rows {chosen}. "
                "The model has diverged; lower training.learning_rate and go back to the last "
                "checkpoint."
            )
        total += loss.item()
        count += count_learned_tokens(micro_batch.labels)
    model.train(was_training)
    return total, count
