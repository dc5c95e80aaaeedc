"""PiSSA and OLoRA: initialize A and B from the weights W, and leave W unchanged.

Both start from A0 and B0, a part of W. peft subtracts B0 A0 from W, which rounds what is left in
half precision, so that training starts from another model. Here W stays as it is, and the update

    dW = scale * (B A - B0 A0)

is trained. It is a LoRA of twice the rank, of which the first half is trained, and is saved as one:

    A = [A ]   (2 rank, in)      B = [B, -B0]   (out, 2 rank)
        [A0]

Sources: https://arxiv.org/abs/2404.02948 (PiSSA), https://arxiv.org/abs/2406.01775 (OLoRA).
"""

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

# A0 and B0 of the models that train such a difference, by the names of their parameters.
initial_adapters: WeakKeyDictionary[Any, dict[str, Tensor]] = WeakKeyDictionary()


class _DifferenceA(nn.Linear):
    """A over A0: the trained weight, and the initial one as a buffer."""

    initial: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., 2 rank)."""
        return half_input_linear(input, torch.cat((self.weight, self.initial)))


class _DifferenceB(nn.Linear):
    """B beside -B0: the trained weight, and the initial one as a buffer."""

    initial: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., 2 rank) to (..., out)."""
        return F.linear(input, torch.cat((self.weight, -self.initial), dim=1))


def restore_base_weights(model: Any, weights: Mapping[nn.Module, Tensor]) -> None:
    """Restore the weights that peft subtracted B0 A0 from, and train the difference instead.

    Args:
        model: the peft model.
        weights: of its linear layers before peft changed them. peft makes new tensors, except for
            OLoRA in float32, which it changes in place.
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
        for sides, kind in ((layer.lora_A, _DifferenceA), (layer.lora_B, _DifferenceB)):
            side = sides["default"]
            twin = kind(side.in_features, side.out_features, bias=False, device="meta")
            twin.weight = side.weight
            twin.register_buffer("initial", side.weight.detach().clone(), persistent=False)
            sides["default"] = twin.train(side.training)
        if isinstance(layer.lora_dropout["default"], nn.Identity):
            layer.cast_input_dtype_enabled = False


@contextmanager
def as_plain_lora(model: Any) -> Iterator[None]:
    """Temporarily turn a trained difference into a plain LoRA of twice the rank, to merge it."""
    layers = [layer for _, layer in adapted_layers(model) if model in initial_adapters]
    trained = [(layer.lora_A["default"], layer.lora_B["default"]) for layer in layers]
    for layer, (a, b) in zip(layers, trained, strict=True):
        for sides, weight in (
            (layer.lora_A, torch.cat((a.weight, a.initial))),
            (layer.lora_B, torch.cat((b.weight, -b.initial), dim=1)),
        ):
            plain = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
            plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
            sides["default"] = plain
    try:
        yield
    finally:
        for layer, (a, b) in zip(layers, trained, strict=True):
            layer.lora_A["default"], layer.lora_B["default"] = a, b


def _is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def as_difference(
    trained: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the state of a model whose adapter is the difference B A - B0 A0, of rank 2r."""
    state = dict(trained)
    for name, start in initial.items():
        if ".lora_A." in name:
            state[name] = torch.cat((state[name], start), dim=0)  # (2 rank, in)
        else:
            state[name] = torch.cat((state[name], -start), dim=1)  # (out, 2 rank)
    return state


def doubled_config(config: Any) -> Any:
    """Return the configuration of the difference: twice the rank, the same scale."""
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
    """Return the trained half of a saved difference.

    Raises:
        CheckpointError: its second half is not the initial A0 and B0 of this model.
    """
    halves = dict(tensors)
    for name, start in initial.items():
        key = name.replace(".default.", ".")
        dim, sign = (0, 1) if ".lora_A." in name else (1, -1)
        trained, stored = tensors[key].chunk(2, dim=dim)
        if not torch.equal(stored, sign * start.to(stored.device)):
            layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
            raise CheckpointError(
                f"{folder}: its adapter was initialized from another part of the weights of "
                f"{layer}. The decomposition of the same weights can differ a little on another "
                "machine or with another number of threads; resume on the machine where the run "
                "started."
            )
        halves[key] = trained.contiguous()
    return halves
