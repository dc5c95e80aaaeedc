"""The next-token loss, as a sum and a count.

A step's loss is the sum over its learned tokens divided by their number, however the step
is split into micro-batches: an answer of one token weighs a quarter of an answer of four.

    input_ids   A  B  C  D        the logits at A, B and C predict B, C and D;
    labels      .  .  C  D        only B and C predict a learned token, so only their
    predicts    .  C  D           logits, (2, vocab), are ever computed

Where the `forward` of a model takes `score`, as ChatGLM's does, only a chunk of the logits exists
at a time (`glmtune.kernels.chunked_loss`).
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from glmtune.data.batches import MicroBatch
from glmtune.kernels.chunked_loss import (
    LossFunction,
    cross_entropy_sum,
    loss_by_chunks,
)
from glmtune.template.base import IGNORE


def count_learned_tokens(labels: Tensor) -> int:
    """Count the tokens that the loss is a sum over; nothing predicts the first of a row.

    Args:
        labels: (batch, seq), not shifted.
    """
    return int((labels[:, 1:] != IGNORE).sum())


def labels_of_next(labels: Tensor) -> Tensor:
    """Shift labels, (batch, seq), to the positions that predict them; the last gets IGNORE."""
    following = labels.new_full(labels.shape, IGNORE)
    following[:, :-1] = labels[:, 1:]
    return following


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
    keep, targets = learned_positions(micro_batch)
    weights = _weights_of_labels(micro_batch)
    given = {**micro_batch.inputs(), "use_cache": False, "logits_to_keep": keep}
    if accepts_score(model):

        def score(hidden: Tensor, output_layer: nn.Module) -> Tensor:
            def by_chunks(inputs: Tensor, targets: Tensor) -> Tensor:
                return loss_by_chunks(inputs, output_layer, targets, loss_function)

            return _weighted(by_chunks, hidden.flatten(0, -2), targets, weights)

        return model(**given, score=score).loss.to(torch.float32)  # type: ignore[no-any-return]
    logits = model(**given).logits.flatten(0, -2)  # (tokens, vocab)
    return _weighted(loss_function, logits, targets, weights).to(torch.float32)


def _weights_of_labels(micro_batch: MicroBatch) -> Tensor | None:
    """Return the weight of each label that something predicts, (tokens,); None where all are 1."""
    if micro_batch.weights is None:
        return None
    following = micro_batch.weights[:, 1:]
    if micro_batch.predicting is not None:
        return following[0, micro_batch.predicting]
    return following[micro_batch.labels[:, 1:] != IGNORE]


def _weighted(
    loss: LossFunction, inputs: Tensor, targets: Tensor, weights: Tensor | None
) -> Tensor:
    """Sum a loss with weights, one distinct weight after the other, since the loss gives sums."""
    if weights is None or not len(weights):
        return loss(inputs, targets)
    parts = [
        weight * loss(inputs[weights == weight], targets[weights == weight])
        for weight in torch.unique(weights)
    ]
    return torch.stack(parts).sum()


def learned_positions(micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Return which positions predict learned tokens, as `logits_to_keep`, and those tokens.

    A pack on an accelerator knows their indices, (tokens,). To find them there from the boolean
    mask, (batch, seq), the host would have to wait for it.
    """
    if micro_batch.predicting is not None and micro_batch.targets is not None:
        return micro_batch.predicting, micro_batch.targets
    following = labels_of_next(micro_batch.labels)
    predicts_learned = following != IGNORE  # (batch, seq)
    return predicts_learned, following[predicts_learned]


class Objective(Protocol):
    """What a step minimizes, and what its loss is a mean over."""

    def count(self, part: MicroBatch) -> float:
        """Count what the loss of a micro-batch is a sum over: learned tokens, or pairs."""

    def loss(self, model: Any, part: MicroBatch) -> Tensor:
        """Sum the loss over a micro-batch: a float32 scalar."""

    def measured(self, *, is_training: bool) -> dict[str, tuple[float, float]]:
        """Return and reset the other measurements: by name a sum, and the count that it is over."""


@runtime_checkable
class NeedsWholeStep(Protocol):
    """An objective whose loss of a row depends on the other rows of its step."""

    def begin(
        self,
        model: Any,
        parts: Iterable[MicroBatch],
        device: torch.device,
        total: Callable[[float], float] = float,
    ) -> None:
        """Look at all rows of a step, or all held-out rows, before the first loss.

        Args:
            model: as for `Objective.loss`.
            parts: the micro-batches of this process.
            device: to compute on.
            total: sums a number over all processes.
        """


@dataclass(frozen=True, slots=True)
class NextToken:
    """Predict every learned token from the tokens before it."""

    loss_function: LossFunction = cross_entropy_sum

    def count(self, part: MicroBatch) -> float:
        """Count the learned tokens, or add up their weights."""
        if (weights := _weights_of_labels(part)) is not None:
            return float(weights.sum())
        return count_learned_tokens(part.labels)

    def loss(self, model: Any, part: MicroBatch) -> Tensor:
        """Sum over the learned tokens."""
        return next_token_loss(model, part, self.loss_function)

    def measured(self, *, is_training: bool) -> dict[str, tuple[float, float]]:
        """Return nothing, since only the loss is measured."""
        return {}


def unwrap(model: Any) -> Any:
    """Return the model inside the wrappers of distributed training."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def accepts_score(model: Any) -> bool:
    """Whether the `forward` of a model, inside its wrappers, takes `score`."""
    model = unwrap(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "score" in inspect.signature(base.forward).parameters
