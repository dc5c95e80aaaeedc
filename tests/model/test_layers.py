"""The decoder layers of a model are found, or the error names the model and no recipe key."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from glmtune.errors import CheckpointError, RecipeError
from glmtune.methods.full import FULL_MODEL
from glmtune.model.layers import decoder_layers
from glmtune.recipe.methods import FreezeSection


class Stack(nn.Module):
    def __init__(self, num_layers: int, num_hidden_layers: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=num_hidden_layers)
        self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(num_layers + 1))
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(num_layers))
        self.head = nn.Linear(2, 2)


def trained(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_the_layers_are_the_module_list_with_num_hidden_layers_members() -> None:
    model = Stack(num_layers=3, num_hidden_layers=3)

    assert decoder_layers(model) is model.layers


def test_a_model_without_such_a_list_is_an_error_that_names_the_model_and_no_key() -> None:
    with pytest.raises(CheckpointError, match="Stack has no list of 7 layers") as caught:
        decoder_layers(Stack(num_layers=3, num_hidden_layers=7))

    assert "adapter." not in str(caught.value)


def test_freezing_by_layers_asks_for_module_names_where_there_is_no_list_of_layers() -> None:
    model = Stack(num_layers=3, num_hidden_layers=7)

    with pytest.raises(
        RecipeError, match=r"trainable_layers.*Name modules in adapter\.trainable_m"
    ):
        FULL_MODEL.attach(model, FreezeSection(trainable_layers=1))


def test_modules_are_trained_by_name_in_a_model_without_a_list_of_layers() -> None:
    model = FULL_MODEL.attach(
        Stack(3, num_hidden_layers=7), FreezeSection(trainable_modules=("head",))
    )

    assert trained(model) == ["head.weight", "head.bias"]
