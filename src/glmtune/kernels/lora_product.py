"""LoRA's update in the dtype of the activations, in one autograd function.

    y  = x W^T + b                      forward
    h  = x A^T                          (rows, rank); saved, next to x
    y += s h B^T                        into the product, in place

    dh = dy B                           backward
    dx = dy W,  dx += s dh A            into the product, in place
    dA = s dh^T x,  dB = s dy^T h       float32

A and B stay float32, as the optimizer steps them, and are rounded for each product: they are small,
so that rounding them again costs less than it takes to know that a rounded copy is not stale. LoRA
in float32 makes float32 copies of the input and of the output instead, and several passes over
them; the result differs from it by the rounding of A, B and h to 16 bits.

The idea is Unsloth's, https://github.com/unslothai/unsloth (unsloth/kernels/fast_lora.py).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _LoraLinear(torch.autograd.Function):
    """x W^T + b + s (x A^T) B^T, for frozen W and b in the dtype of x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        inner = x.flatten(0, -2) @ a.to(x.dtype).T
        y.view(-1, y.size(-1)).addmm_(inner, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, inner, weight, a, b)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, weight, a, b = ctx.saved_tensors
        dy = grads[0].flatten(0, -2)
        of_inner = dy @ b.to(dy.dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(of_inner, a.to(dy.dtype), alpha=ctx.scale).view_as(x)
        needs_a, needs_b = ctx.needs_input_grad[3:5]
        da = _gradient(of_inner, x, ctx.scale, a.dtype) if needs_a else None
        db = _gradient(dy, inner, ctx.scale, b.dtype) if needs_b else None
        return dx, None, None, da, db, None


class _AddUpdate(torch.autograd.Function):
    """y + s (x A^T) B^T, in the memory of y.

    Autograd is not told: the output of a linear layer is often a view, of which it would copy the
    whole gradient. The counter of changes is shared, so if the layer had saved y, it would notice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        inner = x.flatten(0, -2) @ a.to(x.dtype).T
        ctx.save_for_backward(x, inner, a, b)
        ctx.scale = scale
        y = y.detach() if y.is_contiguous() else y.contiguous()
        y.view(-1, y.size(-1)).addmm_(inner.to(y.dtype), b.to(y.dtype).T, alpha=scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, a, b = ctx.saved_tensors
        dy = grads[0].flatten(0, -2).to(x.dtype)
        of_inner = dy @ b.to(x.dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (of_inner @ a.to(x.dtype)).mul_(ctx.scale).view_as(x)
        needs_a, needs_b = ctx.needs_input_grad[2:4]
        da = _gradient(of_inner, x, ctx.scale, a.dtype) if needs_a else None
        db = _gradient(dy, inner, ctx.scale, b.dtype) if needs_b else None
        return dx, grads[0], da, db, None


def _gradient(left: Tensor, right: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Multiply (rows, m) and (..., n), of 16 bits, over the rows into float32: (m, n)."""
    left, right = left.T, right.flatten(0, -2)
    if left.is_cuda and left.dtype != torch.float32:  # the only device whose product widens
        return torch.mm(left, right, out_dtype=torch.float32).mul_(scale).to(dtype)
    return (left.float() @ right.float()).mul_(scale).to(dtype)


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """Apply a frozen linear layer and its update.

    Args:
        x: (..., in).
        weight: (out, in), in the dtype of `x`.
        bias: (out,), in the dtype of `x`.
        a: (rank, in).
        b: (out, rank).
        scale: multiplies the update.

    Returns:
        (..., out), in the dtype of `x`.
    """
    y: Tensor = _LoraLinear.apply(x, weight, bias, a, b, scale)  # type: ignore[no-untyped-call]
    return y


def add_update(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Add an update to the output of a layer of any kind.

    Args:
        y: (..., out), which nobody else needs: it is written over.
        x: (..., in).
        a, b, scale: as for `lora_linear`.
    """
    sum_: Tensor = _AddUpdate.apply(x, y, a, b, scale)  # type: ignore[no-untyped-call]
    return sum_
