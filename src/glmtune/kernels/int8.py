"""Frozen linear layers that multiply in int8: half the memory of bfloat16.

This is the arithmetic of CPUs; `glmtune.kernels.scaled_linear` has that of GPUs.

A weight is stored as int8 with a float32 scale per output channel. Activations are quantized
dynamically with a scale per token, and so are the gradients in the backward pass:

    y  = (int8(x) @ W.T) * scale(x) * scale(W)          scale(x) per row, scale(W) per column
    dx = (int8(dy * scale(W)) @ W) * scale(dy)          the weight's scales multiply the gradient
                                                        first, so one int8 weight serves both

An outlier channel would set the scale of its row and leave the others no precision, so channels
are first mixed in blocks of 64 by a Hadamard matrix H of 1 and -1: (x @ H) @ (W @ H / 64).T is
x @ W.T, and H is its own transpose.

Products are exact sums in int32, so a token's result does not depend on the rest of its batch. x is
not saved for backward. The weight cannot be trained or merged into; adapters are trained instead.

Source: Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 2 (scales per row and
column); Ashkboos et al. 2024, https://arxiv.org/abs/2404.00456 (Hadamard matrices in place of a
second product for outliers). docs/performance.md has what was measured.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from glmtune import machine
from glmtune.kernels.channel_mixing import block_size, rotate
from glmtune.kernels.half_precision import onednn
from glmtune.kernels.replace_linear import replace_linear
from glmtune.kernels.scaled_linear import scaled_linear, why_no_kernels

logger = logging.getLogger(__name__)

LIMIT = 127  # -128 is left out, so that the scale is the same on both sides
SMALLEST = 1e-30  # least maximum of a row; the inverse of a smaller one would overflow
BLOCK_NUMEL = 1 << 19  # elements converted at a time, to stay in the CPU cache
CHANNELS = 4096  # output channels at a time: int32 sums of all would be twice the activations
FEW_ROWS = 6  # up to so many rows of activations, one product per row is faster
EXACT_TERMS = 1024  # float32 holds the sum of so many products of two int8 exactly


class _Int8Product(torch.autograd.Function):
    """x @ weight.T for a frozen int8 weight with scales."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        rows, row_scale = quantize_rows(rotate(x.reshape(-1, x.size(-1))))
        y = x.new_empty(rows.size(0), weight.size(0))
        channels = CHANNELS if rows.size(0) > FEW_ROWS else weight.size(0)
        for start in range(0, weight.size(0), channels):
            part = slice(start, start + channels)
            dequantize_into(int8_matmul(rows, weight[part].T), row_scale, scale[part], y[:, part])
        return y.view(*x.shape[:-1], weight.size(0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        (dy,) = grads
        rows, row_scale = quantize_rows(dy.reshape(-1, dy.size(-1)), scale)
        dx = dy.new_empty(rows.size(0), weight.size(1))
        dequantize_into(int8_matmul(rows, weight), row_scale, None, dx)
        dx = rotate(dx)
        return dx.view(*dy.shape[:-1], weight.size(1)), None, None


class Int8Linear(nn.Linear):
    """A frozen linear layer with an int8 weight; the output has the dtype of the input."""

    scale: Tensor  # float32, (out,)

    def __init__(self, linear: nn.Linear) -> None:
        """Quantize a linear layer, whose weight is not kept."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        parts = [
            quantize_rows(rotate(part.float()).div_(block_size(linear.in_features)))
            for part in torch.split(linear.weight.detach(), CHANNELS)
        ]
        weight, scale = (torch.cat(both) for both in zip(*parts, strict=True))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale.squeeze(1), persistent=False)
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if input.device.type == "cuda":
            return scaled_linear(input, self.weight, self.scale, self.bias, torch.int8)
        y: Tensor
        with onednn(enabled=True):  # torch's own kernels are slow for int8 and for mixing
            y = _Int8Product.apply(input, self.weight, self.scale)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


def quantize_rows(x: Tensor, column_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantize each row to int8 with its own scale.

    Args:
        x: (rows, columns), floating point.
        column_scale: float32, (columns,), multiplies the columns first.

    Returns:
        int8 of the same shape, and float32 scales, (rows, 1). A row with NaN or infinity has a
        scale that is not finite.
    """
    rows = x.new_empty(x.shape, dtype=torch.int8)
    scale = x.new_empty(x.size(0), 1, dtype=torch.float32)
    step = max(1, BLOCK_NUMEL // max(x.size(1), 1)) if x.device.type != "cuda" else len(x)
    for start in range(0, x.size(0), max(step, 1)):
        part = x[start : start + step].to(torch.float32, copy=True)
        if column_scale is not None:
            part.mul_(column_scale)
        largest = torch.maximum(part.amax(1, keepdim=True), part.amin(1, keepdim=True).neg_())
        largest.clamp_min_(SMALLEST)
        rows[start : start + step] = part.mul_(LIMIT / largest).round_()
        scale[start : start + step] = largest / LIMIT
    return rows, scale


def dequantize_into(
    sums: Tensor, row_scale: Tensor, column_scale: Tensor | None, y: Tensor
) -> None:
    """Write int32 sums (rows, columns), times their scales, (rows, 1) and (columns,), to `y`."""
    step = max(1, BLOCK_NUMEL // max(sums.size(1), 1))
    for start in range(0, sums.size(0), step):
        part = sums[start : start + step].float().mul_(row_scale[start : start + step])
        y[start : start + step] = part if column_scale is None else part.mul_(column_scale)


def int8_matmul(rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply int8 (rows, inner) and (inner, columns) exactly, into int32."""
    if not machine.has_int8_products():
        return int8_matmul_in_float32(rows, columns)
    if 1 < rows.size(0) <= FEW_ROWS:  # a single row reads the weight as it is stored
        return torch.cat([torch._int_mm(row, columns) for row in rows[:, None]])
    return torch._int_mm(rows, columns)


def int8_matmul_in_float32(rows: Tensor, columns: Tensor) -> Tensor:
    """Do the same on a CPU without int8 products, with few enough terms at a time to be exact."""
    sums = rows.new_zeros(rows.size(0), columns.size(1), dtype=torch.int32)
    for inner in range(0, rows.size(1), EXACT_TERMS):
        left = rows[:, inner : inner + EXACT_TERMS].float()
        for start in range(0, columns.size(1), EXACT_TERMS):
            right = columns[inner : inner + EXACT_TERMS, start : start + EXACT_TERMS].float()
            sums[:, start : start + EXACT_TERMS] += (left @ right).to(torch.int32)
    return sums


def quantize(model: Any, dtype: torch.dtype, device: torch.device | None = None) -> None:
    """Freeze a model and quantize its linear layers to int8, except for the output layer.

    Args:
        model: a model of transformers; changed in place. Adapters are attached afterwards.
        dtype: of activations and of all tensors that stay floating point.
        device: where the layers go, each as it is quantized; None leaves them where they are.
    """
    replace_linear(model, Int8Linear, dtype, device)
    if device is not None and device.type == "cuda":
        used = model.get_output_embeddings().weight.device  # with its index
        if (why := why_no_kernels(used, torch.int8)) is not None:  # compiles them, too
            logger.warning(
                "int8 saves memory on %s, but no time: the weights are converted for every "
                "product, since %s",
                torch.cuda.get_device_name(used),
                why,
            )
    elif not machine.has_int8_products():
        logger.warning(
            "this CPU has no int8 products (VNNI), so they are computed in float32: int8 saves "
            "memory here, but no time"
        )
