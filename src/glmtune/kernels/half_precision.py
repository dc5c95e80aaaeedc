"""Half-precision weights on a CPU that cannot multiply them: kept as they are, computed in float32.

A CPU without AVX512-BF16 or AMX emulates bfloat16 products, in the backward pass hundreds of
times slower than float32. Converting the model instead doubles its memory, and ChatGLM3-6B no
longer fits in 24 GiB. So the frozen weights stay as the checkpoint has them, activations are
float32, and each product widens a block of rows of the weight, small enough for the cache,
just before it is used:

    y[:, block] = x @ float32(weight[block]).T          forward
    dx         += dy[:, block] @ float32(weight[block])  backward; nothing of x is kept

The result is that of float32 arithmetic on the very same weights. A product of a few rows, as
in writing an answer token by token, reads the weight once and is limited by memory, so there
the CPU's own half-precision product is the faster one and is used.

The other way round, a small float32 weight that learns from half-precision activations, as LoRA's
A does, needs no float32 copy of them until its gradient:

    y  = float32(x) @ weight.T          forward; x is kept as it is
    dw = dy.T @ float32(x)              backward

And where a CPU does multiply bfloat16, its library is made for many rows: for one it reads the
weight at half the rate, or less, of torch's own kernel, so that writing an answer switches it off.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK_ROWS = 1024  # of a weight, widened at a time
FEW_ROWS = 8  # of activations, up to which memory is the limit
HALF = (torch.bfloat16, torch.float16)


class _WidenedProduct(torch.autograd.Function):
    """x @ weight.T for a frozen half-precision weight, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        y = x.new_empty(*x.shape[:-1], weight.size(0))
        for start in range(0, weight.size(0), BLOCK_ROWS):
            block = weight[start : start + BLOCK_ROWS].float()
            y[..., start : start + BLOCK_ROWS] = x @ block.T
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        (dy,) = grads
        dy = dy.reshape(-1, weight.size(0))
        dx = dy.new_zeros(dy.size(0), weight.size(1))
        for start in range(0, weight.size(0), BLOCK_ROWS):
            dx.addmm_(dy[:, start : start + BLOCK_ROWS], weight[start : start + BLOCK_ROWS].float())
        return dx.view(*grads[0].shape[:-1], weight.size(1)), None


class WideLinear(nn.Linear):
    """A frozen linear layer that stores its weight in half precision and computes in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out), float32."""
        x = input.float()
        rows = x.numel() // max(x.size(-1), 1)
        if rows <= FEW_ROWS and not torch.is_grad_enabled():
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias).float()
        y: Tensor = _WidenedProduct.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.float()


class WideEmbedding(nn.Embedding):
    """An embedding that stores its weight in half precision and gives float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Look up (...) as (..., hidden), float32."""
        return super().forward(input).float()


class _HalfInputProduct(torch.autograd.Function):
    """float32(x) @ weight.T for a float32 weight, under autocast too, keeping x as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        with torch.autocast(x.device.type, enabled=False):  # the backward pass has none either
            return F.linear(x.float(), weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (dy,) = grads
        needs_dx, needs_dw = ctx.needs_input_grad
        dx = (dy @ weight).to(x.dtype) if needs_dx else None
        dw = dy.flatten(0, -2).T @ x.flatten(0, -2).float() if needs_dw else None
        return dx, dw


class HalfInputLinear(nn.Linear):
    """A float32 linear layer without bias that takes half-precision activations as they are."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out), float32."""
        return half_input_product(input, self.weight)


def half_input_product(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply half-precision activations as they are, (..., in), by a float32 weight."""
    if x.dtype not in HALF:
        return F.linear(x, weight)
    y: Tensor = _HalfInputProduct.apply(x, weight)  # type: ignore[no-untyped-call]
    return y


def takes_half_inputs(linear: nn.Linear) -> HalfInputLinear:
    """The layer that takes the place of `linear` and shares its weight."""
    twin = HalfInputLinear(linear.in_features, linear.out_features, bias=False, device="meta")
    twin.weight = linear.weight
    return twin.train(linear.training)


def widen(model: nn.Module) -> None:
    """Freeze a model and let it compute in float32 on the half-precision weights it has.

    Linear layers and embeddings keep their tensors; what else there is (norms, a few vectors)
    becomes float32.

    Args:
        model: changed in place. Its adapters are attached afterwards.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            wide = _wide_twin(child)
            if wide is not None:
                setattr(parent, name, wide)
    for module in model.modules():
        if not isinstance(module, WideLinear | WideEmbedding):
            for parameter in module.parameters(recurse=False):
                if parameter.dtype in HALF:  # and not packed integers
                    parameter.data = parameter.data.float()
    model.requires_grad_(False)


@contextmanager
def cpu_library(*, is_used: bool) -> Iterator[None]:
    """Multiply on a CPU by oneDNN, or by torch's own kernels, meanwhile.

    It is a switch of the whole process, so only one thread at a time may be in here: of two, the
    one that leaves last would put back what the other had set.
    """
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = is_used  # type: ignore[assignment]  # a property of a module
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def library_suits(model: Any, num_rows: int) -> bool:
    """Whether oneDNN is the faster one for products of so many rows with a model's weights.

    It is not for a single row of bfloat16 (docs/performance.md). Weights that other libraries have
    packed are theirs to multiply.
    """
    weight = model.get_input_embeddings().weight
    is_bfloat16 = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    is_packed = getattr(model.config, "quantization_config", None) is not None
    return num_rows > 1 or is_packed or not is_bfloat16


def computes_in(model: Any) -> torch.dtype:
    """Give the dtype of a model's activations where no autocast changes it."""
    embeddings = model.get_input_embeddings()
    dtype: torch.dtype = embeddings.weight.dtype
    return torch.float32 if isinstance(embeddings, WideEmbedding) else dtype


def _wide_twin(module: nn.Module) -> nn.Module | None:
    """The layer that takes the place of `module` and shares its tensors."""
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
