"""Find the decoder layers of any model."""

from typing import Any

from torch import nn

from glmtune.errors import RecipeError


def decoder_layers(model: Any) -> nn.ModuleList:
    """Find the list of a model's layers.

    Raises:
        RecipeError: there is none as long as the configuration says.
    """
    number = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return module
    raise RecipeError(
        f"adapter.trainable_layers: no list of {number} layers was found in this model. "
        "Name modules in adapter.trainable_modules instead."
    )
