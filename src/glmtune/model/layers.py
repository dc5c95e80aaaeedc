"""Find the decoder layers of a model of any family."""

from typing import Any

from torch import nn

from glmtune.errors import CheckpointError


def decoder_layers(model: Any) -> nn.ModuleList:
    """Find the list of a model's decoder layers.

    Raises:
        CheckpointError: no list has as many layers as the configuration.
    """
    number = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return module
    raise CheckpointError(
        f"{type(model).__name__} has no list of {number} layers, as its configuration says "
        "(num_hidden_layers); expected one nn.ModuleList of decoder layers."
    )
