"""Triton's kernels give what torch gives, in Triton's interpreter, which needs no GPU.

It truncates bfloat16 where a GPU rounds it, so it is float16 and float32 that are compared here.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from glmtune.kernels import fused


@pytest.fixture
def kernels(interpreted: Callable[[str], Any]) -> Any:
    return interpreted("triton_swiglu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 2 * 40), (2, 2 * 1030)])
def test_values_and_gradients_are_those_of_torch(
    kernels: Any, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    of_y = torch.randn(shape[0], shape[1] // 2).to(dtype)
    given, overwritten = x.detach().clone(), x.detach().clone()
    expected = fused.swiglu(x)
    (of_x,) = torch.autograd.grad(expected, x, of_y)  # overwrites x

    found = kernels.swiglu(given)
    kernels.swiglu_backward_(overwritten, of_y)

    tolerance = {"atol": 2e-3, "rtol": 2e-3} if dtype == torch.float16 else {}
    torch.testing.assert_close(found, expected.detach(), **tolerance)
    torch.testing.assert_close(overwritten, of_x, **tolerance)


def test_no_rows_are_no_kernel(kernels: Any) -> None:
    assert kernels.swiglu(torch.zeros(0, 8)).shape == (0, 4)


def test_the_operators_say_truly_what_they_change(kernels: Any) -> None:
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(kernels.operator, (torch.randn(2, 8),), test_utils=tests)
    torch.library.opcheck(
        kernels.backward_operator, (torch.randn(2, 8), torch.randn(2, 4)), test_utils=tests
    )


def test_the_probe_passes(kernels: Any) -> None:
    fused._check_kernels(torch.device("cpu"), torch.float32)


def test_a_second_gradient_is_refused_as_on_a_cpu(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_has_kernels", lambda device, dtype: True)
    x = torch.randn(1, 3, 12, requires_grad=True)
    gated = fused.swiglu(2 * x).sum()
    gated.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gated.backward()
