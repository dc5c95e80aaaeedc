import pytest
import torch
from torch.nn import functional as F

from glmtune.chatglm.lean import swiglu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_has_the_values_and_gradients_of_the_plain_expression_bit_for_bit(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    fused = torch.randn(2, 5, 12, dtype=dtype, requires_grad=True)
    plain = fused.detach().clone().requires_grad_()
    grad = torch.randn(2, 5, 6, dtype=dtype)

    lean = swiglu(fused)
    lean.backward(grad)
    gate, up = plain.chunk(2, dim=-1)
    expected = F.silu(gate) * up
    expected.backward(grad)

    torch.testing.assert_close(lean, expected, atol=0, rtol=0)
    torch.testing.assert_close(fused.grad, plain.grad, atol=0, rtol=0)
