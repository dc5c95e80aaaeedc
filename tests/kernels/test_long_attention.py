from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from glmtune.kernels import long_attention
from glmtune.kernels.bucketed_attention import attend_by_buckets
from glmtune.kernels.long_attention import attend_with_long, padded_length
from glmtune.kernels.pack_layout import PackLayout
from glmtune.kernels.packed_attention import without_cudnn
from glmtune.kernels.varlen_attention import attend_by_varlen

OTHERS = partial(attend_by_buckets, scaling=0.3)
has_hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def by_torch(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_long_examples_apart_give_what_all_give_together(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, sum(lengths), 8), (1, 2, sum(lengths), 8), (1, 2, sum(lengths), 8))
    q, k, v = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    qkv = (q, k, v)
    layout = PackLayout(lengths)
    expected = OTHERS(*qkv, layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_attention, "LONG", 20)
        output = attend_with_long(*qkv, layout, scaling=0.3, others=OTHERS, attend=by_torch)

    torch.testing.assert_close(output, expected)
    weights = torch.randn(output.shape, generator=generator)
    ours = torch.autograd.grad((output * weights).sum(), qkv)
    theirs = torch.autograd.grad((expected * weights).sum(), qkv)
    torch.testing.assert_close(ours, theirs)


def test_a_kernel_sees_eight_lengths_for_each_power_of_two_and_little_padding() -> None:
    padded = [padded_length(length) for length in range(2049, 8193)]

    assert len(set(padded)) == 16
    assert all(
        length <= wide <= 1.125 * length
        for length, wide in zip(range(2049, 8193), padded, strict=True)
    )
    assert padded_length(2048) == 2048


def test_packs_of_short_examples_and_prefixes_have_no_calls_apart() -> None:
    assert long_attention.takes(PackLayout([5, 2048]))
    assert not long_attention.takes(PackLayout([5, 2047]))
    assert not long_attention.takes(PackLayout([5, 2048], [2, 0]))


def test_a_cpu_has_no_such_kernel() -> None:
    assert not long_attention.works(torch.device("cpu"), torch.bfloat16, 128)


@pytest.mark.skipif(not has_hopper, reason="needs a GPU of compute capability 9.0 or later")
def test_long_examples_on_cuda_give_what_varlen_gives() -> None:
    device, lengths = torch.device("cuda"), [30, 5000, 20, 40, 2048]
    shapes = [(1, heads, sum(lengths), 128) for heads in (32, 2, 2)]
    q, k, v = (torch.randn(s, device=device).bfloat16().requires_grad_() for s in shapes)
    qkv = (q, k, v)
    layout = PackLayout(lengths)
    assert long_attention.works(device, torch.bfloat16, 128)
    others = partial(attend_by_varlen, scaling=None)
    expected = others(*qkv, layout)
    with without_cudnn():
        output = attend_with_long(*qkv, layout, scaling=None, others=others)
        ours = torch.autograd.grad(output.float().square().sum(), qkv)

    theirs = torch.autograd.grad(expected.float().square().sum(), qkv)
    torch.testing.assert_close(output, expected, atol=0.02, rtol=0.02)
    for our, their in zip(ours, theirs, strict=True):
        assert (our - their).float().norm() < 0.01 * their.float().norm()
