"""Linear layers are replaced in place, and everything else becomes a frozen copy."""

from typing import Any

import torch
from torch import nn

from glmtune.kernels.replace_linear import replace_linear
from glmtune.model.load import load_model


class Doubled(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(2 * linear.weight.detach(), requires_grad=False)


def test_all_linear_layers_but_the_output_layer_are_replaced() -> None:
    model: Any = load_model("nano")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linear = {n for n, m in model.named_modules() if type(m) is nn.Linear}

    replace_linear(model, Doubled, torch.float64)

    replaced = {name for name, module in model.named_modules() if type(module) is Doubled}
    assert linear - replaced == {"transformer.output_layer"}
    assert len(replaced) == 4 * model.config.num_layers
    for name, tensor in model.state_dict().items():
        factor = 2 if name.removesuffix(".weight") in replaced else 1
        expected = factor * before[name].to(torch.float64)
        torch.testing.assert_close(tensor, expected, atol=0, rtol=0)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_no_tensor_is_a_view_of_a_mapped_file() -> None:
    model: Any = load_model("nano")
    storage = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}

    replace_linear(model, Doubled, model.dtype)

    left = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert not left & storage
