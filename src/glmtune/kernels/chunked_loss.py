"""Cross-entropy over chunks of positions, so that logits of a whole pack never exist."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from glmtune.kernels.fused import rows_at_a_time

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
