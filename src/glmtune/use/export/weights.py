"""Read the tensors of a checkpoint one at a time, whatever its size.

    folder or hub id -> names, shapes and dtypes (headers alone) -> one tensor after another

Each read maps its file again and drops the mapping with the tensor, so that resident memory holds
one tensor and not the file.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.errors import CheckpointError, some
from glmtune.files import read_json_object
from glmtune.kernels.finite import check_finite
from glmtune.model.files import checked_name, first_lines, read_bin, weight_files

NEEDED = ["*.json", "*.safetensors", "*.model", "*.py", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor is, and what it is.

    Attributes:
        file: that holds it.
        shape, dtype: of the tensor.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return torch.Size(self.shape).numel()


class Weights:
    """The tensors of a complete model on disk.

    Attributes:
        folder: of the checkpoint.
        stored: its tensors by name, in the order of the files.
    """

    def __init__(self, name: str | Path) -> None:
        """Read the headers of all weight files.

        Args:
            name: a folder, a hub id, or `nano`.

        Raises:
            CheckpointError: there is no such model, it is quantized, or a file is damaged.
        """
        self.folder = local_folder(name)
        _refuse_quantized(self.folder, self.config)
        if not (files := weight_files(self.folder)):
            raise CheckpointError(
                f"{self.folder}: there are no weights: expected model.safetensors or "
                "pytorch_model.bin, or shards with an index. Copy them into the folder."
            )
        self.stored: Mapping[str, Stored] = {
            tensor: where for file in files for tensor, where in _tensors_of(file).items()
        }
        _refuse_packed(self.folder, self.stored)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json, as it is."""
        return read_json_object(self.folder / "config.json")

    def read(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            CheckpointError: the file cannot be read any more, or the tensor holds a
                number that is not finite.
        """
        file = self.stored[name].file
        if file.suffix == ".safetensors":
            tensor = _read_safetensors(file, name)
        else:
            tensor = read_bin(file, mmap=zipfile.is_zipfile(file))[name]
        check_finite(str(file), {name: tensor})  # or what is written would be as wrong
        return tensor


def local_folder(name: str | Path) -> Path:
    """Resolve a folder, `nano` or a hub id to a folder; what the hub lacks here is downloaded.

    Raises:
        CheckpointError: there is no such folder, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    checked = checked_name(name)
    if Path(checked).is_dir():
        return Path(checked)
    try:
        folder = Path(snapshot_download(checked, allow_patterns=NEEDED))
        if not weight_files(folder):  # many repositories have both kinds, twice the size
            folder = Path(snapshot_download(checked, allow_patterns=[*NEEDED, "*.bin"]))
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{checked}: there is no such folder here, and as a hub id: {first_lines(error)} "
            "Give the folder that holds the model's config.json."
        ) from error


def _refuse_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights of few bits, to which an update cannot be added without losing most of it."""
    packed = config.get("quantization_config") or config.get("quantization_bit")
    if packed:
        kind = packed.get("quant_method", "") if isinstance(packed, dict) else f"{packed} bits"
        raise CheckpointError(
            f"{folder}: its weights are quantized ({kind or 'quantization_config'}), and an update "
            "added to so few bits would be lost. Give the checkpoint in half precision that it was "
            "made from: --base FOLDER."
        )


def _refuse_packed(folder: Path, stored: Mapping[str, Stored]) -> None:
    packed = [name for name, each in stored.items() if not each.dtype.is_floating_point]
    matrices = [name for name in packed if len(stored[name].shape) > 1]
    if matrices:
        raise CheckpointError(
            f"{folder}: {some(matrices)} hold {stored[matrices[0]].dtype}, so the weights are "
            "quantized. Give the checkpoint in half precision: --base FOLDER."
        )


def _tensors_of(file: Path) -> dict[str, Stored]:
    """Read the names, shapes and dtypes of a file, in its order."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise CheckpointError(
            f"{file} is missing, and the index lists it. Copy it into the folder."
        )
    if file.suffix != ".safetensors":
        meta = read_bin(file, map_location="meta")
        return {name: Stored(file, tuple(each.shape), each.dtype) for name, each in meta.items()}
    stored = {}
    try:
        with safe_open(file, framework="pt") as content:
            for name in content.offset_keys():
                part = content.get_slice(name)
                dtype = _dtype(file, name, part.get_dtype())
                stored[name] = Stored(file, tuple(part.get_shape()), dtype)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} ({file.stat().st_size} bytes) cannot be read: {first_lines(error)} It is "
            "damaged or incomplete; copy it again."
        ) from error
    return stored


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _dtype(file: Path, name: str, dtype: str) -> torch.dtype:
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"{file}: {name} is stored as {dtype}, so the weights are quantized. Give the "
            "checkpoint in half precision: --base FOLDER."
        )
    return _DTYPES[dtype]


def _read_safetensors(file: Path, name: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            tensor: Tensor = content.get_tensor(name)
            return tensor
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: {first_lines(error)} Copy it again.") from error
