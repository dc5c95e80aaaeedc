"""On a GPU each kernel gives what its expression in torch gives, at the shapes of ChatGLM3-6B.

    PYTHONPATH=src python -m pytest --noconftest -o filterwarnings= -q tests/kernels/test_on_cuda.py

Nothing else of the tests is needed. It takes about 8 GiB and a minute.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import glmtune.kernels.packed_attention  # registers attention over packs
from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.kernels import fused, lora_product, rotary, varlen_attention
from glmtune.kernels.pack_layout import PackLayout
from glmtune.kernels.packed_attention import without_cudnn
from glmtune.kernels.rotary import Heads
from glmtune.methods import half_lora, lora
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.objective.next_token import next_token_loss
from glmtune.recipe.methods import LoraSection
from glmtune.template.base import Example

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs a GPU of NVIDIA"),
]
CUDA = torch.device("cuda", 0)
TOKENS, HIDDEN, FFN, HEAD_DIM = 8192, 4096, 13696, 128
HEADS = Heads(32, 2, is_grouped=True)
FUSED = (HEADS.queries + 2 * HEADS.keys) * HEAD_DIM
LENGTHS = [511, 128, 1, 64, 2048, 300, 77, 1000, 2049, 2014]  # as many as TOKENS


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device=CUDA).to(dtype)


def check_close(found: Tensor, expected: Tensor, share: float = 2**-7) -> None:
    """Compare by the length of the difference, and refuse what is not a number."""
    difference = (found.double() - expected.double()).norm() / expected.double().norm()
    assert difference.item() <= share, f"they differ by {difference.item():.2%}"


def both(work: Callable[[], list[Tensor]], way: Any, name: str, slow: Any) -> list[list[Tensor]]:
    """Do the same with an attribute of a module as it is, and then with another value of it."""
    torch.manual_seed(0)
    fast = work()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(way, name, slow)
        torch.manual_seed(0)
        return [fast, work()]


def never(device: torch.device, dtype: torch.dtype) -> bool:
    return False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_swiglu_on_cuda_is_that_of_torch(dtype: torch.dtype) -> None:
    def work() -> list[Tensor]:
        x = randn(1, TOKENS, 2 * FFN, dtype=dtype).requires_grad_()
        of_y = randn(1, TOKENS, FFN, dtype=dtype)
        y = fused.swiglu(x * 1)
        return [y.detach(), *torch.autograd.grad(y, x, of_y)]

    assert fused._has_kernels(CUDA, dtype)
    for found, expected in zip(*both(work, fused, "_has_kernels", never), strict=True):
        check_close(found, expected, 2**-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pairs", [HEAD_DIM // 4, HEAD_DIM // 2])
def test_rotation_on_cuda_is_that_of_torch(dtype: torch.dtype, pairs: int) -> None:
    def work() -> list[Tensor]:
        x = randn(1, TOKENS, FUSED, dtype=dtype).requires_grad_()
        angles = 1000 * torch.rand(1, TOKENS, pairs, device=CUDA)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        parts = rotary.split_and_rotate(x, cos, sin, HEADS)
        of_parts = [randn(*part.shape, dtype=part.dtype) for part in parts]
        return [*(part.detach() for part in parts), *torch.autograd.grad(parts, x, of_parts)]

    assert rotary._has_kernel(CUDA, dtype)
    for found, expected in zip(*both(work, rotary, "_has_kernel", never), strict=True):
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_rotation_on_cuda_takes_padded_batches_of_any_number_of_heads() -> None:
    heads = Heads(3, 3, is_grouped=False)

    def work() -> list[Tensor]:
        x = randn(5, 33, 9 * 96).requires_grad_()
        angles = torch.rand(1, 33, 24, device=CUDA)
        cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        parts = rotary.split_and_rotate(x, cos, sin, heads)
        of_parts = [randn(*part.shape, dtype=part.dtype) for part in parts]
        return [*(part.detach() for part in parts), *torch.autograd.grad(parts, x, of_parts)]

    for found, expected in zip(*both(work, rotary, "_has_kernel", never), strict=True):
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_attention_over_packs_on_cuda_is_that_of_each_example_in_float32() -> None:
    torch.manual_seed(0)
    shapes = [(1, heads, TOKENS, HEAD_DIM) for heads in (32, 2, 2)]
    given = [randn(*shape).requires_grad_() for shape in shapes]
    wide = [each.detach().float().requires_grad_() for each in given]
    weights = randn(1, TOKENS, 32, HEAD_DIM)
    assert varlen_attention.works(CUDA, torch.bfloat16, HEAD_DIM)

    query, key, value = given
    layout = PackLayout(LENGTHS)
    found = varlen_attention.attend_by_varlen(query, key, value, layout, scaling=None)
    parts = zip(*(each.split(LENGTHS, dim=2) for each in wide), strict=True)
    alone = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        for q, k, v in parts
    ]
    expected = torch.cat(alone, dim=2).transpose(1, 2)

    check_close(found, expected)
    of_found = torch.autograd.grad(found, given, weights)
    of_expected = torch.autograd.grad(expected, wide, weights.float())
    for one, other in zip(of_found, of_expected, strict=True):
        check_close(one, other, 2**-6)


def test_attention_on_cuda_is_the_same_with_keys_as_they_are_and_repeated() -> None:
    def attend(repeats: int) -> list[Tensor]:
        torch.manual_seed(0)
        shapes = [(1, heads, TOKENS, HEAD_DIM) for heads in (32, 2, 2)]
        query, key, value = given = [randn(*shape).requires_grad_() for shape in shapes]
        key, value = (each.repeat_interleave(repeats, dim=1) for each in (key, value))
        layout = PackLayout(LENGTHS)
        found = varlen_attention.attend_by_varlen(query, key, value, layout, scaling=None)
        return [found, *torch.autograd.grad(found, given, randn(*found.shape))]

    for found, expected in zip(attend(1), attend(16), strict=True):
        check_close(found, expected)


@pytest.mark.parametrize(
    ("width_in", "width_out", "rank"), [(HIDDEN, FUSED, 8), (HIDDEN, 2 * FFN, 16), (FFN, HIDDEN, 5)]
)
@pytest.mark.parametrize("is_plain", [True, False])
def test_lora_in_16_bits_on_cuda_is_that_of_float32(
    width_in: int, width_out: int, rank: int, is_plain: bool
) -> None:
    torch.manual_seed(0)
    x = randn(1, TOKENS, width_in).requires_grad_()
    weight, bias = randn(width_out, width_in) / width_in**0.5, randn(width_out)
    a = (torch.randn(rank, width_in, device=CUDA) / width_in**0.5).requires_grad_()
    b = (torch.randn(width_out, rank, device=CUDA) / rank**0.5).requires_grad_()
    weights = randn(1, TOKENS, width_out)

    if is_plain:
        found = lora_product.lora_linear(x, weight, bias, a, b, 2.0)
    else:
        found = lora_product.add_update(F.linear(x, weight, bias), x, a, b, 2.0)
    of_found = torch.autograd.grad(found, (x, a, b), weights)
    update = F.linear(F.linear(x.float(), a), b) * 2.0
    expected = (F.linear(x, weight, bias) + update).bfloat16()
    of_expected = torch.autograd.grad(expected, (x, a, b), weights)

    assert [each.dtype for each in of_found] == [torch.bfloat16, torch.float32, torch.float32]
    for one, other in zip((found, *of_found), (expected, *of_expected), strict=True):
        check_close(one, other)


@pytest.fixture(scope="module")
def model() -> Any:
    """One layer of ChatGLM3-6B with LoRA on every linear layer."""
    torch.manual_seed(0)
    config = ChatGLMConfig(
        num_layers=1, hidden_size=HIDDEN, ffn_hidden_size=FFN, kv_channels=HEAD_DIM,
        num_attention_heads=32, multi_query_attention=True, multi_query_group_num=2,
        add_qkv_bias=True, padded_vocab_size=65024, dtype=torch.bfloat16,
    )  # fmt: skip
    with CUDA:
        made: Any = ChatGLMForConditionalGeneration._from_config(
            config, attn_implementation=glmtune.kernels.packed_attention.NAME
        )
    section = LoraSection(r=8, target_modules="all-linear")
    tuned = lora.attach(made.bfloat16(), section)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02)
    return tuned.train()


@pytest.fixture(scope="module")
def part() -> MicroBatch:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 60000, (n,), generator=generator).tolist() for n in LENGTHS]
    return pack_examples([Example(row, row) for row in rows], range(len(rows))).to(CUDA)


def learn(model: Any, part: MicroBatch) -> list[Tensor]:
    """The loss of a pack, and its gradients."""
    model.zero_grad(set_to_none=True)
    with without_cudnn():
        loss = next_token_loss(model, part) / TOKENS
        loss.backward()  # type: ignore[no-untyped-call]
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@contextmanager
def refusing_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("recompute", [False, True])
def test_a_layer_on_cuda_learns_the_same_by_torch_and_by_kernels_and_never_waits(
    model: Any, part: MicroBatch, recompute: bool
) -> None:
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    learn(model, part)  # tries the kernels, for which it waits
    with refusing_waits():
        found = learn(model, part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_has_kernels", never)
        patch.setattr(rotary, "_has_kernel", never)
        patch.setattr(half_lora, "LEFT_TO_PEFT", ("cpu", "cuda"))
        expected = learn(model, part)
    if recompute:
        model.activation_checkpointing_disable()

    assert len(found) == len(expected) == 1 + 2 * 4
    check_close(found[0], expected[0], 1e-3)
    for one, other in zip(found[1:], expected[1:], strict=True):
        check_close(one, other, 0.03)
