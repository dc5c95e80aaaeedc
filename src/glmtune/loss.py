"""The next-token loss, as a sum and a count.

A step's loss is the sum over its learned tokens divided by their number, however the step
was split into micro-batches: an answer of one token weighs a quarter of an answer of four.

    input_ids   A  B  C  D        the logits at A, B and C predict B, C and D;
    labels      .  .  C  D        only B and C predict something learned, so only their
    predicts    .  C  D           logits, (2, vocab), are ever computed

Where a model hands out what its output layer scores, as ChatGLM does, only a chunk of the logits
exists at a time: its gradient is made beside its loss, and the chunk is dropped. A chunk has the
rows that make a product fast; its loss is summed in float32 a few rows at a time, which stay in the
cache of the processor.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from glmtune.chatglm.lean import rows_at_a_time
from glmtune.data.batches import MicroBatch
from glmtune.template import IGNORE

CHUNK_LOGITS = 2**24  # that exist at a time: 258 positions of ChatGLM's vocabulary
PIECE_LOGITS = 2**20  # of them in float32
CHUNK_ROWS = 128  # where the width of the output layer is not known

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(logits (tokens, vocab), targets (tokens,)) -> the sum of their losses in nats, a scalar.

It may be given a part of the positions at a time, and the sums are added up."""


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross-entropy in float32, whatever the logits are.

    Args:
        logits: (tokens, vocab).
        targets: int64, (tokens,).
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def smoothed_cross_entropy_sum(
    logits: Tensor, targets: Tensor, *, label_smoothing: float
) -> Tensor:
    """Sum the cross-entropy with targets that keep a share for all tokens alike.

    Source: https://arxiv.org/abs/1512.00567, section 7.

    Args:
        logits: (tokens, vocab).
        targets: int64, (tokens,).
        label_smoothing: the share, spread evenly over the vocabulary.
    """
    return F.cross_entropy(
        logits.float(), targets, reduction="sum", label_smoothing=label_smoothing
    )


def count_learned_tokens(labels: Tensor) -> int:
    """Count the tokens a loss is taken over; the first of a row is predicted by nothing.

    Args:
        labels: (batch, seq), not shifted.
    """
    return int((labels[:, 1:] != IGNORE).sum())


class _ChunkedLoss(torch.autograd.Function):
    """The loss over a frozen output layer, with the gradient made beside it, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, output_layer: nn.Module, loss: LossFunction
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        for part in _chunks(len(hidden), output_layer):
            with torch.enable_grad():
                chunk = hidden[part].detach().requires_grad_()
                logits = output_layer(chunk)
            of_logits = (
                logits.detach()
            )  # in the same place; a linear layer does not look at it again
            total += _sum_by_pieces(of_logits, targets[part], loss, becomes_gradient=True)
            (gradient[part],) = torch.autograd.grad(logits, chunk, of_logits)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None  # a float32 factor, rounded once


def _chunks(number: int, output_layer: nn.Module) -> Iterator[slice]:
    """Cut so many positions into as few chunks as may be, all of about one length.

    A rest of a few rows would cost a product nearly what a whole chunk does.
    """
    count = -(-number // chunk_rows(output_layer))
    return (slice(number * i // count, number * (i + 1) // count) for i in range(count))


def _sum_by_pieces(
    logits: Tensor, targets: Tensor, loss: LossFunction, *, becomes_gradient: bool = False
) -> Tensor:
    """Sum the loss, a few rows at a time on a CPU; write its gradient over the logits if asked."""
    rows = rows_at_a_time(logits, PIECE_LOGITS)
    total = logits.new_zeros((), dtype=torch.float32)
    for start in range(0, len(logits), rows):
        piece = slice(start, start + rows)
        with torch.set_grad_enabled(becomes_gradient):
            scores = logits[piece].requires_grad_(becomes_gradient)
            nats = loss(scores, targets[piece])
        if becomes_gradient:
            (logits[piece],) = torch.autograd.grad(nats, scores)
        total += nats.detach()
    return total


def chunk_rows(output_layer: nn.Module) -> int:
    """How many positions are scored at a time, at most."""
    vocab = getattr(output_layer, "out_features", None)  # every kind of linear layer says it
    return max(1, CHUNK_LOGITS // vocab) if isinstance(vocab, int) else CHUNK_ROWS


def loss_by_chunks(
    hidden: Tensor, output_layer: nn.Module, targets: Tensor, loss: LossFunction
) -> Tensor:
    """Sum the loss without ever holding the logits of all positions.

    Args:
        hidden: what goes into the output layer, (tokens, hidden).
        output_layer: gives logits. Where it is trained itself, autograd keeps all of them.
        targets: int64, (tokens,).
        loss: what to sum.
    """
    learns = torch.is_grad_enabled()
    if not len(hidden) or (learns and any(p.requires_grad for p in output_layer.parameters())):
        return loss(output_layer(hidden), targets)
    if learns and hidden.requires_grad:
        total: Tensor = _ChunkedLoss.apply(hidden, targets, output_layer, loss)  # type: ignore[no-untyped-call]
        return total
    sums = [
        _sum_by_pieces(output_layer(hidden[part]), targets[part], loss)
        for part in _chunks(len(hidden), output_layer)
    ]
    return torch.stack(sums).sum()


def labels_of_next(labels: Tensor) -> Tensor:
    """Give each position the label of the one after it; the last has none. Shape (batch, seq)."""
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
    following = labels_of_next(micro_batch.labels)
    predicts_learned = following != IGNORE  # (batch, seq)
    targets = following[predicts_learned]
    given = {**micro_batch.inputs(), "use_cache": False, "logits_to_keep": predicts_learned}
    if takes_score(model):

        def score(hidden: Tensor, output_layer: nn.Module) -> Tensor:
            return loss_by_chunks(hidden, output_layer, targets, loss_function)

        return model(**given, score=score).loss.to(torch.float32)  # type: ignore[no-any-return]
    logits = model(**given).logits  # (tokens, vocab)
    return loss_function(logits, targets).to(torch.float32)


class Objective(Protocol):
    """What a step makes smaller, and what its loss is a mean over."""

    def count(self, part: MicroBatch) -> int:
        """How many things the loss of a micro-batch is a sum over: learned tokens, pairs."""

    def loss(self, model: Any, part: MicroBatch) -> Tensor:
        """Sum the loss over a micro-batch: a float32 scalar."""

    def measured(self, *, is_training: bool) -> dict[str, tuple[float, float]]:
        """Give what else was seen since this was last asked: by name a sum, and what it is over."""


@dataclass(frozen=True, slots=True)
class NextToken:
    """Every learned token is predicted from those before it."""

    loss_function: LossFunction = cross_entropy_sum

    def count(self, part: MicroBatch) -> int:
        """Count the learned tokens."""
        return count_learned_tokens(part.labels)

    def loss(self, model: Any, part: MicroBatch) -> Tensor:
        """Sum over the learned tokens."""
        return next_token_loss(model, part, self.loss_function)

    def measured(self, *, is_training: bool) -> dict[str, tuple[float, float]]:
        """Nothing besides the loss."""
        return {}


def takes_score(model: Any) -> bool:
    """Whether a model, below its wrappers, hands out what its output layer scores."""
    model = unwrapped(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "score" in inspect.signature(base.forward).parameters


def unwrapped(model: Any) -> Any:
    """Give the model below what several processes wrap it in."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model
