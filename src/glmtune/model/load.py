"""Load the configuration, tokenizer and model of a folder, a hub id or `nano`.

Code from the folder is never run. A tensor that the checkpoint lacks is an error, and is never
initialized at random. Hub ids are read from the local cache when there is no network.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from glmtune import machine
from glmtune.model.added_tokens import add_tokens
from glmtune.model.card import verify
from glmtune.model.config_file import (
    CONFIG,
    TOKENIZER_CONFIG,
    check_generation_file,
    check_tokenizer_files,
    why_no_tokenizer,
)
from glmtune.model.files import (
    NANO,
    checked_name,
    explain_config_error,
    first_lines,
    locate,
)
from glmtune.model.fingerprint import fingerprint_of_name, remember
from glmtune.model.quantization import (
    Quantization,
    copy_mapped_weights,
    disable_avx512bf16_repacking,
    quantization_config,
    quantize_to_nf4,
)
from glmtune.model.stored import check_all_loaded, check_stored
from glmtune.recipe.choices import Compute

logger = logging.getLogger(__name__)


def load_config(name: str | Path) -> "PreTrainedConfig":
    """Read the configuration of a model.

    Args:
        name: a folder, a hub id, or `nano`.

    Raises:
        CheckpointError: there is no such model, it is an adapter, its configuration cannot be
            read, or its kind is not supported.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    import glmtune.auto  # noqa: F401  # registers ChatGLM

    name = checked_name(name)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except StrictDataclassError as error:  # which wraps the error of the configuration's own check
        raise CheckpointError(f"{name}: {first_lines(error.__cause__ or error)}") from error
    except Exception as error:  # each family reads its own keys, and any of them may be wrong
        raise CheckpointError(f"{name}: {explain_config_error(name, error)}") from error
    return config


def load_tokenizer(name: str | Path, added: Sequence[str] = ()) -> "PreTrainedTokenizerBase":
    """Read the tokenizer of a model.

    Args:
        name: a folder, a hub id, or `nano`.
        added: tokens to add to it.

    Raises:
        CheckpointError: as for `load_config`, or there is no tokenizer that can be read.
        RecipeError: a token cannot be added.
    """
    tokenizer = _read_tokenizer(name)
    if added:
        add_tokens(tokenizer, added, load_config(name).vocab_size)
    return tokenizer


def _read_tokenizer(name: str | Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    import glmtune.auto  # noqa: F401  # registers ChatGLM
    from glmtune.model.chatglm.piece_tokenizer import is_ours
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

    folder = Path(locate(name))
    if (folder / TOKENIZER_CONFIG).is_file() and not (folder / CONFIG).is_file():
        name, config = locate(name), None  # an adapter folder has no config.json
    else:
        config = load_config(name)
        name = checked_name(name)
    check_tokenizer_files(folder)
    if (why := why_no_tokenizer(folder)) is not None:
        raise CheckpointError(f"there is no tokenizer: {why}")
    try:
        if is_ours(get_tokenizer_config(name)):  # stock tools read another class there
            ours: PreTrainedTokenizerBase = ChatGLMTokenizer.from_pretrained(name)
            return ours
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, config=config, trust_remote_code=False
        )
    except Exception as error:  # of files that transformers, tokenizers and SentencePiece read
        raise CheckpointError(
            f"{name}: the tokenizer cannot be read: {first_lines(error)} "
            "ChatGLM needs tokenizer.model in the folder of the model."
        ) from error
    return tokenizer


