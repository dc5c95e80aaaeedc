"""Quantize the frozen weights of linear layers to 4 or 8 bits."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from glmtune.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the frozen weights of linear layers are quantized.

    Attributes:
        library: "bnb" for bitsandbytes, which has 4 bits (NF4) or 8; "torchao" for 8.
        bits: of a weight.
        is_double: whether the scales of 4-bit blocks are quantized as well.
    """

    library: Literal["bnb", "torchao"] = "bnb"
    bits: Literal[4, 8] = 4
    is_double: bool = True


def check_quantization(quantization: Quantization | None) -> None:
    """Raise an error if the library is missing, before anything is loaded.

    Raises:
        CheckpointError: the library is not installed.
    """
    from importlib.util import find_spec

    if quantization is None:
        return
    name = {"bnb": "bitsandbytes", "torchao": "torchao"}[quantization.library]
    extra = {"bnb": "qlora", "torchao": "torchao"}[quantization.library]
    if find_spec(name) is None:
        raise CheckpointError(
            f"quantization needs {name}, which is not installed. Run "
            f"`pip install 'glmtune[{extra}]'`."
        )


def quantization_config(quantization: Quantization, compute_dtype: "torch.dtype") -> Any:
    """Return transformers' configuration of a quantization.

    Raises:
        CheckpointError: the library is not installed.
    """
    import transformers

    check_quantization(quantization)
    if quantization.library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return transformers.TorchAoConfig(Int8WeightOnlyConfig())
    # It casts activations to float16 and warns each time.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    configure: Any = transformers.BitsAndBytesConfig
    if quantization.bits == 8:
        return configure(load_in_8bit=True)
    return configure(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantization.is_double,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def quantize_to_nf4(model: "PreTrainedModel", packing: Any, dtype: "torch.dtype") -> None:
    """Quantize the linear layers of a memory-mapped model to the same bits as transformers does.

    One file at a time is in memory. transformers keeps all files mapped until the last weight is
    quantized: 12.5 GB for 6 billion weights.

    Args:
        model: its weights are views of mapped files; changed in place.
        packing: `BitsAndBytesConfig` of 4 bits.
        dtype: of the weights before they are quantized, and of all that stay floating point.
    """
    from bitsandbytes.nn import modules

    from glmtune.kernels.replace_linear import replace_linear

    linear_4bit: Any = modules.Linear4bit

    def quantize(linear: Any) -> Any:
        made = linear_4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=packing.bnb_4bit_compute_dtype,
            compress_statistics=packing.bnb_4bit_use_double_quant,
            quant_type=packing.bnb_4bit_quant_type,
            device="meta",
        )
        weight = linear.weight.data.to(dtype)
        made.weight = type(made.weight)(weight, requires_grad=False, **made.weight.__dict__).to(
            weight.device
        )
        made.bias = linear.bias
        return made

    replace_linear(model, quantize, dtype)
    flagged: Any = model
    flagged.is_loaded_in_4bit = flagged.is_quantized = True  # read by peft and by merging


def disable_avx512bf16_repacking(model: "PreTrainedModel") -> None:
    """Keep bitsandbytes from repacking its 4-bit weights on CPUs with AVX512-BF16.

    The first forward pass in evaluation mode would repack them permanently, and from then on the
    layer silently gives no gradient to its input, in training too.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def copy_mapped_weights(model: "PreTrainedModel") -> None:
    """Copy tensors that were not quantized, since a view would keep its entire file mapped."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
