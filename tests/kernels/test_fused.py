import sys
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import glmtune.kernels.fused
from glmtune.kernels.fused import rms_norm, swiglu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_has_the_values_and_gradients_of_the_plain_expression_bit_for_bit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        glmtune.kernels.fused, "BLOCK_NUMEL", 36
    )  # 3 rows of 12 at a time, and one left over
    torch.manual_seed(0)
    fused = torch.randn(2, 5, 12, dtype=dtype, requires_grad=True)
    plain = fused.detach().clone().requires_grad_()
    grad = torch.randn(2, 5, 6, dtype=dtype)

    found = swiglu(fused)
    found.backward(grad)
    gate, up = plain.chunk(2, dim=-1)
    expected = F.silu(gate) * up
    expected.backward(grad)

    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    torch.testing.assert_close(fused.grad, plain.grad, atol=0, rtol=0)


def test_swiglu_takes_no_second_gradient_from_what_the_first_has_written_over() -> None:
    fused = torch.randn(2, 12, requires_grad=True)
    gated = swiglu(2 * fused).sum()
    gated.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gated.backward()


@pytest.mark.parametrize("is_trained", [False, True])
def test_the_norm_has_the_values_of_torchs_bit_for_bit_and_its_gradients_rounded_once(
    is_trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        glmtune.kernels.fused, "BLOCK_NUMEL", 36
    )  # 3 rows of 12 at a time, and one left over
    torch.manual_seed(0)
    x = torch.randn(2, 5, 12, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.rand(12, dtype=torch.bfloat16).requires_grad_(is_trained)
    grad = torch.randn(2, 5, 12, dtype=torch.bfloat16)
    wanted = (x, weight) if is_trained else (x,)

    found = rms_norm(x, weight, 1e-5)
    plain = F.rms_norm(x, weight.shape, weight, 1e-5)
    exact = F.rms_norm(x.double(), weight.shape, weight.double(), 1e-5)

    torch.testing.assert_close(found, plain, atol=0, rtol=0)
    for of_it, expected in zip(
        torch.autograd.grad(found, wanted, grad),
        torch.autograd.grad(exact, wanted, grad.double()),
        strict=True,
    ):
        torch.testing.assert_close(of_it, expected, atol=1e-6, rtol=2**-8)


def test_the_norm_keeps_no_copy_of_its_input() -> None:
    x = torch.randn(2, 5, 12, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(12, dtype=torch.bfloat16)
    kept = []

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rms_norm(x, weight, 1e-5)

    assert {tensor.data_ptr() for tensor in kept} == {x.data_ptr(), weight.data_ptr()}


class Count(TorchDispatchMode):
    """Counts how often an operation is called."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation, self.times = operation, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func is self.operation
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "pieces"), [("cpu", 8), ("meta", 1)])
def test_only_a_cpu_makes_the_gradient_of_swiglu_in_pieces(
    device: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glmtune.kernels.fused, "BLOCK_NUMEL", 16)
    fused = torch.ones(1, 8, 16, device=device, requires_grad=True)
    gated = swiglu(fused * 1)

    with Count(torch.ops.aten.silu_backward.grad_input) as count:
        gated.sum().backward()

    assert count.times == pieces


def test_a_gpu_without_working_triton_says_so_once_and_uses_torch(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # as on Windows
    monkeypatch.delitem(sys.modules, "glmtune.kernels.triton_swiglu", raising=False)
    glmtune.kernels.fused._has_kernels.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert not glmtune.kernels.fused._has_kernels(torch.device("cuda:0"), torch.bfloat16)
    glmtune.kernels.fused._has_kernels.cache_clear()

    [line] = caplog.messages
    assert line.startswith("SwiGLU is computed by torch on cuda:0, without Triton: ")
    assert not glmtune.kernels.fused._has_kernels(torch.device("cpu"), torch.bfloat16)
    assert len(caplog.messages) == 1
