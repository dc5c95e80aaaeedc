"""What the weight files of a folder hold, by their headers, and whether config.json says the same.

    index.json -> files -> name, shape, dtype of every tensor        12 GB take milliseconds

Loading allocates what config.json says and then fills it from the files. So both are compared
before anything is allocated: a missing tensor, one of another shape, a file outside the folder, or
more layers than config.json has, is refused by name.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.errors import CheckpointError, some
from glmtune.model.chatglm.outline import DEFAULTS, Shape, outline
from glmtune.model.config_file import FLOAT_DTYPES, NUMBERS_PER_BYTE, REMEDY, least_numbers
from glmtune.model.files import INDEX_FILES, SINGLE_FILES, first_lines, read_bin, weight_files

DTYPES = {  # the dtype names in the header of a safetensors file
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What the header of a file says of a tensor; the dtype has torch's name."""

    shape: Shape
    dtype: str
    nbytes: int


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Read names, shapes and dtypes of the weights in a folder.

    safetensors take precedence over `.bin`, as in loading. Return {} for a folder without weights.

    Raises:
        CheckpointError: an index names a missing file, or a file is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing, and the index lists it. Copy it into the folder."
            )
        if file.suffix not in (".safetensors", ".bin"):
            raise CheckpointError(
                f"{file}: the index lists this file, expected one that ends in .safetensors or "
                f".bin. {REMEDY}"
            )
        read = _safetensors_header if file.suffix == ".safetensors" else _bin_header
        tensors |= read(file)
    return tensors


def _safetensors_header(file: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(str(file), framework="np") as content:
            for name in content.keys():  # noqa: SIM118  # not a mapping
                part = content.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                nbytes = math.prod(shape) * _item_bytes(dtype)
                tensors[name] = StoredTensor(shape, DTYPES.get(dtype, dtype.lower()), nbytes)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} ({file.stat().st_size} bytes) cannot be read: {first_lines(error)} It is "
            "damaged or incomplete; copy it again."
        ) from None
    return tensors


def _item_bytes(dtype: str) -> int:
    """Return the bytes of one number, which the name of a dtype gives in bits: `BF16` has 2."""
    bits = re.search(r"\d+", dtype)
    return 1 if bits is None else max(1, int(bits[0]) // 8)


def _bin_header(file: Path) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(
            tuple(value.shape), str(value.dtype).removeprefix("torch."), value.nbytes
        )
        for name, value in read_bin(file, map_location="meta").items()
    }


# ---- config.json against the files -------------------------------------------------------


def check_stored(folder: Path, config: Any) -> None:
    """Refuse weights that are not those of a configuration, before anything is allocated.

    Args:
        folder: of the model.
        config: transformers' configuration of it.

    Raises:
        CheckpointError: names the tensor, what it is and what was expected.
    """
    stored = stored_tensors(folder)
    if not stored:
        raise CheckpointError(
            f"{folder}: there are no weights: expected one of "
            f"{', '.join(SINGLE_FILES + INDEX_FILES)}."
        )
    parameters = expected_shapes(config)
    if parameters is None:
        _check_total(folder, config, stored)
        return
    _check_layers(folder, config.num_hidden_layers, stored)
    mismatched = [
        (name, stored[name].shape, shape)
        for name, shape in parameters.items()
        if name in stored and stored[name].shape != shape
    ]
    missing = [name for name in parameters if name not in stored]
    check_all_loaded(str(folder), {"mismatched_keys": mismatched, "missing_keys": missing})
    for name in parameters:
        if stored[name].dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{folder}: {name} is stored as {stored[name].dtype}, expected "
                f"{', '.join(FLOAT_DTYPES)}. Quantized weights cannot be loaded; use the "
                "checkpoint in half precision."
            )


def expected_shapes(config: Any) -> Mapping[str, Shape] | None:
    """Return the parameters that a ChatGLM of this configuration has; None for other families."""
    if config.model_type != "chatglm":
        return None
    found = outline({"model_type": "chatglm"} | {key: getattr(config, key) for key in DEFAULTS})
    return None if found is None else found.parameters


def _check_layers(folder: Path, num_layers: int, stored: Mapping[str, StoredTensor]) -> None:
    layers = {int(match[1]) for name in stored if (match := LAYER.search(name))}
    if layers and max(layers) >= num_layers:
        raise CheckpointError(
            f"{folder}: config.json has num_layers {num_layers}, but the weights have "
            f"{max(layers) + 1} layers, so the last ones would be left out. Set num_layers to "
            f"{max(layers) + 1}, or copy the config.json that belongs to these weights."
        )


def _check_total(folder: Path, config: Any, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse a network of another family that is far larger than its files."""
    at_least = least_numbers(vars(config))
    held = sum(each.nbytes for each in stored.values())
    if at_least > NUMBERS_PER_BYTE * held:
        raise CheckpointError(
            f"{folder}: config.json describes a network of at least {at_least:,} numbers, and the "
            f"weight files hold {held:,} bytes. The weights and config.json belong to different "
            "models."
        )


def check_all_loaded(name: str, loading_info: Mapping[str, Any]) -> None:
    """Raise an error if a tensor of the model is not in the checkpoint.

    Args:
        name: of the model, for the message.
        loading_info: `mismatched_keys` and `missing_keys`, as transformers returns them.

    Raises:
        CheckpointError: a tensor is missing or has another shape; names it.
    """
    if mismatched := sorted(loading_info["mismatched_keys"]):
        tensor, stored, expected = mismatched[0]
        raise CheckpointError(
            f"{name}: {tensor} has the shape {tuple(stored)}, and config.json requires "
            f"{tuple(expected)} ({len(mismatched)} such in all). "
            "The weights and config.json belong to different models."
        )
    if missing := sorted(loading_info["missing_keys"]):
        raise CheckpointError(
            f"{name}: the checkpoint lacks {some(missing)} ({len(missing)} missing in all); "
            "expected every tensor that config.json requires. Copy the checkpoint again, and check "
            "that its index lists all its files."
        )
