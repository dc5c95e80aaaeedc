"""LoRA's update in 16 bits has the values and gradients of the plain expression."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glmtune.kernels.lora_product import add_update, lora_linear

ROWS, IN, OUT, RANK, SCALE = 37, 48, 40, 4, 2.0
# Of a whole tensor: roundings of 2^-9 and 2^-12 add up over a few products.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def check_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare by the length of the difference: a number near zero may be rounding alone."""
    difference = (found.float() - expected.float()).norm()
    assert difference <= TOLERANCE[dtype] * expected.float().norm()


def tensors(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, W, b, A, B; what is trained wants gradients, and so does x."""
    torch.manual_seed(0)
    x = torch.randn(1, ROWS, IN).to(dtype).requires_grad_()
    weight, bias = torch.randn(OUT, IN) / IN**0.5, torch.randn(OUT)
    a = (torch.randn(RANK, IN) / IN**0.5).requires_grad_()
    b = torch.randn(OUT, RANK).requires_grad_()
    return x, weight.to(dtype), bias.to(dtype), a, b


def by_peft(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """What peft computes: the update in float32, the sum rounded once."""
    update = F.linear(F.linear(x.float(), a), b) * SCALE
    return (F.linear(x, weight, bias) + update).to(x.dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("how", ["linear", "added", "added to another order"])
def test_values_and_gradients_are_pefts_up_to_rounding(dtype: torch.dtype, how: str) -> None:
    x, weight, bias, a, b = given = tensors(dtype)
    expected = by_peft(*given)

    if how == "linear":
        found = lora_linear(*given, SCALE)
    else:
        product = F.linear(x, weight, bias)
        if how == "added to another order":
            product = product.mT.contiguous().mT
        found = add_update(product, x, a, b, SCALE)
        assert (found.data_ptr() == product.data_ptr()) is (how == "added")

    assert found.dtype == dtype
    check_close(found, expected, dtype)
    weights = torch.randn_like(expected)
    of_found = torch.autograd.grad(found, (x, a, b), weights)
    of_expected = torch.autograd.grad(expected, (x, a, b), weights)
    assert [each.dtype for each in of_found] == [dtype, torch.float32, torch.float32]
    for one, other in zip(of_found, of_expected, strict=True):
        check_close(one, other, dtype)


def test_the_gradients_of_a_and_b_are_summed_in_float32() -> None:
    """Of 16 bits summed in 16 bits, 4,000 equal terms would stop growing at 256."""
    x = torch.ones(1, 4000, 8, dtype=torch.bfloat16)
    a, b = torch.full((1, 8), 0.125, requires_grad=True), torch.ones(8, 1, requires_grad=True)

    lora_linear(x, torch.zeros(8, 8).bfloat16(), None, a, b, 1.0).sum().backward()

    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.unique().tolist() == [32000]
    assert b.grad.unique().tolist() == [4000]


def test_it_saves_nothing_but_its_input_the_small_product_and_weights() -> None:
    x, weight, bias, a, b = given = tensors(torch.bfloat16)
    kept: list[Tensor] = []

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lora_linear(*given, SCALE)
        add_update(F.linear(x, weight, bias), x, a, b, SCALE)

    of_given = {each.data_ptr() for each in given}
    own = [tensor for tensor in kept if tensor.data_ptr() not in of_given]
    assert [tuple(tensor.shape) for tensor in own] == [(ROWS, RANK), (ROWS, RANK)]


def test_frozen_inputs_and_weights_get_no_gradient() -> None:
    x, weight, bias, a, b = tensors(torch.float32)

    lora_linear(x.detach(), weight, bias, a, b.detach(), SCALE).sum().backward()
    add_update(F.linear(x, weight), x, a.detach(), b, SCALE).sum().backward()

    assert x.grad is not None
    assert a.grad is not None
    assert b.grad is not None


def test_recomputing_gives_the_same_gradients() -> None:
    x, weight, bias, a, b = tensors(torch.bfloat16)

    def twice(x: Tensor) -> Tensor:
        y = add_update(F.linear(x, weight, bias), x, a, b, SCALE)
        return lora_linear(y, weight.T.contiguous(), None, b.mT, a.mT, SCALE)

    plain = torch.autograd.grad(twice(x).float().sum(), (x, a, b))
    again = torch.autograd.grad(checkpoint(twice, x, use_reentrant=False).float().sum(), (x, a, b))

    torch.testing.assert_close(again, plain, atol=0, rtol=0)


def test_a_changed_weight_is_noticed_between_the_passes() -> None:
    x, weight, bias, a, b = tensors(torch.bfloat16)
    y = lora_linear(x, weight, bias, a, b, SCALE)
    with torch.no_grad():
        b.add_(1)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_layer_that_had_saved_its_output_would_notice_the_change() -> None:
    x, weight, bias, a, b = tensors(torch.bfloat16)
    y = add_update(F.linear(x, weight, bias).exp(), x, a, b, SCALE)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
