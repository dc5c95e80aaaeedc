"""A decode step's keys and values, and its attention, in Triton for GPUs.

    store     the key and value of one token a row go to their places: one kernel instead of two
    attend    each row's token to its slot, up to its place and no further, so that a long room
              costs nothing; a slot is split among programs, whose parts are combined by their sums
              of exponentials
    rotate_store_attend    all of that for ChatGLM's fused projection: the program that has the
              part of the new token stores it, and takes it from registers

    attention = sum over parts of  weight * output,   weight = softmax over parts of log-sum-exp

Few rows would leave most of a GPU idle without the split. `glmtune.kernels.decode_attention`
chooses these kernels where a probe works; importing this module needs triton.

Source of the split: https://pytorch.org/blog/flash-decoding/
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

KEYS = 64  # read at a time
PROGRAMS = 256  # about two for each multiprocessor of a large GPU
MOST_PARTS = 32


@triton.jit
def _store(
    new_key, new_value, slot, place, key, value,
    key_row, key_head, value_row, value_head, slot_stride, head_stride,
    DIM: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, DIM)
    k = tl.load(new_key + row * key_row + head * key_head + channel)
    v = tl.load(new_value + row * value_row + head * value_head + channel)
    at = tl.load(slot + row) * slot_stride + head * head_stride + tl.load(place + row) * DIM
    tl.store(key + at + channel, k)
    tl.store(value + at + channel, v)


@triton.jit
def _attend_to_cached(
    q, key, value, of_slot, first, last, scale,
    PADDED: tl.constexpr, DIM: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, DIM)
    largest = tl.full((PADDED,), -float("inf"), tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    mixed = tl.zeros((PADDED, DIM), tl.float32)
    for start in range(first, last, KEYS):
        token = start + tl.arange(0, KEYS)
        is_there = token < last
        cell = of_slot + token[:, None] * DIM + channel[None, :]
        k = tl.load(key + cell, mask=is_there[:, None], other=0.0)
        v = tl.load(value + cell, mask=is_there[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(is_there[None, :], scores, -float("inf"))
        now = tl.maximum(largest, tl.max(scores, 1))
        weight = tl.exp(scores - now[:, None])
        shrink = tl.exp(largest - now)
        total = total * shrink + tl.sum(weight, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        largest = now
    return largest, total, mixed


@triton.jit
def _finish(output, exponents, part_of, is_member, largest, total, mixed, DIM: tl.constexpr):
    total = tl.where(total == 0, 1.0, total)  # of an empty part, whose `largest` is -inf
    at = part_of[:, None] * DIM + tl.arange(0, DIM)[None, :]
    mixed = (mixed / total[:, None]).to(output.dtype.element_ty)
    tl.store(output + at, mixed, mask=is_member[:, None])
    tl.store(exponents + part_of, largest + tl.log(total), mask=is_member)


@triton.jit
def _attend(
    query, key, value, place, output, exponents, scale,
    window, query_row, query_head, slot_stride, head_stride,
    PARTS: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    row, kv_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    end = (tl.load(place + row) + 1).to(tl.int32)
    begin = tl.maximum(end - window, 0)
    span = tl.cdiv(tl.cdiv(end - begin, PARTS), KEYS) * KEYS
    first = begin + part * span
    last = tl.minimum(first + span, end)
    member = tl.arange(0, PADDED)
    is_member, head = member < GROUP, kv_head * GROUP + member
    at = row * query_row + head[:, None] * query_head + tl.arange(0, DIM)[None, :]
    q = tl.load(query + at, mask=is_member[:, None], other=0.0)
    of_slot = row * slot_stride + kv_head * head_stride
    largest, total, mixed = _attend_to_cached(
        q, key, value, of_slot, first, last, scale, PADDED, DIM, KEYS
    )
    part_of = (row * tl.num_programs(1) * GROUP + head) * PARTS + part
    _finish(output, exponents, part_of, is_member, largest, total, mixed, DIM)


@triton.jit
def _rotated(at, mask, cos, sin, channel, PAIRS: tl.constexpr):
    own = tl.load(at, mask=mask, other=0.0)
    kind = own.dtype
    is_rotated = channel < 2 * PAIRS
    other = tl.load(at + ((channel ^ 1) - channel), mask=mask & is_rotated, other=0.0)
    c = tl.load(cos + channel // 2, mask=is_rotated, other=1.0).to(tl.float32)
    s = tl.load(sin + channel // 2, mask=is_rotated, other=0.0).to(tl.float32)
    straight = (own.to(tl.float32) * c).to(kind).to(tl.float32)  # rounded as torch rounds it
    crossed = (other.to(tl.float32) * s).to(kind).to(tl.float32)
    turned = tl.where(channel % 2 == 0, straight - crossed, straight + crossed).to(kind)
    return tl.where(is_rotated, turned, own)


@triton.jit
def _rotate_store_attend(
    fused, cos, sin, slot, place, key, value, output, exponents, scale,
    fused_row, slot_stride, head_stride,
    PARTS: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr,
    KEYS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row, kv_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    end = tl.load(place + row).to(tl.int32)  # of what is cached, which the new token is not yet
    span = tl.cdiv(tl.cdiv(end + 1, PARTS), KEYS) * KEYS
    first = part * span
    last = tl.minimum(first + span, end)
    has_new = (first <= end) & (end < first + span)
    member, channel = tl.arange(0, PADDED), tl.arange(0, DIM)
    is_member, head = member < GROUP, kv_head * GROUP + member
    cos, sin = cos + row * PAIRS, sin + row * PAIRS
    at = fused + row * fused_row + head[:, None] * DIM + channel[None, :]
    q = _rotated(at, is_member[:, None], cos, sin, channel[None, :], PAIRS)
    at_new = fused + row * fused_row + (kv_heads * GROUP + kv_head) * DIM + channel
    new_k = _rotated(at_new, channel < DIM, cos, sin, channel, PAIRS)
    new_v = tl.load(at_new + kv_heads * DIM)
    if has_new:
        cell = tl.load(slot + row) * slot_stride + kv_head * head_stride + end * DIM + channel
        tl.store(key + cell, new_k)
        tl.store(value + cell, new_v)
    of_slot = row * slot_stride + kv_head * head_stride
    largest, total, mixed = _attend_to_cached(
        q, key, value, of_slot, first, last, scale, PADDED, DIM, KEYS
    )
    score = tl.sum(q.to(tl.float32) * new_k.to(tl.float32)[None, :], 1) * scale
    score = tl.where(has_new, score, -float("inf"))
    now = tl.maximum(largest, score)
    safe = tl.where(now == -float("inf"), 0.0, now)  # of an empty part
    weight, shrink = tl.exp(score - safe), tl.exp(largest - safe)
    total = total * shrink + weight
    mixed = mixed * shrink[:, None] + weight[:, None] * new_v.to(tl.float32)[None, :]
    part_of = (row * kv_heads * GROUP + head) * PARTS + part
    _finish(output, exponents, part_of, is_member, now, total, mixed, DIM)


@triton.jit
def _combine(parts, exponents, output, PARTS: tl.constexpr, DIM: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # of rows times heads
    part, channel = tl.arange(0, PARTS), tl.arange(0, DIM)
    exponent = tl.load(exponents + row * PARTS + part)
    weight = tl.exp(exponent - tl.max(exponent, 0))  # the first part is never empty
    weight = weight / tl.sum(weight, 0)
    each = tl.load(parts + (row * PARTS + part)[:, None] * DIM + channel[None, :])
    mixed = tl.sum(each * weight[:, None], 0)
    tl.store(output + row * DIM + channel, mixed.to(output.dtype.element_ty))


@torch.library.custom_op("glmtune::store_decoded", mutates_args=("key", "value"))
def store(
    new_key: Tensor, new_value: Tensor, slot: Tensor, place: Tensor, key: Tensor, value: Tensor
) -> None:
    """Store the key and value of one token a row.

    Args:
        new_key, new_value: (rows, kv_heads, head_dim), the last dimension contiguous.
        slot, place: int64, (rows,): where they go.
        key, value: (slots, kv_heads, room, head_dim), contiguous; `head_dim` a power of two.
    """
    rows, kv_heads, head_dim = new_key.shape
    with torch.cuda.device_of(key):
        _store[rows, kv_heads](
            new_key, new_value, slot, place, key, value,
            new_key.stride(0), new_key.stride(1), new_value.stride(0), new_value.stride(1),
            key.stride(0), key.stride(1), head_dim,
        )  # fmt: skip


@torch.library.custom_op("glmtune::attend_decoding", mutates_args=())
def attend(
    query: Tensor, key: Tensor, value: Tensor, place: Tensor, scale: float, window: int, parts: int
) -> Tensor:
    """Attend from one token of each row to its slot, up to its place.

    Args:
        query: (rows, heads, head_dim), its last dimension contiguous; `head_dim` a power of two.
        key, value: (rows or more, kv_heads, room, head_dim), contiguous.
        place: int64, (rows,).
        scale: multiplies the scores.
        window: how many tokens one attends to at most, itself included.
        parts: into how many a slot is split, a power of two; 0 chooses.

    Returns:
        (rows, heads, head_dim).
    """
    rows, heads, head_dim = query.shape
    kv_heads = key.size(1)
    group, parts = heads // kv_heads, parts or choose_parts(rows * kv_heads)
    output, mixed, exponents = _outputs(query, rows, heads, head_dim, parts)
    with torch.cuda.device_of(query):
        _attend[rows, kv_heads, parts](
            query, key, value, place, mixed, exponents, scale,
            window, query.stride(0), query.stride(1), key.stride(0), key.stride(1),
            parts, group, max(16, triton.next_power_of_2(group)), head_dim, KEYS, num_stages=2,
        )  # fmt: skip
        if parts > 1:
            _combine[(rows * heads,)](mixed, exponents, output, parts, head_dim)
    return output


def _outputs(
    like: Tensor, rows: int, heads: int, head_dim: int, parts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Make the output, and those of the parts with their exponents; a single part is the output."""
    output = like.new_empty(rows, heads, head_dim)
    mixed = output
    if parts > 1:
        mixed = like.new_empty(rows, heads, parts, head_dim, dtype=torch.float32)
    return output, mixed, like.new_empty(rows, heads, parts, dtype=torch.float32)


