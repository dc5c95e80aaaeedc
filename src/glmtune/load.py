"""A folder, a hub id or `nano` -> configuration, tokenizer and model, or why not in plain words.

Code from the folder is never run. A tensor that the checkpoint lacks is an error and never a
freshly drawn layer. Hub ids are read from the local cache when there is no network.
"""

import logging
import os
import re
from dataclasses import dataclass
from json import JSONDecodeError, loads
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glmtune.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
SHOWN_NAMES = 3  # how many tensors a message names
NANO = "nano"  # the model that comes with the package


def locate(name: str | Path) -> str:
    """Give the folder of `nano`; any other name as it is. A model of that name here goes first."""
    if os.fspath(name) == NANO and not (Path(name) / "config.json").exists():
        return str(Path(__file__).with_name(NANO))
    return os.path.expanduser(name)


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

    name = _checked_name(name)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except StrictDataclassError as error:  # which wraps what the configuration's own check said
        raise CheckpointError(f"{name}: {_first_lines(error.__cause__ or error)}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{name}: {_why_no_config(name, error)}") from error
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
        name = _checked_name(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, config=config, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise CheckpointError(
            f"{name}: the tokenizer cannot be read: {_first_lines(error)} "
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
    asked, name = os.fspath(name), _checked_name(name)
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
            f"attention {attn_implementation!r} cannot be used here: {_first_lines(error)} "
            "Use sdpa, which needs nothing more."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
        said = _damaged_file(Path(name)) or _first_lines(error)
        raise CheckpointError(f"{name}: {said}") from error
    _refuse_gaps(name, found)
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
    weights stay as they are and are computed with in float32 (`glmtune.arithmetic`). The log
    says so.

    Args:
        name: a folder, a hub id, or `nano`.
        dtype: of the weights, by torch's name, or "auto" for the checkpoint's own.
        device: where it will run.
        compute: "int8" turns linear layers into int8 (`glmtune.int8`), on a CPU.
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

    from glmtune.arithmetic import widen
    from glmtune.int8 import quantise

    wanted: Any = (
        getattr(torch, dtype) if dtype != "auto" else load_config(name).dtype or torch.float32
    )
    slow = wanted if device.type == "cpu" and wanted not in fast_cpu_dtypes() else None
    if may_emulate:
        slow = None
    if slow == torch.float16 and torch.bfloat16 in fast_cpu_dtypes():
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
    packing = quantization and _packing(quantization, compute_dtype)
    is_nf4 = on_cpu and device_map is None and getattr(packing, "load_in_4bit", False)
    model = load_model(
        name,
        dtype="auto" if compute or is_nf4 else wanted,  # as stored it can be read where it lies
        device_map=device_map or (None if on_cpu else {"": device}),
        attn_implementation=attn_implementation,
        quantization=None if is_nf4 else packing,
    )
    if is_nf4:
        _pack_nf4(model, packing, wanted)
    elif packing is not None:
        _let_go_of_files(model)
    if packing is not None:
        _keep_gradients(model)
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


def _packing(quantization: Quantization, compute_dtype: "torch.dtype") -> Any:
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


def _pack_nf4(model: "PreTrainedModel", packing: Any, dtype: "torch.dtype") -> None:
    """Pack the linear layers of a mapped model to the bits that transformers packs them to.

    One file at a time is in memory; transformers maps all of them until the last weight is
    packed, 12.5 GB for 6 billion weights.
    """
    from bitsandbytes.nn import modules

    from glmtune.frozen import replace_linear

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


def _keep_gradients(model: "PreTrainedModel") -> None:
    """Keep bitsandbytes from packing its 4-bit weights anew on CPUs with AVX512-BF16.

    The first forward pass in evaluation mode would do so for good, and from then on the layer
    gives no gradient to its input, in training too, and without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _let_go_of_files(model: "PreTrainedModel") -> None:
    """Copy what was not packed, or the mapped files would stay in memory whole for its sake."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def fast_cpu_dtypes() -> "set[torch.dtype]":
    """Give the dtypes that this CPU multiplies natively; only x86 is known to lack some."""
    import torch

    able = torch.cpu.get_capabilities()
    half = {
        torch.bfloat16: able.get("avx512_bf16") or able.get("amx_bf16"),
        torch.float16: able.get("avx512_fp16") or able.get("amx_fp16"),
    }
    is_x86 = able.get("architecture") == "x86_64"
    return {torch.float32, torch.float64} | {d for d, has in half.items() if has or not is_x86}


def _checked_name(name: str | Path) -> str:
    """Give the name as transformers wants it, refusing what is no model before it asks the hub."""
    name = locate(name)
    folder = Path(name)
    if folder.is_file():
        raise CheckpointError(
            f"{name} is a file, expected the folder of a model. "
            f"Give the folder that holds it: {folder.parent}"
        )
    if not folder.is_dir():
        if HUB_ID.fullmatch(name):
            return name
        raise CheckpointError(
            f"{name}: there is no such folder. Give the folder of a model (it holds config.json) "
            "or a hub id such as zai-org/chatglm3-6b."
        )
    if (folder / "config.json").is_file():
        _check_json(folder / "config.json")
    elif (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{name} holds an adapter, not a model: it has adapter_config.json and no config.json. "
            "Give the model that the adapter was made for, and this folder as the adapter."
        )
    else:
        raise CheckpointError(
            f"{name} has no config.json, so it is not the folder of a model. "
            f"It holds: {', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'nothing'}. "
            "Give the folder that a model was downloaded to, or that `glmtune train` wrote."
        )
    return name


def _why_no_config(name: str, error: Exception) -> str:
    """Say in plain words why transformers has no configuration."""
    if "trust_remote_code" in str(error):
        return (
            "this model comes with its own code, which is never run here. Expected ChatGLM2, "
            "ChatGLM3, or a model that transformers itself knows."
        )
    if Path(name).is_dir():
        return _first_lines(error)
    return (
        f"there is no such folder here, and as a hub id: {_first_lines(error)} Give the folder "
        "that holds the model's config.json, or a hub id that can be reached from here."
    )


def _check_json(path: Path) -> None:
    """Refuse a configuration that is no JSON object."""
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except (JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error}). It may be half written; copy it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object.")


def _refuse_gaps(name: str, found: dict[str, Any]) -> None:
    """Refuse a model with a tensor that did not come from the checkpoint."""
    if mismatched := sorted(found["mismatched_keys"]):
        tensor, stored, expected = mismatched[0]
        raise CheckpointError(
            f"{name}: {tensor} has the shape {tuple(stored)}, and config.json asks for "
            f"{tuple(expected)} ({len(mismatched)} such in all). "
            "The weights and config.json belong to different models."
        )
    if missing := sorted(found["missing_keys"]):
        shown = ", ".join(missing[:SHOWN_NAMES])
        raise CheckpointError(
            f"{name}: the checkpoint lacks {shown} ({len(missing)} missing in all); expected every "
            "tensor that config.json asks for. Copy the checkpoint again, and check that its "
            "index lists all its files."
        )


def weight_files(folder: Path) -> list[Path]:
    """List the files of weights that loading reads, whether they are there or not.

    safetensors go before `.bin`, one file before shards. A folder without weights gives [].

    Raises:
        CheckpointError: an index cannot be read.
    """
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            _check_json(folder / index)
            content = loads((folder / index).read_text(encoding="utf-8"))
            return [folder / name for name in sorted(set(content.get("weight_map", {}).values()))]
    return []


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


def _damaged_file(folder: Path) -> str | None:
    """Say which file of weights is missing or cannot be opened, if one is."""
    if not folder.is_dir():
        return None
    files = weight_files(folder)
    if not files:
        return f"there are no weights: expected one of {', '.join(SINGLE_FILES + INDEX_FILES)}."
    for file in files:
        if not file.is_file():
            return f"{file.name} is missing, and the index lists it. Copy it into the folder."
        if problem := _why_unreadable(file):
            return f"{file.name} ({file.stat().st_size} bytes) cannot be read: {problem}"
    return None


def _why_unreadable(path: Path) -> str | None:
    """Open a file of weights and give what went wrong."""
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return None
        torch.load(path, map_location="meta", weights_only=True)
    except UnpicklingError:
        return "it is damaged, or holds something other than tensors, which is never loaded."
    except (OSError, EOFError, RuntimeError, SafetensorError) as error:
        return f"{_first_lines(error)} It is damaged or incomplete; copy it again."
    return None


def _first_lines(error: BaseException) -> str:
    """Give the first paragraph of a message, which for transformers is what happened."""
    first = " ".join(str(error).strip().split("\n\n")[0].split())
    return (first or type(error).__name__).rstrip(".") + "."