def load_shapes(
    name: str | Path, *, dtype: "torch.dtype | str" = "auto", attn_implementation: str = "sdpa"
) -> "PreTrainedModel":
    """Build a model on the meta device: shapes and dtypes without data.

    Args:
        name: a folder with at least a config.json, or a hub id.
        dtype: of the weights; "auto" is the configuration's.
        attn_implementation: a name that transformers knows.

    Raises:
        CheckpointError: as for `load_config`, or it is not a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(name)
    build: Any = AutoModelForCausalLM.from_config
    if dtype == "auto":
        dtype = config.dtype or torch.float32
    with torch.device("meta"):
        try:
            built: PreTrainedModel = build(
                config, dtype=dtype, attn_implementation=attn_implementation
            )
        except Exception as error:  # whatever the network makes of numbers that do not fit
            raise CheckpointError(
                f"{name}: model_type {config.model_type!r} is not a causal language model "
                f"that transformers knows: {first_lines(error)}"
            ) from error
    built.eval()  # type: ignore[no-untyped-call]
    return built


def load_model(
    name: str | Path,
    *,
    dtype: "torch.dtype | str" = "auto",
    device_map: Any = None,
    attn_implementation: str = "sdpa",
    quantization: Any = None,
    is_read_later: bool = False,
) -> "PreTrainedModel":
    """Read a causal language model, in evaluation mode.

    Args:
        name: a folder, a hub id, or `nano`.
        dtype: of the weights in memory; "auto" is the checkpoint's own.
        device_map: where the weights go, as for `from_pretrained`; None is the CPU. For "meta"
            only the configuration is read, and nothing is quantized.
        attn_implementation: a name that transformers knows.
        quantization: a configuration of transformers that quantizes each weight as it is read.
        is_read_later: leave mapped weights unread; the reader checks that they are finite.

    Raises:
        CheckpointError: as for `load_config`; or a file is missing or damaged, the checkpoint
            lacks a tensor, has one of another shape or one that is not finite; or the attention
            cannot be used here.
    """
    from transformers import AutoModelForCausalLM

    from glmtune.kernels.finite import check_finite

    if device_map == "meta":
        return load_shapes(name, dtype=dtype, attn_implementation=attn_implementation)
    config = load_config(name)
    _check_attention(name, config, attn_implementation)
    asked, name = os.fspath(name), checked_name(name)
    if (folder := Path(name)).is_dir():
        check_generation_file(folder)
        check_stored(folder, config)
        verify(folder)
    found = fingerprint_of_name(name)  # before loading, or pages of a file would be mapped twice
    read: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, loading_info = read(
            name,
            config=config,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            quantization_config=quantization,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused by `check_all_loaded`, by name
        )
    except ImportError as error:
        raise CheckpointError(
            f"attention {attn_implementation!r} cannot be used here: {first_lines(error)} "
            "In a recipe use model.attn_implementation=packed, which needs nothing more. Use sdpa "
            "in Python."
        ) from error
    except Exception as error:  # the headers fit, so this is the machine or another family
        raise CheckpointError(f"{name}: {first_lines(error)}") from error
    check_all_loaded(name, loading_info)
    if not is_read_later:
        check_finite(name, dict(model.named_parameters()))
    remember(model, found or fingerprint_of_name(name))  # a hub id may not have been cached
    loaded: PreTrainedModel = model
    if asked == NANO:  # so that an adapter records this name, not a local path
        loaded.name_or_path = loaded.config._name_or_path = asked
    return loaded


def load_frozen_model(
    name: str | Path,
    *,
    dtype: str = "auto",
    device: "torch.device",
    compute: Compute | None = None,
    device_map: Any = None,
    attn_implementation: str = "sdpa",
    quantization: "Quantization | None" = None,
    may_emulate: bool = False,
) -> "PreTrainedModel":
    """Read a model whose weights stay frozen, in a form that computes at full speed here.

    A CPU without arithmetic for a half-precision dtype emulates it, tens to hundreds of times
    slower than float32. There bfloat16 replaces float16 if the CPU has it; otherwise the weights
    keep their dtype and products are computed in float32 (`glmtune.kernels.half_precision`).
    Either is logged.

    Args:
        name: a folder, a hub id, or `nano`.
        dtype: of the weights, by torch's name, or "auto" for the checkpoint's own.
        device: where it will run.
        compute: "int8" quantizes linear layers to int8 (`glmtune.kernels.int8`), on a CPU or an
            NVIDIA GPU; "fp8" to float8 (`glmtune.kernels.fp8`), on a GPU that multiplies it. Each
            layer is quantized where it goes, so the others are never there in 16 bits.
        device_map: where the weights go; None is all of them to `device`. With `compute`, "meta" or
            None.
        attn_implementation: a name that transformers knows.
        quantization: how linear layers are quantized; embeddings, norms and the output layer are
            not.
        may_emulate: keep a dtype that this CPU emulates.

    Raises:
        CheckpointError: as for `load_model`.
        RecipeError: `compute` was requested with another quantization, or is not possible here.
    """
    from glmtune.kernels import fp8, int8
    from glmtune.kernels.half_precision import widen

    is_planned = device_map == "meta"
    check_compute(compute, device, is_planned=is_planned)
    if compute is not None and quantization is not None:
        raise RecipeError(
            f"compute={compute!r} and quantization are two ways to hold the same layers. Leave one "
            "of them out."
        )
    stored, computed = _choose_dtypes(name, dtype, device, may_emulate=may_emulate)
    if quantization is not None and quantization.library == "torchao":
        stored = computed  # torchao has one dtype for both
    if device_map is None and device.type != "cpu" and compute is None:
        device_map = {"": device}
    if quantization is not None:
        packing = quantization_config(quantization, computed)
        model = _load_quantized(name, packing, stored, device_map, attn_implementation)
    else:
        model = load_model(
            name,
            dtype="auto" if compute else stored,  # in the stored dtype weights stay memory-mapped
            device_map=device_map,
            attn_implementation=attn_implementation,
            is_read_later=compute is not None,
        )
    if compute is not None:
        quantize = {"int8": int8.quantize, "fp8": fp8.quantize}[compute]
        quantize(model, stored, None if is_planned else device)
    if stored != computed:
        _log_widened(stored)
        widen(model)
    return model


def _log_widened(stored: "torch.dtype") -> None:
    logger.warning(
        "this CPU has no arithmetic for %s: the weights keep this dtype, and products are "
        "computed in float32",
        str(stored).removeprefix("torch."),
    )


def check_compute(
    compute: Compute | None, device: "torch.device", *, is_planned: bool = False
) -> None:
    """Refuse what a device cannot compute, before anything is loaded.

    Args:
        compute: of the linear layers.
        device: to run on; a GPU need not be here if this is a plan.
        is_planned: whether only shapes will be loaded.

    Raises:
        RecipeError: says why, and what else there is.
    """
    has_int8 = device.type in ("cpu", "cuda")
    if compute == "int8" and not has_int8:
        raise RecipeError(
            f"model.compute=int8 is made for CPUs and NVIDIA GPUs, and this would run on "
            f"{device.type}. Leave it out, or set training.use_cpu=true."
        )
    if compute == "fp8" and (why := _why_no_fp8(device, is_planned=is_planned)) is not None:
        instead = "Use model.compute=int8, or leave it out." if has_int8 else "Leave it out."
        raise RecipeError(
            "model.compute=fp8 needs a GPU of compute capability 8.9 or later (RTX 40 and 50, L4, "
            f"H100 and later), and {why}. {instead}"
        )


def _why_no_fp8(device: "torch.device", *, is_planned: bool) -> str | None:
    from glmtune.kernels.scaled_linear import why_no_fp8

    return None if is_planned and device.type == "cuda" else why_no_fp8(device)


def _choose_dtypes(
    name: str | Path, dtype: str, device: "torch.device", *, may_emulate: bool
) -> "tuple[torch.dtype, torch.dtype]":
    """Choose the dtype of the weights in memory, and that of the arithmetic."""
    import torch

    stored: Any = (
        getattr(torch, dtype) if dtype != "auto" else load_config(name).dtype or torch.float32
    )
    if device.type != "cpu" or may_emulate:
        return stored, stored
    fast = machine.fast_cpu_dtypes()
    if stored == torch.float16 and stored not in fast and torch.bfloat16 in fast:
        logger.warning("this CPU has no arithmetic for float16: using bfloat16 instead")
        stored = torch.bfloat16
    return stored, stored if stored in fast else torch.float32


def _load_quantized(
    name: str | Path,
    packing: Any,
    dtype: "torch.dtype",
    device_map: Any,
    attn_implementation: str,
) -> "PreTrainedModel":
    """Read a model and quantize its linear layers by a configuration of transformers."""
    is_mapped_nf4 = device_map is None and getattr(packing, "load_in_4bit", False)
    model = load_model(
        name,
        dtype="auto" if is_mapped_nf4 else dtype,
        device_map=device_map,
        attn_implementation=attn_implementation,
        quantization=None if is_mapped_nf4 else packing,
        is_read_later=is_mapped_nf4,
    )
    if is_mapped_nf4:
        quantize_to_nf4(model, packing, dtype)
    else:
        copy_mapped_weights(model)
    disable_avx512bf16_repacking(model)
    return model


def _check_attention(name: str | Path, config: Any, attn_implementation: str) -> None:
    """Refuse attention over packs for a family that sdpa cannot compute either.

    It calls torch's `scaled_dot_product_attention` for each example.

    Raises:
        CheckpointError: the family caps its scores (Gemma 2), or has sinks (gpt-oss).
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    family = known.get(type(config), None)
    if attn_implementation == "packed" and not getattr(family, "_supports_sdpa", True):
        raise CheckpointError(
            f"{name}: a model of type {config.model_type!r} does more to its attention scores than "
            "sdpa can (it caps them, or has sinks), so it cannot be tuned on packs. On a GPU, "
            "model.attn_implementation=flash_attention_2 may support it."
        )
