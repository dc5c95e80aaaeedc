"""Heads of the fused projection, rotated, in Triton: one kernel forward and one backward.

    forward     [queries | keys | values]  ->  queries rotated, keys rotated, values
    backward    their three gradients      ->  one gradient of [queries | keys | values]

torch copies queries and keys three times in turning them, and concatenates their gradients with
that of the values. Here each number is read once and written once. What torch rounds to 16 bits is
rounded here, too, so the numbers are those of `glmtune.kernels.rotary`, which chooses these kernels
where a probe works; importing this module needs triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS = 4  # of a token at a time


@triton.jit(do_not_specialize=["angle_rows"])  # or it is compiled again for another length
def _turn(
    fused, query, key, value, cos, sin, angle_rows,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, ANGLES: tl.constexpr,
    IS_GROUPED: tl.constexpr, IS_BACKWARD: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # rows times channels may pass 2**31
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)  # among all of the fused tensor
    channel, pair = tl.arange(0, 2 * PAIRS)[None, :], tl.arange(0, PAIRS)
    if IS_GROUPED:  # [all queries | all keys | all values]
        is_query, is_key = head < QUERIES, (head >= QUERIES) & (head < QUERIES + KEYS)
        is_value = (head >= QUERIES + KEYS) & (head < QUERIES + 2 * KEYS)
        of_query, of_key, of_value = head, head - QUERIES, head - QUERIES - KEYS
    else:  # [query, key, value] head by head
        inside, index = head < 3 * QUERIES, head // 3
        is_query, is_key = inside & (head % 3 == 0), inside & (head % 3 == 1)
        is_value = inside & (head % 3 == 2)
        of_query, of_key, of_value = index, index, index
    is_channel = channel < SIZE
    is_fused = (is_query | is_key | is_value)[:, None] & is_channel
    is_query, is_key = is_query[:, None] & is_channel, is_key[:, None] & is_channel
    is_kept = is_value[:, None]
    is_value = is_kept & is_channel
    at_fused = fused + (row * (QUERIES + 2 * KEYS) + head[:, None]) * SIZE + channel
    at_query = query + (row * QUERIES + of_query[:, None]) * SIZE + channel
    at_key = key + (row * KEYS + of_key[:, None]) * SIZE + channel
    at_value = value + (row * KEYS + of_value[:, None]) * SIZE + channel
    if IS_BACKWARD:  # each number is in one of the three
        given = tl.load(at_query, mask=is_query, other=0.0)
        given += tl.load(at_key, mask=is_key, other=0.0)
        given += tl.load(at_value, mask=is_value, other=0.0)
    else:
        given = tl.load(at_fused, mask=is_fused, other=0.0)
    kind = given.dtype
    angle = (row % angle_rows) * ANGLES + pair
    c = tl.load(cos + angle, mask=pair < ANGLES, other=1.0).to(tl.float32)[None, :]
    s = tl.load(sin + angle, mask=pair < ANGLES, other=0.0).to(tl.float32)[None, :]
    if IS_BACKWARD:
        s = -s
    first, second = tl.split(tl.reshape(given, (HEADS, PAIRS, 2)))
    x, y = first.to(tl.float32), second.to(tl.float32)
    turned_x = ((x * c).to(kind).to(tl.float32) - (y * s).to(kind).to(tl.float32)).to(kind)
    turned_y = ((y * c).to(kind).to(tl.float32) + (x * s).to(kind).to(tl.float32)).to(kind)
    is_kept = is_kept | (pair >= ANGLES)[None, :]
    turned_x, turned_y = tl.where(is_kept, first, turned_x), tl.where(is_kept, second, turned_y)
    turned = tl.reshape(tl.join(turned_x, turned_y), (HEADS, 2 * PAIRS))
    if IS_BACKWARD:
        tl.store(at_fused, turned, mask=is_fused)
    else:
        tl.store(at_query, turned, mask=is_query)
        tl.store(at_key, turned, mask=is_key)
        tl.store(at_value, turned, mask=is_value)


def _launch(
    fused: Tensor,
    parts: tuple[Tensor, Tensor, Tensor],
    cos: Tensor,
    sin: Tensor,
    *,
    is_grouped: bool,
    is_backward: bool,
) -> None:
    """Turn (batch, seq, width) into three of (batch, seq, heads, size), or the other way around."""
    batch, seq, _ = fused.shape
    _, _, queries, size = parts[0].shape
    keys = parts[1].size(2)
    if not batch * seq:
        return
    with torch.cuda.device_of(fused):
        _turn[batch * seq, triton.cdiv(queries + 2 * keys, HEADS)](
            fused, *parts, cos, sin, cos.size(0) * cos.size(1),
            queries, keys, size, cos.size(2),
            is_grouped, is_backward, HEADS, triton.next_power_of_2(size) // 2,
            num_warps=2,
            enable_fp_fusion=False,  # a fused product and sum is rounded once, torch's twice
        )  # fmt: skip


def split_and_rotate(
    fused: Tensor, cos: Tensor, sin: Tensor, queries: int, keys: int, is_grouped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Split a contiguous (batch, seq, width) into heads, and rotate queries and keys.

    Args:
        fused: its width is that of the heads.
        cos, sin: contiguous, (1 or batch, seq, pairs), in the dtype of `fused`.
        queries, keys: number of heads; there are as many values as keys.
        is_grouped: whether it is [all queries | all keys | all values].

    Returns:
        Contiguous (batch, seq, heads, size) for each of the three.
    """
    parts = _heads_of(fused, queries, keys)
    _launch(fused, parts, cos, sin, is_grouped=is_grouped, is_backward=False)
    return parts


def rotate_back_and_join(
    of_query: Tensor, of_key: Tensor, of_value: Tensor, cos: Tensor, sin: Tensor, is_grouped: bool
) -> Tensor:
    """Make the gradient of the fused tensor from those of the heads.

    Args:
        of_query, of_key, of_value: contiguous (batch, seq, heads, size).
        cos, sin, is_grouped: as for `split_and_rotate`.
    """
    of_fused = _fused_of(of_query, of_key)
    parts = (of_query, of_key, of_value)
    _launch(of_fused, parts, cos, sin, is_grouped=is_grouped, is_backward=True)
    return of_fused


def _heads_of(fused: Tensor, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, seq, width = fused.shape
    size = width // (queries + 2 * keys)
    query, key, value = (
        fused.new_empty(batch, seq, heads, size) for heads in (queries, keys, keys)
    )
    return query, key, value


def _fused_of(query: Tensor, key: Tensor) -> Tensor:
    batch, seq, queries, size = query.shape
    return query.new_empty(batch, seq, (queries + 2 * key.size(2)) * size)


# For graphs of torch.compile; a call of an operator takes several times as long as a launch.
split_operator = torch.library.custom_op(
    "glmtune::split_and_rotate", split_and_rotate, mutates_args=()
)
join_operator = torch.library.custom_op(
    "glmtune::rotate_back_and_join", rotate_back_and_join, mutates_args=()
)


@split_operator.register_fake
def _(
    fused: Tensor, cos: Tensor, sin: Tensor, queries: int, keys: int, is_grouped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _heads_of(fused, queries, keys)


@join_operator.register_fake
def _(
    of_query: Tensor, of_key: Tensor, of_value: Tensor, cos: Tensor, sin: Tensor, is_grouped: bool
) -> Tensor:
    return _fused_of(of_query, of_key)
