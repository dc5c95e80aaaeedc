"""The loss over chunks of positions, so that the logits of a full pack never exist at once.

The gradient of a chunk is computed together with its loss, and its logits are then dropped. A chunk
has as many rows as make a matrix product efficient; its loss is computed in float32 for a few rows
at a time, which stay in the CPU cache.

`torch.nn.functional.linear_cross_entropy` (new in torch 2.13) does the same for cross-entropy
alone, while this takes any loss, and it is slower on a CPU. Forward and backward for 1,032 tokens x
4,096 x 65,024 on 2 cores took, best of 4:

                  time           memory            loss
    bfloat16      20.5 s         +193 MiB          11,621.46
      torch       36 to 43 s     +1,240 MiB        11,648 or 11,584, rounded to bfloat16
    float32       26.5 s         +298 MiB
      torch       41 to 49 s     +168 to 252 MiB
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK_LOGITS = 2**24  # logits that exist at a time: 258 positions of ChatGLM's vocabulary
CHUNK_LOGITS_ON_GPU = 2**26  # 1,024 positions; fewer would not fill a GPU
TILE_ROWS = 128  # of a product on a GPU, which pays for a started tile as for a full one
BLOCK_LOGITS = 2**20  # logits converted to float32 at a time
BLOCK_LOGITS_ON_GPU = 2**24
CHUNK_ROWS = 128  # where the width of the output layer is unknown
CPU = torch.device("cpu")

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(logits (tokens, vocab), targets (tokens,)) -> the sum of their losses in nats, a scalar.

It may be called for a part of the positions at a time; the sums are added up."""


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
    """Sum the cross-entropy with label smoothing.

    Source: https://arxiv.org/abs/1512.00567, section 7.

    Args:
        logits: (tokens, vocab).
        targets: int64, (tokens,).
        label_smoothing: the share of each target that is spread evenly over the vocabulary.
    """
    return F.cross_entropy(
        logits.float(), targets, reduction="sum", label_smoothing=label_smoothing
    )


class _ChunkedLoss(torch.autograd.Function):
    """The loss over a frozen output layer, with the gradient computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, output_layer: nn.Module, loss: LossFunction
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        for part in _chunks(hidden, output_layer):
            with torch.enable_grad():
                chunk = hidden[part].detach().requires_grad_()
                logits = output_layer(chunk)
            # Shares storage: the gradient overwrites logits that the layer does not need again.
            grad_logits = logits.detach()
            total += _sum_by_blocks(grad_logits, targets[part], loss, overwrite_with_gradient=True)
            (gradient[part],) = torch.autograd.grad(logits, chunk, grad_logits)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None  # the factor is float32, so this rounds once


def _chunks(hidden: Tensor, output_layer: nn.Module) -> Iterator[slice]:
    """Split positions into as few chunks as possible, all of about the same length.

    A remainder of a few rows would cost nearly as much as a full chunk.
    """
    number = len(hidden)
    count = -(-number // rows_per_chunk(output_layer, hidden.device))
    if hidden.device.type != "cpu":
        rows = -(-number // (count * TILE_ROWS)) * TILE_ROWS
        return (slice(start, min(start + rows, number)) for start in range(0, number, rows))
    return (slice(number * i // count, number * (i + 1) // count) for i in range(count))


def _sum_by_blocks(
    logits: Tensor, targets: Tensor, loss: LossFunction, *, overwrite_with_gradient: bool = False
) -> Tensor:
    """Sum the loss, a few rows at a time; the logits may become its gradient."""
    numel = BLOCK_LOGITS if logits.device.type == "cpu" else BLOCK_LOGITS_ON_GPU
    rows = max(1, numel // max(logits.size(-1), 1))
    total = logits.new_zeros((), dtype=torch.float32)
    for start in range(0, len(logits), rows):
        block = slice(start, start + rows)
        with torch.set_grad_enabled(overwrite_with_gradient):
            scores = logits[block].requires_grad_(overwrite_with_gradient)
            nats = loss(scores, targets[block])
        if overwrite_with_gradient:
            (logits[block],) = torch.autograd.grad(nats, scores)
        total += nats.detach()
    return total


def rows_per_chunk(output_layer: nn.Module, device: torch.device = CPU) -> int:
    """The most positions whose logits are computed at a time on a device."""
    vocab = getattr(output_layer, "out_features", None)  # which every kind of linear layer has
    if not isinstance(vocab, int):
        return CHUNK_ROWS
    if device.type == "cpu":
        return max(1, CHUNK_LOGITS // vocab)
    return max(1, CHUNK_LOGITS_ON_GPU // vocab // TILE_ROWS) * TILE_ROWS


def loss_by_chunks(
    hidden: Tensor, output_layer: nn.Module, targets: Tensor, loss: LossFunction
) -> Tensor:
    """Sum the loss without holding the logits of all positions at once.

    Args:
        hidden: inputs of the output layer, (tokens, hidden).
        output_layer: computes logits. If it is trained itself, autograd saves all of them.
        targets: int64, (tokens,).
        loss: what to sum.

    Returns:
        A scalar in nats, which has a gradient with respect to `hidden`.
    """
    learns = torch.is_grad_enabled()
    if not len(hidden) or (learns and any(p.requires_grad for p in output_layer.parameters())):
        return loss(output_layer(hidden), targets)
    if learns and hidden.requires_grad:
        total: Tensor = _ChunkedLoss.apply(hidden, targets, output_layer, loss)  # type: ignore[no-untyped-call]
        return total
    sums = [
        _sum_by_blocks(output_layer(hidden[part]), targets[part], loss)
        for part in _chunks(hidden, output_layer)
    ]
    return torch.stack(sums).sum()
