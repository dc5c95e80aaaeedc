"""PiSSA and OLoRA: initialize A and B from the weights, and leave the weights unchanged."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glmtune.errors import CheckpointError
from glmtune.kernels.half_precision import half_input_linear
from glmtune.methods.layers import adapted_layers

# PiSSA and OLoRA take what A and B begin with out of the base's weights. In half precision what is
# left would be rounded, and learned upon. So the weights stay as they are, and the beginning is
# taken out of the update: BA - B0 A0 is a LoRA of twice the rank, whose first half is trained, and
# which is saved as such.
#
#     A = [A ]    B = [B, -B0]
#         [A0]
initial_adapters: WeakKeyDictionary[Any, dict[str, Tensor]] = WeakKeyDictionary()


class _BegunA(nn.Linear):
    """A of a difference: what is trained, and below it what it began with."""

    begun: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., 2 rank)."""
        return half_input_linear(input, torch.cat((self.weight, self.begun)))


class _BegunB(nn.Linear):
    """B of a difference: what is trained, and beside it what it began with, taken off."""

    begun: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., 2 rank) to (..., out)."""
        return F.linear(input, torch.cat((self.weight, -self.begun), dim=1))


def restore_base_weights(model: Any, weights: Mapping[nn.Module, Tensor]) -> None:
    """Let a model have the weights that peft took its adapter's beginning out of.

    Args:
        model: the peft model.
        weights: as they were, by layer. peft makes new ones, but for OLoRA in float32.
    """
    initial_adapters[model] = {
        name: tensor.detach().clone() for name, tensor in model.named_parameters() if _is_lora(name)
    }
    for _, layer in adapted_layers(model):
        a, b = layer.lora_A["default"], layer.lora_B["default"]
        base, weight = layer.get_base_layer(), weights[layer.get_base_layer()]
        if base.weight.data_ptr() == weight.data_ptr():
            weight += layer.scaling["default"] * (b.weight.data @ a.weight.data)
        base.weight.data = weight
        for sides, kind in ((layer.lora_A, _BegunA), (layer.lora_B, _BegunB)):
            side = sides["default"]
            twin = kind(side.in_features, side.out_features, bias=False, device="meta")
            twin.weight = side.weight
            twin.register_buffer("begun", side.weight.detach().clone(), persistent=False)
            sides["default"] = twin.train(side.training)
        if isinstance(layer.lora_dropout["default"], nn.Identity):
            layer.cast_input_dtype_enabled = False


@contextmanager
def as_plain_lora(model: Any) -> Iterator[None]:
    """Let an adapter with a beginning be the plain one of twice the rank while it is merged."""
    begun = [layer for _, layer in adapted_layers(model) if model in initial_adapters]
    trained = [(layer.lora_A["default"], layer.lora_B["default"]) for layer in begun]
    for layer, (a, b) in zip(begun, trained, strict=True):
        for sides, whole in (
            (layer.lora_A, torch.cat((a.weight, a.begun))),
            (layer.lora_B, torch.cat((b.weight, -b.begun), dim=1)),
        ):
            plain = nn.Linear(whole.size(1), whole.size(0), bias=False, device="meta")
            plain.weight = nn.Parameter(whole.detach(), requires_grad=False)
            sides["default"] = plain
    try:
        yield
    finally:
        for layer, (a, b) in zip(begun, trained, strict=True):
            layer.lora_A["default"], layer.lora_B["default"] = a, b


def _is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def as_difference(
    trained: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Give the state of a model whose adapter is the difference to its original base."""
    state = dict(trained)
    for name, begun in initial.items():
        if ".lora_A." in name:
            state[name] = torch.cat((state[name], begun), dim=0)  # (2 rank, in)
        else:
            state[name] = torch.cat((state[name], -begun), dim=1)  # (out, 2 rank)
    return state


def doubled_config(config: Any) -> Any:
    """Give the configuration of the difference: twice the rank, and the same scale."""
    doubled = copy.deepcopy(config)
    factor = 2**0.5 if config.use_rslora else 2  # the scale is alpha / sqrt(r), or alpha / r
    doubled.r = 2 * config.r
    doubled.lora_alpha = factor * config.lora_alpha
    doubled.rank_pattern = {key: 2 * r for key, r in config.rank_pattern.items()}
    doubled.alpha_pattern = {key: factor * alpha for key, alpha in config.alpha_pattern.items()}
    doubled.init_lora_weights = True
    doubled.inference_mode = True
    return doubled


def trained_half(
    folder: Path, tensors: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Take what is trained out of a saved difference.

    Raises:
        CheckpointError: its second half is not what this model begins with.
    """
    halves = dict(tensors)
    for name, begun in initial.items():
        key = name.replace(".default.", ".")
        dim, sign = (0, 1) if ".lora_A." in name else (1, -1)
        trained, stored = tensors[key].chunk(2, dim=dim)
        if not torch.equal(stored, sign * begun.to(stored.device)):
            layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
            raise CheckpointError(
                f"{folder}: its adapter begins with another part of the weights of {layer}. "
                "The same weights can be taken apart a little differently on another machine, or "
                "with other numbers of threads; go on where the run was begun."
            )
        halves[key] = trained.contiguous()
    return halves
