"""Iterate over the layers that have an adapter."""

from collections.abc import Iterator
from typing import Any

from torch import nn


def adapted_layers(model: nn.Module, adapter_name: str = "default") -> Iterator[tuple[str, Any]]:
    """Iterate over the layers that have a LoRA adapter, with their names in the base model."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter_name in module.lora_B:
            yield name.removeprefix("base_model.model."), module
