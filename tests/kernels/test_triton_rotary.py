"""Splitting and rotating in Triton gives what torch gives, in the interpreter, without a GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glmtune.kernels import rotary
from glmtune.kernels.rotary import Heads
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration


@pytest.fixture
def kernels(interpreted: Callable[[str], Any]) -> Any:
    return interpreted("triton_rotary")


@pytest.fixture
def on_cpu_too(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "_has_kernel", lambda device, dtype: True)


def inputs(
    heads: Heads, size: int, pairs: int, batch: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    width = (heads.queries + 2 * heads.keys) * size
    angles = 6 * torch.rand(batch[1], 3, pairs)
    return torch.randn(batch[0], 3, width).to(dtype), angles.cos().to(dtype), angles.sin().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("heads", "size", "pairs", "batch"),
    [
        (Heads(4, 2, is_grouped=True), 128, 32, (1, 1)),  # half of each head, as in ChatGLM3
        (Heads(4, 1, is_grouped=True), 16, 8, (2, 2)),  # all of it, as with block positions
        (Heads(3, 3, is_grouped=False), 24, 6, (2, 1)),  # no power of two; the same positions
    ],
)
def test_values_and_gradients_are_those_of_torch(
    heads: Heads,
    size: int,
    pairs: int,
    batch: tuple[int, int],
    dtype: torch.dtype,
    on_cpu_too: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fused, cos, sin = inputs(heads, size, pairs, batch, dtype)
    fused.requires_grad_()

    found = rotary.split_and_rotate(fused, cos, sin, heads)
    monkeypatch.setattr(rotary, "_has_kernel", lambda device, dtype: False)
    expected = rotary.split_and_rotate(fused, cos, sin, heads)

    assert [each.shape for each in found] == [each.shape for each in expected]
    weights = [torch.randn_like(each) for each in expected]
    of_found = torch.autograd.grad(found, fused, weights)
    of_expected = torch.autograd.grad(expected, fused, weights)
    tolerance = {"atol": 1e-6, "rtol": 1e-6} if dtype == torch.float32 else {"atol": 0, "rtol": 0}
    torch.testing.assert_close([*found, *of_found], [*expected, *of_expected], **tolerance)


@pytest.mark.parametrize("shares_keys", [True, False])
def test_a_model_learns_the_same_by_the_kernels(
    shares_keys: bool, on_cpu_too: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ChatGLMConfig(
        num_layers=1, hidden_size=32, ffn_hidden_size=48, kv_channels=8, num_attention_heads=4,
        multi_query_attention=shares_keys, multi_query_group_num=2, padded_vocab_size=64,
    )  # fmt: skip
    model: Any = ChatGLMForConditionalGeneration(config).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.arange(5)[None]

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(input_ids=ids, block_position_ids=ids.flip(1), labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    found = gradients()
    monkeypatch.setattr(rotary, "_has_kernel", lambda device, dtype: False)
    expected = gradients()

    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_what_a_hook_has_seen_of_the_projection_stays(on_cpu_too: None) -> None:
    heads = Heads(4, 2, is_grouped=True)
    fused, cos, sin = inputs(heads, 16, 4, (1, 1), torch.float32)
    seen = fused.clone()

    rotary.split_and_rotate(fused, cos, sin, heads)

    assert torch.equal(fused, seen)


def test_its_gradient_is_one_tensor_also_through_checkpointing(on_cpu_too: None) -> None:
    heads = Heads(4, 2, is_grouped=True)
    fused, cos, sin = inputs(heads, 16, 4, (1, 1), torch.float32)
    fused.requires_grad_()

    def total(fused: Tensor) -> Tensor:
        return sum(each.square().sum() for each in rotary.split_and_rotate(fused, cos, sin, heads))  # type: ignore[return-value]

    (plain,) = torch.autograd.grad(total(fused), fused)
    (recomputed,) = torch.autograd.grad(checkpoint(total, fused, use_reentrant=False), fused)

    torch.testing.assert_close(plain, 2 * fused.detach())  # rotations keep lengths
    torch.testing.assert_close(recomputed, plain, atol=0, rtol=0)


def test_no_tokens_are_no_kernel(on_cpu_too: None) -> None:
    fused, angles = torch.zeros(1, 0, 8 * 16), torch.zeros(1, 0, 4)
    query, key, value = rotary.split_and_rotate(fused, angles, angles, Heads(4, 2, is_grouped=True))

    assert query.shape == (1, 4, 0, 16)
    assert key.shape == value.shape == (1, 2, 0, 16)


def test_angles_of_another_dtype_or_number_of_positions_are_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rotary, "_has_kernel", lambda device, dtype: pytest.fail("not for these"))
    heads = Heads(4, 2, is_grouped=True)
    fused, cos, sin = inputs(heads, 16, 4, (1, 1), torch.float16)

    query, _, value = rotary.split_and_rotate(fused, cos.float(), sin.float(), heads)
    rotary.split_and_rotate(fused, cos[:, :1], sin[:, :1], heads)

    assert (query.dtype, value.dtype) == (torch.float32, torch.float16)  # as under autocast


def test_the_operators_say_truly_what_they_make(kernels: Any) -> None:
    tests = ("test_schema", "test_faketensor")
    fused, cos, sin = inputs(Heads(4, 2, is_grouped=True), 16, 4, (1, 1), torch.float32)
    torch.library.opcheck(kernels.split_operator, (fused, cos, sin, 4, 2, True), test_utils=tests)
    parts = kernels.split_and_rotate(fused, cos, sin, 4, 2, True)
    torch.library.opcheck(kernels.join_operator, (*parts, cos, sin, True), test_utils=tests)


def test_the_probe_passes_and_would_see_another_result(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    rotary._check(cpu, torch.float16)
    right = kernels.split_and_rotate

    def wrong(fused: Tensor, cos: Tensor, sin: Tensor, *others: Any) -> Any:
        return right(fused, cos, -sin, *others)

    monkeypatch.setattr(kernels, "split_and_rotate", wrong)
    with pytest.raises(AssertionError, match="not close"):
        rotary._check(cpu, torch.float16)
