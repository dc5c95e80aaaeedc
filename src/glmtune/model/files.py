"""Find the files of a checkpoint, and explain what is missing or damaged."""

import os
import re
from json import JSONDecodeError, loads
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
SHOWN_NAMES = 3  # the most tensors that a message names
NANO = "nano"  # the model that comes with the package


def locate(name: str | Path) -> str:
    """Resolve `nano` to its folder, unless a model of that name is here; expand any other name."""
    if os.fspath(name) == NANO and not (Path(name) / "config.json").exists():
        return str(Path(__file__).with_name(NANO))
    return os.path.expanduser(name)


def checked_name(name: str | Path) -> str:
    """Resolve a name for transformers, refusing what is not a model before the hub is asked."""
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
        _read_json(folder / "config.json")  # refuses a damaged one
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


def explain_config_error(name: str, error: Exception) -> str:
    """Explain why transformers found no configuration."""
    if "trust_remote_code" in str(error):
        return (
            "this model comes with its own code, which is never run here. Expected ChatGLM2, "
            "ChatGLM3, or a model that transformers itself knows."
        )
    if Path(name).is_dir():
        return first_lines(error)
    return (
        f"there is no such folder here, and as a hub id: {first_lines(error)} Give the folder "
        "that holds the model's config.json, or a hub id that can be reached from here."
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint, which a download may have left half written."""
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except (JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error}). It may be half written; copy it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object.")
    return content


def check_all_loaded(name: str, loading_info: dict[str, Any]) -> None:
    """Raise an error if a tensor of the model did not come from the checkpoint.

    Args:
        name: of the model, for the message.
        loading_info: as transformers returns it.

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
        shown = ", ".join(missing[:SHOWN_NAMES])
        raise CheckpointError(
            f"{name}: the checkpoint lacks {shown} ({len(missing)} missing in all); expected every "
            "tensor that config.json requires. Copy the checkpoint again, and check that its "
            "index lists all its files."
        )


def weight_files(folder: Path) -> list[Path]:
    """List the weight files that loading reads, whether they exist or not.

    safetensors come before `.bin`, a single file before shards. A folder without weights gives [].

    Raises:
        CheckpointError: an index cannot be read.
    """
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            weight_map = _read_json(folder / index).get("weight_map", {})
            return [folder / name for name in sorted(set(weight_map.values()))]
    return []


def find_damaged_file(folder: Path) -> str | None:
    """Explain which weight file is missing or unreadable, if any."""
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
    """Open a weight file and explain what went wrong, if anything."""
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
        return f"{first_lines(error)} It is damaged or incomplete; copy it again."
    return None


def first_lines(error: BaseException) -> str:
    """Return the first paragraph of a message, which in transformers holds the cause."""
    first = " ".join(str(error).strip().split("\n\n")[0].split())
    return (first or type(error).__name__).rstrip(".") + "."


def read_bin(file: Path, *, map_location: str = "cpu", mmap: bool = False) -> dict[str, "Tensor"]:
    """Read a `.bin` file of weights; torch refuses to run code that it may hold.

    Args:
        file: what `torch.save` wrote.
        map_location: "meta" reads names, shapes and dtypes alone.
        mmap: read only what is used.

    Raises:
        CheckpointError: the file is damaged, or holds something other than tensors by name.
    """
    import torch

    try:
        content = torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # torch has no common base class for the errors of a damaged file
        raise CheckpointError(
            f"{file}: damaged, half written, or not plain weights ({error}). Use an earlier "
            "checkpoint, or copy the file again."
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file}: expected tensors by name, got a {type(content).__name__}. Use the file that "
            "holds the weights."
        )
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
