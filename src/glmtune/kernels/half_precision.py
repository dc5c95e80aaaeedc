"""Half-precision weights in float32 arithmetic, for CPUs without bfloat16 or float16 products.

A CPU without AVX512-BF16 or AMX emulates bfloat16 products, in the backward pass hundreds of
times slower than float32. Converting the model to float32 doubles its memory, and ChatGLM3-6B no
longer fits in 24 GiB. So the frozen weights keep their dtype, activations are float32, and each
product widens one block of weight rows at a time, small enough for the cache:

    y[:, block] = x @ float32(weight[block]).T          forward
    dx         += dy[:, block] @ float32(weight[block])  backward; x is not saved

The result is that of float32 arithmetic on the same weights. A product of a few rows, as in
decoding token by token, reads the weight once and is bound by memory bandwidth, so the CPU's own
half-precision kernel is faster there and is used.

In the opposite case, a small float32 weight that learns from half-precision activations, as
LoRA's A does, needs no float32 copy of them until its gradient:

    y  = float32(x) @ weight.T          forward; x is saved in its own dtype
    dw = dy.T @ float32(x)              backward

On CPUs that do multiply bfloat16, oneDNN is tuned for many rows: for a single row it reads the
weight at half the rate of torch's own kernel, or less, so decoding disables it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK_ROWS = 1024  # rows of a weight that are widened at a time
FEW_ROWS = 8  # up to so many rows of activations a product is bound by memory bandwidth
HALF = (torch.bfloat16, torch.float16)


class _WidenedProduct(torch.autograd.Function):
    """x @ weight.T for a half-precision weight, in float32; x is saved if the weight is trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x if weight.requires_grad else None)
        y = x.new_empty(*x.shape[:-1], weight.size(0))
        for start in range(0, weight.size(0), BLOCK_ROWS):
            block = weight[start : start + BLOCK_ROWS].float()
            y[..., start : start + BLOCK_ROWS] = x @ block.T
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        weight, x = ctx.saved_tensors
        (dy,) = grads
        dy = dy.reshape(-1, weight.size(0))
        dx = dy.new_zeros(dy.size(0), weight.size(1))
        for start in range(0, weight.size(0), BLOCK_ROWS):
            dx.addmm_(dy[:, start : start + BLOCK_ROWS], weight[start : start + BLOCK_ROWS].float())
        dw = None if x is None else (dy.T @ x.flatten(0, -2)).to(weight.dtype)
        return dx.view(*grads[0].shape[:-1], weight.size(1)), dw


class WideLinear(nn.Linear):
    """A linear layer with a half-precision weight that computes in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out), float32."""
        x = input.float()
        rows = x.numel() // max(x.size(-1), 1)
        if rows <= FEW_ROWS and not torch.is_grad_enabled():
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias).float()
        y: Tensor = _WidenedProduct.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.float()


class WideEmbedding(nn.Embedding):
    """An embedding with a half-precision weight that returns float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Look up (...) as (..., hidden), float32."""
        return super().forward(input).float()


class _HalfInputProduct(torch.autograd.Function):
    """float32(x) @ weight.T for a float32 weight, under autocast too, saving x in its own dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        with _without_autocast(x.device.type):  # as in the backward pass
            return F.linear(x.float(), weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (dy,) = grads
        needs_dx, needs_dw = ctx.needs_input_grad
        dx = (dy @ weight).to(x.dtype) if needs_dx else None
        dw = dy.flatten(0, -2).T @ x.flatten(0, -2).float() if needs_dw else None
        return dx, dw


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Disable autocast, where the device has it: `meta`, of which plans are made, has not."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


class HalfInputLinear(nn.Linear):
    """A float32 linear layer without bias that saves half-precision inputs in their own dtype."""

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> "HalfInputLinear":
        """Make a layer that shares the weight of `linear`."""
        made = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        made.weight = linear.weight
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out), float32."""
        return half_input_linear(input, self.weight)


def half_input_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Apply a float32 weight to (..., in), of which half-precision values are saved as they are."""
    if x.dtype not in HALF:
        return F.linear(x, weight)
    y: Tensor = _HalfInputProduct.apply(x, weight)  # type: ignore[no-untyped-call]
    return y


def widen(model: nn.Module) -> None:
    """Freeze a model and make it compute in float32 with its half-precision weights.

    Linear layers and embeddings keep their tensors; all others (norms, biases) become float32.

    Args:
        model: changed in place. Adapters are attached afterwards.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            wide = _wide_layer(child)
            if wide is not None:
                setattr(parent, name, wide)
    for module in model.modules():
        if not isinstance(module, WideLinear | WideEmbedding):
            for parameter in module.parameters(recurse=False):
                if parameter.dtype in HALF:  # and not quantized integers
                    parameter.data = parameter.data.float()
    model.requires_grad_(False)


@contextmanager
def onednn(*, enabled: bool) -> Iterator[None]:
    """Enable or disable oneDNN, the library of CPU kernels, and restore the setting on exit.

    The setting is global to the process, so only one thread at a time may be in this context: of
    two threads, the last to leave would restore the value set by the other.
    """
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = enabled  # type: ignore[assignment]  # a property of a module
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def onednn_is_faster(model: Any, num_rows: int) -> bool:
    """Whether oneDNN is the faster choice for products of so many rows with a model's weights.

    It is not for a single row of bfloat16 (docs/performance.md). Quantized weights are multiplied
    by the library that made them.
    """
    weight = model.get_input_embeddings().weight
    is_bfloat16 = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    is_quantized = getattr(model.config, "quantization_config", None) is not None
    return num_rows > 1 or is_quantized or not is_bfloat16


def activation_dtype(model: Any) -> torch.dtype:
    """Return the dtype of a model's activations outside autocast."""
    embeddings = model.get_input_embeddings()
    dtype: torch.dtype = embeddings.weight.dtype
    return torch.float32 if isinstance(embeddings, WideEmbedding) else dtype


def _wide_layer(module: nn.Module) -> nn.Module | None:
    """Make the widening layer that shares the tensors of `module`, if there is one."""
    wide: nn.Module
    if type(module) is nn.Linear and module.weight.dtype in HALF:
        wide = WideLinear(
            module.in_features, module.out_features, module.bias is not None, device="meta"
        )
        wide.bias = module.bias
    elif type(module) is nn.Embedding and module.weight.dtype in HALF:
        wide = WideEmbedding(
            module.num_embeddings, module.embedding_dim, module.padding_idx, device="meta"
        )
    else:
        return None
    wide.weight = module.weight
    return wide.train(module.training)
