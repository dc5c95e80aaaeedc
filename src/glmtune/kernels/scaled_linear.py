"""Frozen linear layers that multiply 8-bit numbers on a GPU: one weight for both directions.

    y  = (q(x) @ W.T) * scale(x) * scale(W) + bias       scale(x) per row, scale(W) per column
    dx = (q(dy * scale(W)) @ W) * scale(dy)              W is transposed for this product alone

The weight's scales multiply the gradient before it is rounded, so one weight of 8 bits serves both
products. Products of 8 bits read both operands along the sum, so the backward pass copies W into
the other order: two bytes of traffic per weight, a few percent of the product from 4,096 rows on. A
second copy kept in memory would save them, and take what 8 bits have saved.

    int8   channels of x are mixed (`glmtune.kernels.channel_mixing`); sums are exact
    fp8    float8_e4m3fn without mixing; torch's own product

The gradient is e4m3, too: with a scale for each row its range suffices, and e5m2, which is made for
one scale for a whole tensor, rounds twice as coarsely.

Each function below is a torch expression. On a GPU where a probe finds that Triton gives the same,
`glmtune.kernels.triton_eight_bits` computes it in one pass. Elsewhere the expression is an
operator, so that a plan counts its result and no more. x is not saved for the backward pass.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glmtune.kernels.channel_mixing import block_size, rotate

FP8 = torch.float8_e4m3fn
LIMITS = {torch.int8: 127.0, FP8: 448.0}  # what the largest number of a row becomes
SMALLEST = 1e-30  # least maximum of a row; the inverse of a smaller one would overflow
ALIGNMENT = 16  # both widths of a layer are a multiple of it
OLDEST_CAPABILITY = (8, 0)  # of Triton's int8 products (Ampere)
FP8_CAPABILITY = (8, 9)  # of products of fp8 (Ada; Hopper has 9.0)
PART = 2048  # output channels whose weights are converted at a time, where there is no kernel
CHUNK_NUMEL = 1 << 24  # elements that a torch expression converts to float32 at a time


# ---- rows of 8 bits ------------------------------------------------------------------------------


def quantize(
    x: Tensor, column_scale: Tensor | None, is_mixed: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Quantize each row of (rows, width) with a scale of its own.

    Args:
        x: floating point, contiguous.
        column_scale: float32, (width,), multiplies the columns first.
        is_mixed: whether channels are mixed.
        dtype: int8 or float8_e4m3fn.

    Returns:
        (rows, width) of `dtype`, and float32 scales, (rows, 1). A row with NaN or infinity has a
        scale that is not finite.
    """
    if not x.is_cuda:
        found: tuple[Tensor, Tensor] = quantize_op(x, column_scale, is_mixed, dtype)
        return found
    is_wide = not is_mixed or block_size(x.size(1)) >= ALIGNMENT
    if is_wide and has_kernels(x.device, dtype):
        from glmtune.kernels import triton_eight_bits

        return triton_eight_bits.quantize(
            x, column_scale, is_mixed=is_mixed, dtype=dtype, limit=LIMITS[dtype]
        )
    return quantize_by_torch(x, column_scale, is_mixed, dtype)


