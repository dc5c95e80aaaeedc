"""A folder, a hub id or `nano` -> configuration, tokenizer and model, or why not in plain words.

Code from the folder is never run. A tensor that the checkpoint lacks is an error and never a
freshly drawn layer. Hub ids are read from the local cache when there is no network.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glmtune.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from glmtune import machine
from glmtune.model.files import (
    NANO,
    checked_name,
    damaged_file,
    first_lines,
    locate,
    refuse_gaps,
    why_no_config,
)
from glmtune.model.quantization import (
    Quantization,
    copy_mapped_weights,
    keep_gradients,
    pack_nf4,
    quantization_config,
)

logger = logging.getLogger(__name__)


def load_config(name: str | Path) -> "PreTrainedConfig":
    """Read the configuration of a model.

    Args:
        name: a folder, a hub id, or `nano`.

    Raises:
        CheckpointError: there is no such model, it is an adapter, its configuration cannot be
            read, or it is a kind that cannot be used.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    import glmtune.auto  # noqa: F401  # makes ChatGLM known

    name = checked_name(name)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except StrictDataclassError as error:  # which wraps what the configuration's own check said
        raise CheckpointError(f"{name}: {first_lines(error.__cause__ or error)}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{name}: {why_no_config(name, error)}") from error
    return config


