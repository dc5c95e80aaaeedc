"""Rows that are decoded together attend as each of them does alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.kernels.test_varlen_attention import by_plain_torch
from torch import Tensor, nn
from torch.nn import functional as F

from glmtune.kernels.row_cache import (
    ROOM,
    RowCache,
    Slots,
    VirtualTokens,
    _attend_prompts,
    config_supports_row_cache,
    rows_attention,
)

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


class Row:
    """What a slot is fed, token by token, and what plain attention gives for it."""

    def __init__(self, first: tuple[Tensor, Tensor] | None = None) -> None:
        self.key, self.value = first or (torch.zeros(1, KV_HEADS, 0, HEAD_DIM),) * 2

    def add(self, key: Tensor, value: Tensor) -> None:
        self.key = torch.cat((self.key, key), dim=2)
        self.value = torch.cat((self.value, value), dim=2)

    def attend(self, query: Tensor, window: int | None) -> Tensor:
        seq, total = query.size(2), self.key.size(2)
        may_attend = torch.ones(seq, total, dtype=torch.bool).tril(total - seq)
        if window is not None:
            may_attend &= torch.ones(seq, total, dtype=torch.bool).triu(total - seq - window + 1)
        return F.scaled_dot_product_attention(
            query, self.key, self.value, attn_mask=may_attend, enable_gqa=True
        ).transpose(1, 2)


def step(cache: RowCache, rows: list[Row], lengths: list[int], window: int | None) -> None:
    """Feed each row so many random tokens, and compare."""
    seq, virtual = sum(lengths), cache.virtual.number
    query = torch.randn(1, HEADS, seq, HEAD_DIM)
    key, value = torch.randn(2, 1, KV_HEADS, seq, HEAD_DIM)
    fed = cache.feed([row.key.size(2) - virtual for row in rows], lengths, "cpu")
    keys, values = cache.update(key, value, 0)
    output, _ = rows_attention(
        nn.Identity(), query, keys, values, None, slots=fed["slots"], sliding_window=window
    )

    expected = []
    parts = [torch.split(tensor, lengths, dim=2) for tensor in (query, key, value)]
    for row, q, k, v in zip(rows, *parts, strict=True):
        row.add(k, v)
        expected.append(row.attend(q, window))
    torch.testing.assert_close(output, torch.cat(expected, dim=1))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("num_virtual", [0, 2])
def test_prompts_and_decoded_tokens_attend_to_their_own_row(
    window: int | None, num_virtual: int
) -> None:
    torch.manual_seed(0)
    virtual, first = None, None
    if num_virtual:
        key, value = torch.randn(2, 1, KV_HEADS, num_virtual, HEAD_DIM)
        virtual, first = VirtualTokens([(key, value)]), (key, value)
    cache = RowCache(3, virtual)
    rows = [Row(first) for _ in range(3)]

    step(cache, rows[:2], [5, 2], window)
    step(cache, rows, [1, 1, 4], window)  # two decode while the third reads its prompt
    step(cache, rows, [1, 1, 1], window)

    rows[0], _ = rows[2], rows.pop()  # the first is finished: the last takes its slot
    cache.replace(0, 2)
    step(cache, rows, [1, 1], window)


def test_the_room_of_all_slots_grows_and_keeps_what_they_hold() -> None:
    torch.manual_seed(0)
    cache, rows = RowCache(2), [Row(), Row()]

    step(cache, rows, [ROOM - 1, 3], None)
    step(cache, rows, [1, 1], None)
    step(cache, rows, [1, 1], None)

    assert cache.update(*torch.randn(2, 1, KV_HEADS, 2, HEAD_DIM), 0)[0].size(2) == 2 * ROOM


@pytest.mark.parametrize("window", [None, 3])
def test_on_an_accelerator_all_that_attention_needs_is_copied_once(window: int | None) -> None:
    """The way of a GPU, by plain torch."""
    torch.manual_seed(0)
    slots = Slots((2, 5, 0, 3), (1, 1, 4, 2))  # two decode, one begins, one goes on
    query = torch.randn(1, HEADS, 8, HEAD_DIM)
    key, value = torch.randn(2, 5, KV_HEADS, 12, HEAD_DIM)

    def attend(slots: Slots) -> Tensor:
        return rows_attention(
            nn.Identity(), query, key, value, None, slots=slots, sliding_window=window
        )[0]

    expected, copied = attend(slots), slots.on_device("cpu", 12)
    assert copied.prompts is not None
    prompts = _attend_prompts(
        query, key, value, copied.prompts, None, window, varlen=by_plain_torch
    )

    torch.testing.assert_close(attend(copied), expected)
    torch.testing.assert_close(prompts, expected[:, 2:])
    assert Slots((2, 5), (1, 1)).on_device("cpu", 12).prompts is None
    assert Slots((0,), (3,)).on_device("cpu", 12).decoding is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, True),
        ({"layer_types": ["full_attention", "sliding_attention"]}, True),
        ({"layer_types": ["full_attention", "linear_attention"]}, False),
        ({"num_kv_shared_layers": 2}, False),
        ({"attn_logit_softcapping": 50.0}, False),
    ],
)
def test_only_layers_that_cache_plain_keys_and_values_are_supported(
    config: dict[str, Any], expected: bool
) -> None:
    assert config_supports_row_cache(SimpleNamespace(**config)) is expected