@torch.library.custom_op("glmtune::quantize_8bit", mutates_args=())
def quantize_op(
    x: Tensor, column_scale: Tensor | None, is_mixed: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Do so where there is no kernel."""
    return quantize_by_torch(x, column_scale, is_mixed, dtype)


@quantize_op.register_fake
def _(
    x: Tensor, column_scale: Tensor | None, is_mixed: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.size(0), 1, dtype=torch.float32)


def quantize_by_torch(
    x: Tensor, column_scale: Tensor | None, is_mixed: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Do the same by torch's operators."""
    rows = x.new_empty(x.shape, dtype=dtype)
    scale = x.new_empty(x.size(0), 1, dtype=torch.float32)
    step = max(1, CHUNK_NUMEL // max(x.size(1), 1))
    for start in range(0, x.size(0), step):
        part = slice(start, start + step)
        wide = x[part].float() if column_scale is None else x[part].float() * column_scale
        wide = rotate(wide) if is_mixed else wide
        largest = wide.abs().amax(1, keepdim=True)
        largest = largest.nan_to_num(nan=torch.inf, posinf=torch.inf).clamp_min(SMALLEST)
        wide = wide * (LIMITS[dtype] / largest)
        rows[part] = (wide.round() if dtype == torch.int8 else wide).to(dtype)
        scale[part] = largest / LIMITS[dtype]
    return rows, scale


# ---- products ------------------------------------------------------------------------------------


def multiply(
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    column_scale: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Multiply rows of 8 bits by a weight of 8 bits, and by their scales.

    Args:
        rows: int8 or float8_e4m3fn, (rows, inner), contiguous.
        row_scale: float32, (rows, 1).
        weight: of the same dtype, (columns, inner), contiguous.
        column_scale: float32, (columns,); None is 1.
        bias: (columns,), is added last.
        dtype: of the result.

    Returns:
        (rows, columns).
    """
    product: Callable[..., Tensor] = multiply_op
    if rows.is_cuda and rows.dtype == FP8:
        product = _multiply_fp8
    elif rows.is_cuda and has_kernels(rows.device, torch.int8):
        from glmtune.kernels import triton_eight_bits

        product = triton_eight_bits.multiply
    return product(rows, row_scale, weight, column_scale, bias, dtype)


@torch.library.custom_op("glmtune::multiply_8bit", mutates_args=())
def multiply_op(
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    column_scale: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Do so where there is no kernel."""
    return multiply_by_torch(rows, row_scale, weight, column_scale, bias, dtype)


@multiply_op.register_fake
def _(
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    column_scale: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return rows.new_empty(rows.size(0), weight.size(0), dtype=dtype)


def multiply_by_torch(
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    column_scale: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Do the same in float32."""
    result = rows.float() @ weight.float().T * row_scale
    if column_scale is not None:
        result = result * column_scale
    if bias is not None:
        result = result + bias.float()
    return result.to(dtype)


def _multiply_fp8(
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    column_scale: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Multiply by torch's product with a scale per row and column, whose results are bfloat16."""
    num_rows = rows.size(0)
    if not num_rows:
        return rows.new_empty(0, weight.size(0), dtype=dtype)
    if num_rows < ALIGNMENT:  # cuBLAS has no product of one row for every shape
        rows, row_scale = (_with_more_rows(each, ALIGNMENT) for each in (rows, row_scale))
    if column_scale is None:
        column_scale = _ones(weight.size(0), weight.device)
    result: Tensor = torch._scaled_mm(
        rows,
        weight.T,
        scale_a=row_scale,
        scale_b=column_scale[None],
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,  # its error is small beside that of 4 significant bits
    )
    return result[:num_rows].to(dtype)


def _with_more_rows(x: Tensor, number: int) -> Tensor:
    """Copy rows to a tensor of `number` rows; what is in the others does not matter."""
    longer = x.new_empty(number, x.size(1))
    longer[: x.size(0)] = x
    return longer


@functools.cache
def _ones(number: int, device: torch.device) -> Tensor:
    return torch.ones(number, device=device)


def transpose(weight: Tensor) -> Tensor:
    """Copy a contiguous (out, in) of int8 or float8_e4m3fn to (in, out)."""
    if weight.is_cuda and has_kernels(weight.device, weight.dtype):
        from glmtune.kernels import triton_eight_bits

        return triton_eight_bits.transpose(weight.view(torch.int8)).view(weight.dtype)
    turned: Tensor = transpose_op(weight)
    return turned


@torch.library.custom_op("glmtune::transpose_8bit", mutates_args=())
def transpose_op(weight: Tensor) -> Tensor:
    """Do so where there is no kernel."""
    return weight.T.contiguous()


@transpose_op.register_fake
def _(weight: Tensor) -> Tensor:
    return weight.new_empty(weight.size(1), weight.size(0))


# ---- layers --------------------------------------------------------------------------------------


class _ScaledLinear(torch.autograd.Function):
    """x @ weight.T + bias for a frozen weight of 8 bits, stored as int8 whatever its dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.dtype = dtype
        flat = x.reshape(-1, x.size(-1)).contiguous()
        rows, row_scale = quantize(flat, None, dtype == torch.int8, dtype)
        y: Tensor = multiply(rows, row_scale, weight.view(dtype), scale, bias, x.dtype)
        return y.view(*x.shape[:-1], weight.size(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, scale = ctx.saved_tensors
        (dy,) = grads
        flat = dy.reshape(-1, dy.size(-1)).contiguous()
        rows, row_scale = quantize(flat, scale, False, ctx.dtype)
        turned = transpose(weight.view(ctx.dtype))
        dx = multiply(rows, row_scale, turned, None, None, dy.dtype)
        dx = rotate(dx) if ctx.dtype == torch.int8 else dx
        return dx.view(*dy.shape[:-1], weight.size(1)), None, None, None, None


class _WeightOnlyLinear(torch.autograd.Function):
    """The same product with a weight that is converted to the dtype of x, a part at a time."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, channels: int
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.channels = channels
        y = x.new_empty(*x.shape[:-1], weight.size(0))
        for start in range(0, weight.size(0), channels):
            part = slice(start, start + channels)
            y[..., part] = x @ dequantize(weight[part], scale[part], x.dtype).T
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, scale = ctx.saved_tensors
        (dy,) = grads
        dy = dy.reshape(-1, dy.size(-1))
        dx = dy.new_zeros(dy.size(0), weight.size(1))
        for start in range(0, weight.size(0), ctx.channels):
            part = slice(start, start + ctx.channels)
            dx.addmm_(dy[:, part], dequantize(weight[part], scale[part], dy.dtype))
        return dx.view(*grads[0].shape[:-1], weight.size(1)), None, None, None, None


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight that int8 (out, in) with mixed channels and scales (out,) stands for."""
    wide = weight.to(torch.float32).mul_(scale[:, None])
    return rotate(wide).to(dtype)


def scaled_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Apply a frozen weight of 8 bits to (..., in); the result has the dtype of x.

    Args:
        x: floating point.
        weight: (out, in), the bytes of `dtype` as int8; for int8 its channels are mixed.
        scale: float32, (out,).
        bias: (out,) or None.
        dtype: int8 or float8_e4m3fn.
    """
    y: Tensor
    is_aligned = not (weight.size(0) % ALIGNMENT or weight.size(1) % ALIGNMENT)
    if dtype == torch.int8 and not (is_aligned and has_kernels(x.device, torch.int8)):
        y = _WeightOnlyLinear.apply(x, weight, scale, bias, PART)  # type: ignore[no-untyped-call]
    else:
        y = _ScaledLinear.apply(x, weight, scale, bias, dtype)  # type: ignore[no-untyped-call]
    return y


# ---- what a device can do ------------------------------------------------------------------------


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton's kernels for int8 or float8_e4m3fn can be used on a device."""
    return why_no_kernels(device, dtype) is None


@functools.cache
def why_no_kernels(device: torch.device, dtype: torch.dtype) -> str | None:
    """Say why Triton's kernels cannot be used on a device; None if they give what torch gives."""
    if device.type != "cuda":
        return f"Triton has no kernels for {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return "Triton's int8 products need compute capability 8.0, and it has {}.{}".format(
            *capability
        )
    return _in_a_thread(_try_int8_kernels if dtype == torch.int8 else _try_fp8_kernels, device)


@functools.cache
def why_no_fp8(device: torch.device) -> str | None:
    """Say why a device cannot multiply fp8; None if it has."""
    if device.type != "cuda":
        return f"this would run on {device.type}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees none here"
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return "{} has compute capability {}.{}".format(name, *capability)
    return _in_a_thread(_try_fp8, device)


def _in_a_thread(work: Callable[[torch.device], None], device: torch.device) -> str | None:
    """Try something without the modes of the caller, which are per thread; say what went wrong."""

    def with_device() -> None:
        with torch.cuda.device(device):  # of a thread, too
            work(device)

    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(with_device).result()
        except Exception as error:  # a compiler for many cards may fail in any way
            return (str(error) or repr(error)).strip().splitlines()[-1]
    return None


def _rows_to_try(device: torch.device) -> Tensor:
    """Make rows as wide as those of ChatGLM3-6B: what is compiled for them will be used again."""
    x = torch.linspace(-3, 2, 256 * 4096, device=device).sin_().view(256, 4096)
    return x.to(torch.bfloat16)


def _try_int8_kernels(device: torch.device) -> None:
    """Compare every kernel of int8 with its torch expression."""
    from glmtune.kernels import triton_eight_bits as kernels

    x, kind = _rows_to_try(device), torch.int8
    rows, scale = kernels.quantize(x, None, is_mixed=True, dtype=kind, limit=LIMITS[kind])
    expected, expected_scale = quantize_by_torch(x, None, is_mixed=True, dtype=kind)
    torch.testing.assert_close(rows, expected, atol=1, rtol=0)  # a tie may be rounded either way
    torch.testing.assert_close(scale, expected_scale, atol=0, rtol=0.01)
    weight = rows[:64].contiguous()
    turned = kernels.transpose(weight)
    assert torch.equal(turned, weight.T), "a transposed weight has other numbers"
    for number in (3, 100, 256):  # of rows: each has tiles of its own
        part = (rows[:number], scale[:number], weight, None, None, torch.bfloat16)
        _assert_near(kernels.multiply(*part), multiply_by_torch(*part))


def _try_fp8_kernels(device: torch.device) -> None:
    """Compare the kernels around torch's product of fp8 with their torch expressions."""
    from glmtune.kernels import triton_eight_bits as kernels

    x = _rows_to_try(device)
    rows, scale = kernels.quantize(x, None, is_mixed=False, dtype=FP8, limit=LIMITS[FP8])
    expected, expected_scale = quantize_by_torch(x, None, is_mixed=False, dtype=FP8)
    torch.testing.assert_close(scale, expected_scale, atol=0, rtol=0.01)
    torch.testing.assert_close(rows.float(), expected.float(), atol=0.002, rtol=0.13)
    turned = kernels.transpose(rows.view(torch.int8))
    assert torch.equal(turned, rows.view(torch.int8).T), "a transposed weight has other numbers"


def _assert_near(found: Tensor, expected: Tensor) -> None:
    """Allow what 16 bits round away; sums that cancel are compared with the largest one."""
    error = (found.float() - expected.float()).abs().max()
    largest = expected.float().abs().max()
    assert error <= largest / 100, f"a product is off by {error:.3g} of {largest:.3g}"


def _try_fp8(device: torch.device) -> None:
    """Compare torch's product of fp8 with the same in float32."""
    x = torch.linspace(-3, 2, 19 * 64, device=device).sin_().view(19, 64)
    rows, scale = quantize_by_torch(x, None, is_mixed=False, dtype=FP8)
    weight, column_scale = rows[:16], scale[:16, 0]
    found = _multiply_fp8(rows, scale, weight, column_scale, None, torch.bfloat16)
    expected = multiply_by_torch(rows, scale, weight, column_scale, None, torch.bfloat16)
    _assert_near(found, expected)
