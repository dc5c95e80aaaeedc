import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.attention_cases import HEAD_DIM, HEADS, Case, cases
from torch import Tensor
from torch.nn import functional as F

from glmtune.kernels import pack_layout, varlen_attention
from glmtune.kernels.pack_layout import PackLayout, VarlenCall
from glmtune.kernels.varlen_attention import attend_by_varlen

CPU = torch.device("cpu")


def by_plain_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: VarlenCall,
    scaling: float | None,
    window: tuple[int, int],
) -> Tensor:
    """What torch's kernel computes: causality is aligned to the bottom right."""
    lengths = [ends.diff().tolist() for ends in (call.query_ends, call.key_ends)]
    assert call.query_ends.dtype == call.key_ends.dtype == torch.int32
    assert [max(each) for each in lengths] == [call.longest_query, call.longest_key]
    assert min(map(min, lengths)) > 0
    outputs = []
    parts = zip(
        query.split(lengths[0]), key.split(lengths[1]), value.split(lengths[1]), strict=True
    )
    for q, k, v in parts:
        distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
        may_attend = torch.ones_like(distance, dtype=torch.bool)
        if window[1] == 0:
            may_attend = distance >= 0
            if window[0] >= 0:
                may_attend &= distance <= window[0]
        one_q, one_k, one_v = (each.transpose(0, 1)[None] for each in (q, k, v))
        attended = F.scaled_dot_product_attention(
            one_q, one_k, one_v, attn_mask=may_attend, scale=scaling, enable_gqa=True
        )
        outputs.append(attended[0].transpose(0, 1))
    return torch.cat(outputs)


@settings(max_examples=30, deadline=None)
@given(case=cases(), limit=st.sampled_from((2**31, 300 * HEADS * HEAD_DIM)))
def test_the_calls_give_what_the_examples_give_one_by_one(case: Case, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_layout, "BUFFER_NUMEL", limit)  # of 300 tokens: two examples a call
        output = attend_by_varlen(
            *case.qkv, case.layout, scaling=0.3, virtual=case.virtual, varlen=by_plain_torch
        )

    case.check(output)


def test_a_causal_pack_takes_one_call_on_the_tensors_as_they_are() -> None:
    layout = PackLayout([3, 1, 4])
    calls, places = layout.varlen_calls(CPU, 0, 4096)

    [call] = calls
    assert places is None
    assert (call.queries, call.keys) == (slice(0, 8), slice(0, 8))
    assert call.query_ends.tolist() == call.key_ends.tolist() == [0, 3, 4, 8]
    assert call.longest_query == call.longest_key == layout.longest == 4
    assert layout.varlen_calls(CPU, 0, 4096)[0] is calls  # the same for every layer


def test_prefixes_and_virtual_tokens_take_two_calls_without_a_mask() -> None:
    calls, _ = PackLayout([4, 3], [2, 2]).varlen_calls(CPU, 1, 4096)

    first, rest = calls
    assert (first.is_causal, rest.is_causal) == (False, True)
    assert (first.queries.tolist(), first.keys.tolist()) == ([0, 1, 4, 5], [0, 1, 2, 0, 5, 6])
    assert rest.queries.tolist() == [2, 3, 6]
    assert rest.keys.tolist() == [0, 1, 2, 3, 4, 0, 5, 6, 7]
    assert rest.query_ends.tolist() == [0, 2, 3]
    assert rest.key_ends.tolist() == [0, 5, 9]


def test_no_call_has_buffers_that_its_kernel_cannot_address() -> None:
    lengths, width = [4096] * 300, 32 * 128
    calls, _ = PackLayout(lengths).varlen_calls(CPU, 0, width)

    assert len(calls) > 1
    assert sum(len(call.query_ends) - 1 for call in calls) == 300
    for call in calls:
        rows = int(call.query_ends[-1]) + 128 * (len(call.query_ends) - 1)
        assert rows * width < 2**31


def test_a_window_is_the_window_of_the_kernel() -> None:
    query = torch.randn(1, HEADS, 9, HEAD_DIM)
    seen = []

    def note(*given: object) -> Tensor:
        seen.append(given[-1])
        return by_plain_torch(*given)  # type: ignore[arg-type]

    output = attend_by_varlen(
        query, query, query, PackLayout([6, 3]), scaling=None, window=4, varlen=note
    )

    assert seen == [(3, 0)]  # the token itself and three before it
    seen_by_last = query[:, :, 2:6]
    expected = F.scaled_dot_product_attention(query[:, :, 5:6], seen_by_last, seen_by_last)
    torch.testing.assert_close(output[0, 5], expected[0, :, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("takes_fewer", "heads"), [(True, 2), (False, 4)])
def test_without_an_argument_for_them_keys_are_repeated_only_where_the_kernel_wants_it(
    takes_fewer: bool, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, object, object]] = []

    def of_torch_2_11(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor,
        max_q: int, max_k: int, *, scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:  # fmt: skip
        given.append((key.size(1), window_size, (max_q, max_k)))
        if key.size(1) < query.size(1) and not takes_fewer:
            raise RuntimeError("the number of heads differs")
        call = VarlenCall(slice(0), slice(0), cu_seq_q, cu_seq_k, max_q, max_k, True)
        return by_plain_torch(query, key, value, call, scale, window_size)

    monkeypatch.setattr(varlen_attention, "_torch_varlen", lambda: of_torch_2_11)
    trials = (varlen_attention._takes_gqa_argument, varlen_attention._takes_fewer_keys)
    for trial in trials:
        trial.cache_clear()
    try:
        query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
        output = attend_by_varlen(query, key, key, PackLayout([3, 2]), scaling=None)
    finally:
        for trial in trials:
            trial.cache_clear()

    assert given[-1] == (heads, (-1, 0), (3, 3))
    first, repeated = query[:, :, :3], key[:, :, :3].repeat_interleave(2, dim=1)
    expected = F.scaled_dot_product_attention(first, repeated, repeated, is_causal=True)
    torch.testing.assert_close(output[:, :3], expected.transpose(1, 2))


def test_the_gradient_of_a_pack_is_not_copied_to_give_it_its_batch_dimension() -> None:
    query = torch.randn(1, HEADS, 9, HEAD_DIM, requires_grad=True)

    output = attend_by_varlen(
        query, query, query, PackLayout([6, 3]), scaling=None, varlen=lambda query, *_: query
    )

    names, node = [], output.grad_fn
    while node is not None:
        names.append(node.name())
        node = node.next_functions[0][0] if node.next_functions else None
    views = {"UnsqueezeBackward0", "TransposeBackward0", "SqueezeBackward1"}
    assert names[-1] == "torch::autograd::AccumulateGrad"
    assert set(names[:-1]) <= views


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "why"),
    [
        ("meta", torch.float32, 8, "needs 16 bits"),
        ("meta", torch.bfloat16, 12, "multiple of 8"),
        ("cpu", torch.bfloat16, 8, "variable-length attention failed"),
    ],
)
def test_what_cannot_use_the_kernel_says_so_once(
    device: str, dtype: torch.dtype, head_dim: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    varlen_attention._why_not.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert not varlen_attention.works(torch.device(device), dtype, head_dim)

    [line] = [record.getMessage() for record in caplog.records]
    assert why in line
    assert "one call per length" in line


def test_a_gpu_before_ampere_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    why = varlen_attention._find_obstacle(torch.device("cuda:0"), torch.float16, 128)

    assert why == "variable-length attention needs compute capability 8.0, not 7.5"
