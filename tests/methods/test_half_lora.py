"""Layers of peft with updates in 16 bits are still layers of peft."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F

from glmtune.kernels import lora_product
from glmtune.kernels.int8 import Int8Linear
from glmtune.methods import half_lora, lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model
from glmtune.recipe.methods import LoraSection


@pytest.fixture
def on_cpu_too(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Use the functions of accelerators on a CPU; the list fills with the names of those used."""
    used: list[str] = []

    def noting(name: str) -> Any:
        function = getattr(lora_product, name)

        def call(*given: Any) -> Any:
            used.append(name)
            return function(*given)

        return call

    monkeypatch.setattr(half_lora, "LEFT_TO_PEFT", ())
    for name in ("lora_linear", "add_update"):
        monkeypatch.setattr(half_lora, name, noting(name))
    return used


def tuned(folder: Path, dtype: torch.dtype = torch.bfloat16, **keys: Any) -> Any:
    """A tiny model with an adapter that does something."""
    torch.manual_seed(0)
    keys = {"r": 2, "target_modules": "all-linear", **keys}
    model = lora.attach(load_model(folder, dtype=dtype), LoraSection(**keys))
    for _, layer in adapted_layers(model):
        layer.lora_B["default"].weight.data.normal_(0, 0.1)
    return model


def first_layer(model: Any) -> Any:
    return next(layer for _, layer in adapted_layers(model))


def input_of(layer: Any, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(1, 9, layer.in_features).to(dtype).requires_grad_()


def by_peft(layer: Any, x: Tensor) -> Tensor:
    """The same layer as peft computes it."""
    result: Tensor = Linear.forward(layer, x)
    return result


@pytest.mark.parametrize("keys", [{}, {"use_rslora": True, "lora_alpha": 3.0}])
def test_a_plain_update_is_pefts_up_to_rounding(
    tiny_model_dir: Path, on_cpu_too: list[str], keys: dict[str, Any]
) -> None:
    layer = first_layer(tuned(tiny_model_dir, **keys))
    x = input_of(layer)

    found, expected = layer(x), by_peft(layer, x)

    assert on_cpu_too == ["lora_linear"]
    torch.testing.assert_close(found, expected, atol=0.01, rtol=2**-6)
    weights = [x, *(p for p in layer.parameters() if p.requires_grad)]
    both = [torch.autograd.grad(each, weights, torch.ones_like(each)) for each in (found, expected)]
    torch.testing.assert_close(*both, atol=0.1, rtol=2**-5)


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"use_dora": True}, torch.bfloat16),
        ({"init_lora_weights": "pissa"}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_variants_and_float32_are_computed_by_peft(
    tiny_model_dir: Path, on_cpu_too: list[str], keys: dict[str, Any], dtype: torch.dtype
) -> None:
    layer = first_layer(tuned(tiny_model_dir, dtype, **keys))
    x = input_of(layer, dtype)

    assert torch.equal(layer(x), by_peft(layer, x))
    assert not on_cpu_too


def test_a_cpu_keeps_the_numbers_of_peft(tiny_model_dir: Path) -> None:
    layer = first_layer(tuned(tiny_model_dir))
    x = input_of(layer)

    assert isinstance(layer, Linear)
    assert torch.equal(layer(x), by_peft(layer, x))


def test_what_is_not_a_plain_layer_is_added_to(tiny_model_dir: Path, on_cpu_too: list[str]) -> None:
    model = tuned(tiny_model_dir)
    quantized, watched, *_ = (layer for _, layer in adapted_layers(model))
    quantized.base_layer = Int8Linear(quantized.base_layer)
    seen: list[Tensor] = []
    watched.base_layer.register_forward_hook(lambda module, given, y: seen.append(y.clone()))

    for layer in (quantized, watched):
        x = input_of(layer)
        torch.testing.assert_close(layer(x), by_peft(layer, x), atol=0.01, rtol=2**-6)

    assert on_cpu_too == ["add_update", "add_update"]
    assert torch.equal(seen[0], seen[1])  # the hook saw the layer without its update


def test_dropout_drops_of_the_updates_input_alone_and_only_in_training(
    tiny_model_dir: Path, on_cpu_too: list[str]
) -> None:
    layer = first_layer(tuned(tiny_model_dir, lora_dropout=0.5)).train()
    x, size = input_of(layer), layer.scaling["default"]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    torch.manual_seed(5)
    found = layer(x)
    torch.manual_seed(5)
    dropped = nn.functional.dropout(x, 0.5).float()
    expected = layer.base_layer(x) + F.linear(F.linear(dropped, a), b) * size
    layer.eval()(x)

    assert on_cpu_too == ["add_update", "lora_linear"]
    torch.testing.assert_close(found, expected.bfloat16(), atol=0.01, rtol=2**-6)


def test_peft_still_disables_switches_merges_and_removes_adapters(
    tiny_model_dir: Path, on_cpu_too: list[str]
) -> None:
    from peft import LoraConfig

    model = tuned(tiny_model_dir)
    layer = first_layer(model)
    x = input_of(layer)
    with model.disable_adapter():
        assert torch.equal(layer(x), layer.base_layer(x))
    assert not on_cpu_too

    with_first = layer(x)
    model.add_adapter("other", LoraConfig(r=3, target_modules=["query_key_value"]))
    model.set_adapter("other")
    assert torch.equal(layer(x), layer.base_layer(x))  # its B is zero
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(layer(x), with_first, atol=0.01, rtol=2**-6)
    assert on_cpu_too == ["lora_linear", "lora_linear", "add_update", "add_update"]

    model.set_adapter("default")
    merged = model.merge_and_unload()
    torch.testing.assert_close(
        merged.transformer.encoder.layers[0].self_attention.query_key_value(x),
        with_first,
        atol=0.02,
        rtol=2**-6,
    )


def test_autocast_is_left_to_peft(tiny_model_dir: Path, on_cpu_too: list[str]) -> None:
    layer = first_layer(tuned(tiny_model_dir))
    with torch.autocast("cpu", torch.bfloat16):
        layer(input_of(layer))

    assert not on_cpu_too