def load_tokenizer(name: str | Path) -> "PreTrainedTokenizerBase":
    """Read the tokenizer of a model.

    Args:
        name: a folder, a hub id, or `nano`.

    Raises:
        CheckpointError: as for `load_config`, or there is no tokenizer that can be read.
    """
    from transformers import AutoTokenizer

    import glmtune.auto  # noqa: F401  # makes ChatGLM known

    if (Path(locate(name)) / "tokenizer_config.json").is_file():  # enough, as beside an adapter
        name, config = locate(name), None
    else:
        config = load_config(name)
        name = checked_name(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, config=config, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise CheckpointError(
            f"{name}: the tokenizer cannot be read: {first_lines(error)} "
            "ChatGLM needs tokenizer.model in the folder of the model."
        ) from error
    return tokenizer


def load_shapes(
    name: str | Path, *, dtype: "torch.dtype | str" = "auto", attn_implementation: str = "sdpa"
) -> "PreTrainedModel":
    """Make the network of a model on the meta device: shapes and dtypes, and no numbers.

    Args:
        name: a folder with at least a config.json, or a hub id.
        dtype: of the weights; "auto" is the configuration's.
        attn_implementation: a name that transformers knows.

    Raises:
        CheckpointError: as for `load_config`, or it is no causal language model.
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
        except ValueError as error:
            raise CheckpointError(
                f"{name}: model_type {config.model_type!r} is no causal language model that "
                f"transformers knows: {error}"
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
) -> "PreTrainedModel":
    """Read a causal language model, in evaluation mode.

    Args:
        name: a folder, a hub id, or `nano`.
        dtype: of the weights in memory; "auto" is the checkpoint's own.
        device_map: where the weights go, as for `from_pretrained`; None is the CPU, and "meta"
            is nowhere: only the configuration is read, and nothing is packed.
        attn_implementation: a name that transformers knows.
        quantization: a configuration of transformers, to pack each weight as it is read.

    Raises:
        CheckpointError: as for `load_config`; or a file is missing or damaged, the checkpoint
            lacks a tensor or has one of another shape; or the attention cannot be used here.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if device_map == "meta":
        return load_shapes(name, dtype=dtype, attn_implementation=attn_implementation)
    config = load_config(name)
    _check_attention(name, config, attn_implementation)
    asked, name = os.fspath(name), checked_name(name)
    read: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, found = read(
            name,
            config=config,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            quantization_config=quantization,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except ImportError as error:
        raise CheckpointError(
            f"attention {attn_implementation!r} cannot be used here: {first_lines(error)} "
            "Use sdpa, which needs nothing more."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
        said = damaged_file(Path(name)) or first_lines(error)
        raise CheckpointError(f"{name}: {said}") from error
    refuse_gaps(name, found)
    loaded: PreTrainedModel = model
    if asked == NANO:  # an adapter then names it so, and not a folder of this machine
        loaded.name_or_path = loaded.config._name_or_path = asked
    return loaded


def load_frozen_model(
    name: str | Path,
    *,
    dtype: str = "auto",
    device: "torch.device",
    compute: Literal["int8"] | None = None,
    device_map: Any = None,
    attn_implementation: str = "sdpa",
    quantization: "Quantization | None" = None,
    may_emulate: bool = False,
) -> "PreTrainedModel":
    """Read a model to use as it is or under an adapter, so that it computes at full speed.

    A CPU without arithmetic for a half-precision dtype emulates it, tens to hundreds of times
    slower than float32. There float16 gives way to bfloat16 where the CPU has that; else the
    weights stay as they are and are computed with in float32
    (`glmtune.kernels.half_precision`). The log says so.

    Args:
        name: a folder, a hub id, or `nano`.
        dtype: of the weights, by torch's name, or "auto" for the checkpoint's own.
        device: where it will run.
        compute: "int8" turns linear layers into int8 (`glmtune.kernels.int8`), on a CPU.
        device_map: where the weights go; None is all of them to `device`.
        attn_implementation: a name that transformers knows.
        quantization: how linear layers are packed; embeddings, norms and the output layer are
            left as they are.
        may_emulate: keep to a dtype that this CPU emulates all the same.

    Raises:
        CheckpointError: as for `load_model`.
        RecipeError: int8 is asked for where it is not to be had.
    """
    import torch

    from glmtune.kernels.half_precision import widen
    from glmtune.kernels.int8 import quantise

    wanted: Any = (
        getattr(torch, dtype) if dtype != "auto" else load_config(name).dtype or torch.float32
    )
    slow = wanted if device.type == "cpu" and wanted not in machine.fast_cpu_dtypes() else None
    if may_emulate:
        slow = None
    if slow == torch.float16 and torch.bfloat16 in machine.fast_cpu_dtypes():
        logger.warning("this CPU has no arithmetic for float16: using bfloat16 instead")
        wanted, slow = torch.bfloat16, None
    compute_dtype = torch.float32 if slow else wanted
    if quantization is not None and quantization.library == "torchao":
        wanted, slow = compute_dtype, None  # its weights know one dtype
    on_cpu = device.type == "cpu"
    if compute == "int8" and quantization is not None:
        raise RecipeError(
            "model.compute=int8 and packed weights (adapter.method=qlora) are two ways to hold "
            "the same layers. Leave one of them out."
        )
    if compute == "int8" and not on_cpu:
        raise RecipeError(
            f"model.compute=int8 is made for CPUs, and this would run on {device.type}. Leave it "
            "out, or set training.use_cpu=true."
        )
    packing = quantization and quantization_config(quantization, compute_dtype)
    is_nf4 = on_cpu and device_map is None and getattr(packing, "load_in_4bit", False)
    model = load_model(
        name,
        dtype="auto" if compute or is_nf4 else wanted,  # as stored it can be read where it lies
        device_map=device_map or (None if on_cpu else {"": device}),
        attn_implementation=attn_implementation,
        quantization=None if is_nf4 else packing,
    )
    if is_nf4:
        pack_nf4(model, packing, wanted)
    elif packing is not None:
        copy_mapped_weights(model)
    if packing is not None:
        keep_gradients(model)
    if compute == "int8":
        quantise(model, wanted)
    if slow is not None:
        logger.warning(
            "this CPU has no arithmetic for %s: the weights stay as they are, and are computed "
            "with in float32",
            str(slow).removeprefix("torch."),
        )
        widen(model)
    return model


def _check_attention(name: str | Path, config: Any, attn_implementation: str) -> None:
    """Refuse attention over packs for a family whose scores are more than products.

    It is torch's product, example by example, so it fits wherever transformers' sdpa does.

    Raises:
        CheckpointError: the family caps its scores (Gemma 2), or has sinks (gpt-oss).
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    family = known.get(type(config), None)
    if attn_implementation == "packed" and not getattr(family, "_supports_sdpa", True):
        raise CheckpointError(
            f"{name}: a model of type {config.model_type!r} does more to its attention scores than "
            "sdpa can (it caps them, or has sinks), so it cannot be tuned here by packs. On a GPU, "
            "model.attn_implementation=flash_attention_2 may know of it."
        )
