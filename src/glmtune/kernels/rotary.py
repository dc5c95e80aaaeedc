"""Queries, keys and values out of one projection, with queries and keys rotated.

    fused     [query 0 | query 1 | ... | key 0 | ... | value 0 | ...]     of a token
    heads     rotated                    rotated       as they are        (heads, head_dim) each

On a GPU that is one kernel each way (`glmtune.kernels.triton_rotary`), where a probe finds that it
gives the numbers of the expressions below. Its backward pass writes one gradient of the fused
tensor.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glmtune.kernels import kernel_probe


@dataclass(frozen=True, slots=True)
class Heads:
    """How a fused tensor is divided.

    Attributes:
        queries: heads.
        keys: heads, and as many values.
        is_grouped: [all queries | all keys | all values], as where heads share keys and values;
            otherwise [query, key, value] head by head.
    """

    queries: int
    keys: int
    is_grouped: bool

    def split(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split (batch, seq, width) into views of (batch, heads, seq, head_dim)."""
        if self.is_grouped:
            numbers = (self.queries, self.keys, self.keys)
            parts = torch.split(_divided(fused, sum(numbers)), [*numbers], dim=2)
        else:
            parts = _divided(fused, self.queries).chunk(3, dim=-1)
        query, key, value = (part.transpose(1, 2) for part in parts)
        return query, key, value


def _divided(x: Tensor, number: int) -> Tensor:
    """Divide the channels: (..., number * size) -> (..., number, size)."""
    divided: Tensor = x.unflatten(-1, (number, -1))  # type: ignore[no-untyped-call]
    return divided


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (0,1), (2,3), ... of every head by the angle of their position.

    There are angles for the first half of each head, and the rest of it is left as it is; with
    block positions there are angles for all of it. The pairs are adjacent, unlike Llama's
    (i, i + rotated // 2), so the two are not interchangeable. The arithmetic is in the dtype of
    `x`, as in the original.
    Source: RoFormer, https://arxiv.org/abs/2104.09864, section 3.4.2.

    Args:
        x: queries or keys, (batch, heads, seq, head_dim); the result has its shape.
        cos: (batch, seq, pairs); one angle per pair.
        sin: as `cos`.
    """
    rotated = 2 * cos.size(-1)
    first, second = _divided(x[..., :rotated], cos.size(-1)).unbind(-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (batch, 1, seq, pairs)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned.flatten(-2), x[..., rotated:]), dim=-1)


def split_and_rotate(
    fused: Tensor, cos: Tensor, sin: Tensor, heads: Heads
) -> tuple[Tensor, Tensor, Tensor]:
    """Split a projection into heads, and rotate queries and keys.

    Args:
        fused: (batch, seq, width).
        cos, sin: (1 or batch, seq, pairs).
        heads: of the width.

    Returns:
        Queries, keys and values, (batch, heads, seq, head_dim) each.
    """
    if _fits_kernel(fused, cos) and _has_kernel(fused.device, fused.dtype):
        parts = _SplitAndRotate.apply(fused, cos, sin, heads)  # type: ignore[no-untyped-call]
        query, key, value = (part.transpose(1, 2) for part in parts)
        return query, key, value
    query, key, value = heads.split(fused)
    # A view would keep all of the fused tensor for the gradient.
    return rotate_pairs(query, cos, sin), rotate_pairs(key, cos, sin), value.contiguous()


class _SplitAndRotate(torch.autograd.Function):
    """The kernels, for autograd; only the angles are saved."""

    @staticmethod
    def forward(
        ctx: Any, fused: Tensor, cos: Tensor, sin: Tensor, heads: Heads
    ) -> tuple[Tensor, Tensor, Tensor]:
        from glmtune.kernels import triton_rotary

        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.is_grouped = heads.is_grouped
        is_graph = torch.compiler.is_compiling()
        split = triton_rotary.split_operator if is_graph else triton_rotary.split_and_rotate
        query, key, value = split(
            fused.contiguous(), cos, sin, heads.queries, heads.keys, heads.is_grouped
        )
        return query, key, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        from glmtune.kernels import triton_rotary

        is_graph = torch.compiler.is_compiling()
        join = triton_rotary.join_operator if is_graph else triton_rotary.rotate_back_and_join
        of_query, of_key, of_value = (each.contiguous() for each in grads)
        cos, sin = ctx.saved_tensors
        of_fused: Tensor = join(of_query, of_key, of_value, cos, sin, ctx.is_grouped)
        return of_fused, None, None, None


def _fits_kernel(fused: Tensor, cos: Tensor) -> bool:
    """Whether shapes and dtypes are those that the kernel is written for."""
    batch, seq = fused.shape[:2]
    return cos.dtype == fused.dtype and cos.size(0) in (1, batch) and cos.size(1) == seq


@functools.cache
def _has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    return kernel_probe.works("rotation", device, lambda: _check(device, dtype))


@torch.no_grad()
def _check(device: torch.device, dtype: torch.dtype) -> None:
    """Compare the kernels with the expressions, on few tokens.

    Raises:
        AssertionError: the numbers differ.
    """
    from glmtune.kernels import triton_rotary

    for heads in (Heads(4, 1, True), Heads(2, 2, False)):
        number = heads.queries + 2 * heads.keys
        fused = torch.linspace(-3, 3, 5 * number * 16, device=device).to(dtype)
        fused = fused.view(1, 5, number * 16)
        angles = torch.linspace(0, 3, 5 * 4, device=device).view(1, 5, 4)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        query, key, value = heads.split(fused)
        parts = [rotate_pairs(query, cos, sin), rotate_pairs(key, cos, sin), value]
        query, key, value = (part.transpose(1, 2).contiguous() for part in parts)
        found = triton_rotary.split_and_rotate(
            fused, cos, sin, heads.queries, heads.keys, heads.is_grouped
        )
        rounding = 4 * torch.finfo(dtype).eps  # of numbers up to 3
        torch.testing.assert_close(found, (query, key, value), atol=rounding, rtol=0)
        # A rotation keeps lengths, so turning back gives what it was, up to rounding.
        back = triton_rotary.rotate_back_and_join(query, key, value, cos, sin, heads.is_grouped)
        torch.testing.assert_close(back, fused, atol=0.05, rtol=0.02)
