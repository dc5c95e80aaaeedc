"""Half-precision weights computed in float32: the same numbers, none of the memory."""

from typing import Any

import pytest
import torch
from torch import nn

from glmtune.kernels.half_precision import (
    BLOCK_ROWS,
    FEW_ROWS,
    HalfInputLinear,
    WideLinear,
    widen,
)
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.recipe.methods import LoraSection
from glmtune.use.export import merge


def tiny(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = ChatGLMConfig(
        num_layers=2, hidden_size=32, ffn_hidden_size=48, kv_channels=8, num_attention_heads=4,
        multi_query_attention=True, multi_query_group_num=2, padded_vocab_size=61,
        add_qkv_bias=True,
    )  # fmt: skip
    return ChatGLMForConditionalGeneration(config).to(dtype).eval()


IDS = torch.arange(1, 25).reshape(1, -1) * 2 % 61  # more tokens than FEW_ROWS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_equals_float32_arithmetic_on_the_same_weights(dtype: torch.dtype) -> None:
    model, exact = tiny(dtype), tiny(dtype).float()
    assert IDS.size(1) > FEW_ROWS
    widen(model)

    one, other = model(IDS).logits, exact(IDS).logits

    assert one.dtype == torch.float32
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_the_weights_stay_the_very_same_tensors() -> None:
    model = tiny(torch.bfloat16)
    name = "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight"
    before = model.get_parameter(name)

    widen(model)

    assert model.get_parameter(name) is before
    assert before.dtype == torch.bfloat16
    assert model.state_dict().keys() == tiny(torch.bfloat16).state_dict().keys()


def test_an_adapter_gets_the_gradients_of_float32_arithmetic() -> None:
    gradients = []
    for wide in (True, False):
        model = tiny(torch.bfloat16)
        if wide:
            widen(model)
        else:
            model.float()
        torch.manual_seed(1)
        model = lora.attach(model, LoraSection(r=2, target_modules="all-linear"))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, 0.1)
        model(IDS, labels=IDS).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})

    wide_gradients, exact_gradients = gradients
    assert wide_gradients.keys() == exact_gradients.keys()
    assert len(wide_gradients) == 2 * 4 * 2  # A and B of four layers in each of two blocks
    for name, gradient in wide_gradients.items():
        torch.testing.assert_close(gradient, exact_gradients[name], atol=1e-6, rtol=1e-4)


def test_a_weight_of_several_blocks_gives_the_full_product() -> None:
    plain = nn.Linear(8, 2 * BLOCK_ROWS + 3, dtype=torch.bfloat16)
    holder = nn.ModuleList([plain])
    widen(holder)
    x = torch.randn(2, 9, 8, requires_grad=True)
    exact = x.detach().clone().requires_grad_()

    y = holder[0](x)
    z = exact @ plain.weight.float().T + plain.bias.float()
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (z * weights).sum().backward()

    assert isinstance(holder[0], WideLinear)
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(x.grad, exact.grad, atol=1e-4, rtol=1e-5)


def test_nothing_of_the_activations_is_kept_for_the_backward_pass() -> None:
    holder = nn.ModuleList([nn.Linear(64, 64, dtype=torch.bfloat16)])
    widen(holder)
    kept: list[torch.Tensor] = []
    x = torch.randn(16, 64, requires_grad=True)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        holder[0](x)

    assert [tensor.shape for tensor in kept] == [holder[0].weight.shape]


def test_merging_an_adapter_goes_into_the_stored_weights() -> None:
    model = tiny(torch.bfloat16)
    widen(model)
    model = lora.attach(model, LoraSection(r=2, target_modules=("dense",)))
    for _, layer in adapted_layers(model):
        layer.lora_B["default"].weight.data.normal_(0, 1)
    with torch.no_grad():
        before = model(IDS).logits
        merged = merge.merge(model)
        after = merged(IDS).logits

    assert merged.transformer.encoder.layers[0].self_attention.dense.weight.dtype == torch.bfloat16
    torch.testing.assert_close(before, after, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_float32_layer_learns_the_same_from_half_precision_inputs_as_from_their_copy(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(12, 4, bias=False)
    x = torch.randn(2, 5, 12, dtype=dtype, requires_grad=True)
    kept: list[torch.Tensor] = []

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = HalfInputLinear.from_linear(plain)(x)
    expected = plain(x.float())

    assert {tensor.data_ptr() for tensor in kept} <= {x.data_ptr(), plain.weight.data_ptr()}
    torch.testing.assert_close(y, expected, atol=0, rtol=0)
    wanted, grad = (x, plain.weight), torch.randn(2, 5, 4)
    for found, of_copy in zip(
        torch.autograd.grad(y, wanted, grad),
        torch.autograd.grad(expected, wanted, grad),
        strict=True,
    ):
        torch.testing.assert_close(found, of_copy)


def test_a_half_precision_model_with_lora_keeps_no_float32_copy_of_its_activations() -> None:
    section = LoraSection(r=2, target_modules=("query_key_value", "dense_4h_to_h"))
    model = lora.attach(tiny(torch.bfloat16), section)
    kept: list[torch.Tensor] = []

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(IDS, use_cache=False)

    tokens = IDS.size(1)
    wide = [tuple(t.shape) for t in kept if t.dtype == torch.float32 and t.shape[-2] == tokens]
    assert {shape[-1] for shape in wide} == {section.r}  # what A gives to B, and no more