@attend.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, place: Tensor, scale: float, window: int, parts: int
) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("glmtune::rotate_store_attend", mutates_args=("key", "value"))
def rotate_store_attend(
    fused: Tensor, cos: Tensor, sin: Tensor, slot: Tensor, place: Tensor, key: Tensor,
    value: Tensor, scale: float, parts: int,
) -> Tensor:  # fmt: skip
    """Rotate queries and keys of one token a row, store keys and values, and attend.

    Args:
        fused: (rows, (heads + 2 * kv_heads) * head_dim): all queries, all keys, all values; the
            last dimension contiguous.
        cos, sin: (rows, pairs), contiguous: of the angles of the first pairs of adjacent channels.
        slot, place: int64, (rows,): where keys and values go; row i attends to slot i.
        key, value: (rows or more, kv_heads, room, head_dim), contiguous.
        scale: multiplies the scores.
        parts: into how many a slot is split, a power of two; 0 chooses.

    Returns:
        (rows, heads, head_dim).
    """
    kv_heads, head_dim = key.size(1), key.size(3)
    rows = fused.size(0)
    heads = fused.size(1) // head_dim - 2 * kv_heads
    group, parts = heads // kv_heads, parts or choose_parts(rows * kv_heads)
    output, mixed, exponents = _outputs(fused, rows, heads, head_dim, parts)
    with torch.cuda.device_of(fused):
        _rotate_store_attend[rows, kv_heads, parts](
            fused, cos, sin, slot, place, key, value, mixed, exponents, scale,
            fused.stride(0), key.stride(0), key.stride(1), parts, group,
            max(16, triton.next_power_of_2(group)), head_dim, KEYS, cos.size(1), num_stages=2,
            enable_fp_fusion=False,  # which would skip roundings of torch
        )  # fmt: skip
        if parts > 1:
            _combine[(rows * heads,)](mixed, exponents, output, parts, head_dim)
    return output


@rotate_store_attend.register_fake
def _(
    fused: Tensor, cos: Tensor, sin: Tensor, slot: Tensor, place: Tensor, key: Tensor,
    value: Tensor, scale: float, parts: int,
) -> Tensor:  # fmt: skip
    heads = fused.size(1) // key.size(3) - 2 * key.size(1)
    return fused.new_empty(fused.size(0), heads, key.size(3))


def choose_parts(num_heads: int) -> int:
    """Choose into how many parts the slots are split, by the KV heads of all rows."""
    parts = max(1, PROGRAMS // num_heads)
    return min(MOST_PARTS, 1 << (parts.bit_length() - 1))
