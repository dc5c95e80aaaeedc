"""Linear layers of 8-bit numbers in Triton: quantizing rows, transposing, and the int8 product.

    quantize     mix channels or multiply them by scales; largest of the row; cast: one kernel
    transpose    (out, in) -> (in, out), since products of 8 bits read both operands along the sum
    multiply     int8 @ int8 -> int32 -> times a scale per row and column, plus bias, rounded once

`glmtune.kernels.scaled_linear` has the torch expressions that they equal, and chooses them where a
probe works. Sums of int32 are exact, so the sizes of the tiles change no result: they are timed
once for each layer and order of magnitude of rows. Importing this module needs triton.
"""

# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator"

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from glmtune.kernels.channel_mixing import block_size

TILE = 128  # rows and columns that are transposed at a time
GROUP = 8  # tiles of rows that share tiles of the weight in the cache
CHANNELS, WARPS = 4096, 16  # of a row that is quantized: in registers at a time
LARGER = tl.standard._elementwise_max
TIMED_LAUNCHES = 3


@triton.jit
def _quantize(
    x,
    column_scale,
    rows,
    row_scale,
    width,
    LIMIT: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
    IS_SCALED: tl.constexpr,
    IS_MIXED: tl.constexpr,
    IS_ROUNDED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # rows times channels may pass 2**31
    block = tl.arange(0, BLOCKS)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    if IS_MIXED:  # Sylvester's matrix is -1 where i & j has an odd number of bits
        common = tl.arange(0, SIZE)[:, None] & tl.arange(0, SIZE)[None, :]
        common = common ^ (common >> 4)
        common = common ^ (common >> 2)
        common = common ^ (common >> 1)
        signs = (1 - 2 * (common & 1)).to(x.dtype.element_ty)
    largest = tl.full((BLOCKS, SIZE), 1e-30, tl.float32)
    factor = 1.0
    for is_last in tl.static_range(2):  # the second time the row is read from the cache
        for start in range(0, width, BLOCKS * SIZE):
            channel = start + block
            inside = channel < width
            value = tl.load(x + row * width + channel, mask=inside, other=0.0)
            if IS_SCALED:
                scale = tl.load(column_scale + channel, mask=inside, other=0.0)
                value = value.to(tl.float32) * scale
            if IS_MIXED:
                value = tl.dot(value, signs, input_precision="ieee")
            value = value.to(tl.float32)
            if is_last:
                value = value * factor
                if IS_ROUNDED:
                    value = (value + 12582912.0) - 12582912.0  # 1.5 * 2**23: ties to even
                at = rows + row * width + channel
                tl.store(at, value.to(rows.dtype.element_ty), mask=inside)
            else:
                size = tl.abs(value)  # a maximum may pass over NaN
                size = tl.where(size <= 3.4028234e38, size, float("inf"))
                largest = tl.maximum(largest, size)
        if not is_last:
            # What `tl.max` calls; itself it does not run in the interpreter if triton came first.
            most = tl.reduce(tl.reduce(largest, 1, LARGER), 0, LARGER)
            factor = LIMIT / most
            tl.store(row_scale + row, most / LIMIT)


@triton.jit
def _transpose(source, target, height, width, TILE: tl.constexpr):
    row = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    column = (tl.program_id(1) * TILE + tl.arange(0, TILE)).to(tl.int64)
    inside = (row < height)[:, None] & (column < width)[None, :]
    tile = tl.load(source + row[:, None] * width + column[None, :], mask=inside, other=0)
    inside = (column < width)[:, None] & (row < height)[None, :]
    tl.store(target + column[:, None] * height + row[None, :], tl.trans(tile), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def _multiply(
    rows,
    row_scale,
    weight,
    column_scale,
    bias,
    y,
    num_rows,
    num_columns,
    inner,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
):
    down, across = (num_rows + ROWS - 1) // ROWS, (num_columns + COLUMNS - 1) // COLUMNS
    first = (tl.program_id(0) // (GROUP * across)) * GROUP  # of a group of tiles of rows
    height = tl.minimum(down - first, GROUP)
    place = tl.program_id(0) % (GROUP * across)
    row = (first + place % height) * ROWS + tl.arange(0, ROWS)
    column = (place // height) * COLUMNS + tl.arange(0, COLUMNS)
    term = tl.arange(0, INNER)
    # Tiles over the edge read rows from the start again, so that no load needs a mask for them.
    left = rows + (row % num_rows).to(tl.int64)[:, None] * inner + term[None, :]
    right = weight + (column % num_columns).to(tl.int64)[None, :] * inner + term[:, None]
    sums = tl.full((ROWS, COLUMNS), 0, tl.int32)
    for start in range(0, inner, INNER):
        if IS_EVEN:
            a, b = tl.load(left), tl.load(right)
        else:
            a = tl.load(left, mask=term[None, :] < inner - start, other=0)
            b = tl.load(right, mask=term[:, None] < inner - start, other=0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        left += INNER
        right += INNER
    is_row, is_column = row < num_rows, column < num_columns
    result = sums.to(tl.float32) * tl.load(row_scale + row, mask=is_row, other=0.0)[:, None]
    if HAS_SCALE:
        result *= tl.load(column_scale + column, mask=is_column, other=0.0)[None, :]
    if HAS_BIAS:
        result += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    at = y + row.to(tl.int64)[:, None] * num_columns + column[None, :]
    tl.store(at, result.to(y.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tile that one program of the product computes, and how it is pipelined."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    @property
    def shared_bytes(self) -> int:
        """Shared memory of the operands that are in flight."""
        return (self.rows + self.columns) * self.inner * self.stages


FEW_ROWS = Tiles(16, 32, 256, 4, 4)  # up to 16, as in generation: as fast as the weight is read
SOME_ROWS = Tiles(64, 64, 128, 4, 4)  # up to 128
MANY_ROWS = (  # the first three that fit: those of Hopper and A100, and of GeForce
    Tiles(128, 256, 128, 8, 3),
    Tiles(128, 128, 128, 8, 3),
    Tiles(128, 256, 64, 8, 3),
    Tiles(128, 128, 64, 8, 4),
)
_fastest: dict[tuple[torch.device, int, int, int], Tiles] = {}


def candidates(num_rows: int, shared_bytes: int) -> tuple[Tiles, ...]:
    """Return the tiles worth trying for so many rows, with so much shared memory per block."""
    if num_rows <= FEW_ROWS.rows:
        return (FEW_ROWS,)
    if num_rows <= 2 * SOME_ROWS.rows:
        return (SOME_ROWS,)
    return tuple(t for t in MANY_ROWS if t.shared_bytes <= shared_bytes)[:3] or (SOME_ROWS,)


def quantize(
    x: Tensor, column_scale: Tensor | None, *, is_mixed: bool, dtype: torch.dtype, limit: float
) -> tuple[Tensor, Tensor]:
    """Quantize each row of a contiguous (rows, width) with a scale of its own.

    Args:
        x: floating point.
        column_scale: float32, (width,), multiplies the columns first.
        is_mixed: whether channels are mixed; needs blocks of at least 16.
        dtype: int8 or float8_e4m3fn.
        limit: the number that the largest of a row becomes.

    Returns:
        (rows, width) of `dtype`, and float32 scales, (rows, 1).
    """
    num_rows, width = x.shape
    rows = torch.empty_like(x, dtype=dtype)
    row_scale = torch.empty((num_rows, 1), dtype=torch.float32, device=x.device)
    size, blocks = _blocks(width, is_mixed)
    if num_rows:
        _quantize[(num_rows,)](
            x, x if column_scale is None else column_scale, rows, row_scale, width,
            LIMIT=limit, SIZE=size, BLOCKS=blocks, IS_SCALED=column_scale is not None,
            IS_MIXED=is_mixed, IS_ROUNDED=dtype == torch.int8, num_warps=WARPS,
        )  # fmt: skip
    return rows, row_scale


@functools.cache
def _blocks(width: int, is_mixed: bool) -> tuple[int, int]:
    """Return the channels of a block, and how many blocks are in memory at a time."""
    size = block_size(width) if is_mixed else 64
    blocks = 1 << (-(-width // size) - 1).bit_length()
    return size, min(max(16, blocks), CHANNELS // size)  # a product has 16 rows


def transpose(weight: Tensor) -> Tensor:
    """Copy a contiguous (out, in) of bytes to (in, out)."""
    height, width = weight.shape
    target = weight.new_empty(width, height)
    grid = (-(-height // TILE), -(-width // TILE))
    _transpose[grid](weight, target, height, width, TILE, num_warps=8)
    return target


def multiply(
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    column_scale: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Multiply int8 rows by an int8 weight, and by their scales.

    Args:
        rows: (rows, inner), contiguous, as the weight is.
        row_scale: float32, (rows, 1).
        weight: (columns, inner).
        column_scale: float32, (columns,).
        bias: (columns,), is added last.
        dtype: of the result.

    Returns:
        (rows, columns).
    """
    num_rows, inner = rows.shape
    num_columns = weight.size(0)
    y = rows.new_empty(num_rows, num_columns, dtype=dtype)
    if not y.numel():
        return y

    def launch(tiles: Tiles, *, is_timed: bool = False) -> None:
        scale, added = (None, None) if is_timed else (column_scale, bias)
        down, across = -(-num_rows // tiles.rows), -(-num_columns // tiles.columns)
        _multiply[(down * across,)](
            rows, row_scale, weight, row_scale if scale is None else scale,
            row_scale if added is None else added, y, num_rows, num_columns, inner,
            HAS_SCALE=scale is not None, HAS_BIAS=added is not None,
            IS_EVEN=inner % tiles.inner == 0, ROWS=tiles.rows, COLUMNS=tiles.columns,
            INNER=tiles.inner, GROUP=GROUP, num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip

    launch(_choose_tiles(rows, num_columns, lambda tiles: launch(tiles, is_timed=True)))
    return y


def chosen_tiles() -> list[tuple[tuple[int, int, int], Tiles]]:
    """Return the tiles that were timed and chosen, by columns, terms of a sum, and bits of rows."""
    return [(key[1:], tiles) for key, tiles in _fastest.items()]


def _choose_tiles(rows: Tensor, num_columns: int, launch: Callable[[Tiles], None]) -> Tiles:
    """Time the candidates once for a shape and an order of magnitude of rows.

    Args:
        rows: the left operand.
        num_columns: of the result.
        launch: computes the product without scale and bias: one kernel to compile for each.
    """
    num_rows, inner = rows.shape
    if not rows.is_cuda:  # the interpreter
        return candidates(num_rows, 0)[0]
    if num_rows <= FEW_ROWS.rows:
        return FEW_ROWS
    key = (rows.device, num_columns, inner, num_rows.bit_length())
    if key in _fastest:
        return _fastest[key]
    properties: Any = torch.cuda.get_device_properties(rows.device)
    default = properties.shared_memory_per_block  # ROCm has no larger one to opt in to
    found = candidates(num_rows, getattr(properties, "shared_memory_per_block_optin", default))
    if len(found) == 1 or torch.cuda.is_current_stream_capturing():
        return found[0]
    _fastest[key] = min(found, key=lambda tiles: _milliseconds(lambda: launch(tiles)))
    return _fastest[key]


def _milliseconds(work: Callable[[], None]) -> float:
    """Time a kernel on the current stream; infinite for one that does not fit this device."""
    try:
        work()
    except triton.TritonError:  # too much shared memory, or too many registers
        return float("inf")
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(TIMED_LAUNCHES):
        work()
    ended.record()
    ended.synchronize()
    taken: float = began.elapsed_time(ended)
    return taken
