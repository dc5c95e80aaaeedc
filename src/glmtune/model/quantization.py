"""Pack the frozen weights of linear layers into 4 or 8 bits."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from glmtune.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights of linear layers are packed while they stay frozen.

    Attributes:
        library: "bnb" for bitsandbytes, which packs to 4 bits (NF4) or 8; "torchao" for 8.
        bits: of a weight.
        is_double: whether the scales of 4-bit blocks are packed as well.
    """

    library: Literal["bnb", "torchao"] = "bnb"
    bits: Literal[4, 8] = 4
    is_double: bool = True


def check_quantization(quantization: Quantization | None) -> None:
    """Refuse what cannot be done here, before anything is loaded.

    Raises:
        CheckpointError: the library is not installed.
    """
    from importlib.util import find_spec

    if quantization is None:
        return
    name = {"bnb": "bitsandbytes", "torchao": "torchao"}[quantization.library]
    if find_spec(name) is None:
        raise CheckpointError(
            f"the weights are to be packed by {name}, which is not installed. `pip install {name}`."
        )


def quantization_config(quantization: Quantization, compute_dtype: "torch.dtype") -> Any:
    """Give transformers' configuration of a quantization.

    Raises:
        CheckpointError: the library is not installed.
    """
    import transformers

    check_quantization(quantization)
    if quantization.library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return transformers.TorchAoConfig(Int8WeightOnlyConfig())
    # It casts activations to float16, and says so for each of them.
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


def pack_nf4(model: "PreTrainedModel", packing: Any, dtype: "torch.dtype") -> None:
    """Pack the linear layers of a mapped model to the bits that transformers packs them to.

    One file at a time is in memory; transformers maps all of them until the last weight is
    packed, 12.5 GB for 6 billion weights.
    """
    from bitsandbytes.nn import modules

    from glmtune.kernels.replace_linear import replace_linear

    packed: Any = modules.Linear4bit

    def pack(linear: Any) -> Any:
        made = packed(
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

    replace_linear(model, pack, dtype)
    tell: Any = model
    tell.is_loaded_in_4bit = tell.is_quantized = True  # where peft and `adapter.merge` look


def keep_gradients(model: "PreTrainedModel") -> None:
    """Keep bitsandbytes from packing its 4-bit weights anew on CPUs with AVX512-BF16.

    The first forward pass in evaluation mode would do so for good, and from then on the layer
    gives no gradient to its input, in training too, and without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def copy_mapped_weights(model: "PreTrainedModel") -> None:
    """Copy what was not packed, or the mapped files would stay in memory whole for its sake."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
