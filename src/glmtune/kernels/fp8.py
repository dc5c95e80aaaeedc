"""Frozen linear layers that multiply in fp8 (float8_e4m3fn), on GPUs of Ada, Hopper and later.

A weight has a float32 scale per output channel; `glmtune.kernels.scaled_linear` has the products. A
number keeps 4 significant bits over 15 powers of two, so an outlier costs the other channels of its
row little, and channels are not mixed as for int8. The weight cannot be trained or merged into;
adapters are trained instead.

Source: Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433, for the format.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.kernels.replace_linear import replace_linear
from glmtune.kernels.scaled_linear import (
    ALIGNMENT,
    FP8,
    quantize_by_torch,
    scaled_linear,
    why_no_kernels,
)

logger = logging.getLogger(__name__)


class Fp8Linear(nn.Linear):
    """A frozen linear layer with an fp8 weight; the output has the dtype of the input."""

    scale: Tensor  # float32, (out,)

    def __init__(self, linear: nn.Linear) -> None:
        """Quantize a linear layer, whose weight is not kept."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight, scale = quantize_by_torch(linear.weight.detach(), None, is_mixed=False, dtype=FP8)
        # Its bytes, so that nobody takes it for numbers to train, to cast or to add to.
        self.weight = nn.Parameter(weight.view(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale.squeeze(1), persistent=False)
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return scaled_linear(input, self.weight, self.scale, self.bias, FP8)


def quantize(model: Any, dtype: torch.dtype, device: torch.device | None = None) -> None:
    """Freeze a model and quantize its linear layers to fp8, except for the output layer.

    A layer whose widths are not multiples of 16 stays as it is: products of fp8 need that.

    Args:
        model: a model of transformers; changed in place. Adapters are attached afterwards.
        dtype: of activations and of all tensors that stay floating point.
        device: where the layers go, each as it is quantized; None leaves them where they are.
    """

    def make(linear: nn.Linear) -> nn.Linear:
        is_aligned = not (linear.in_features % ALIGNMENT or linear.out_features % ALIGNMENT)
        return Fp8Linear(linear) if is_aligned else linear

    replace_linear(model, make, dtype, device)
    if device is not None and device.type == "cuda":
        used = model.get_output_embeddings().weight.device  # with its index
        if (why := why_no_kernels(used, FP8)) is not None:  # compiles them, too
            logger.warning("activations are rounded to fp8 in several passes, since %s", why)
