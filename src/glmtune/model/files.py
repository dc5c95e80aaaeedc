"""Find the files of a checkpoint, and explain what is missing or damaged."""

import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import CheckpointError, json_kind
from glmtune.files import read_json_object
from glmtune.model.config_file import REMEDY, read_config
from glmtune.model.hubs import is_hub_id, resolve

if TYPE_CHECKING:
    from torch import Tensor

INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095  # of Linux; others allow no more
MAX_CHARACTERS = 1000  # of a library's message, which may quote a file
NANO = "nano"  # the model that comes with the package


def locate(name: str | Path) -> str:
    """Resolve `nano` to its folder, unless a model of that name is here; expand any other name.

    Raises:
        CheckpointError: no file can have this name.
    """
    check_path(name)
    if os.fspath(name) == NANO and not (Path(name) / "config.json").exists():
        return str(Path(__file__).with_name(NANO))
    return os.path.expanduser(name)


def check_path(path: str | Path) -> None:
    """Refuse a path that no file system accepts, of which asking whether it exists is an error.

    Raises:
        CheckpointError: it is too long, or has a null character.
    """
    text = os.fspath(path)
    longest = max(len(os.fsencode(part)) for part in re.split(r"[\\/]", text))
    if "\0" in text or longest > MAX_NAME_BYTES or len(os.fsencode(text)) > MAX_PATH_BYTES:
        raise CheckpointError(
            f"{text[:80]!r} cannot be the name of a file or folder: it has {len(text):,} "
            f"characters, at most {MAX_NAME_BYTES} bytes between two slashes are possible, and no "
            "null character. Give the folder of a model, or a hub id such as "
            "zai-org/chatglm3-6b."
        )


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
        if is_hub_id(name):
            return resolve(name)
        raise CheckpointError(
            f"{name}: there is no such folder. Give the folder of a model (it holds config.json) "
            "or a hub id such as zai-org/chatglm3-6b or modelscope://ZhipuAI/chatglm3-6b."
        )
    if (folder / "config.json").is_file():
        read_config(folder)  # refuses a damaged one
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


def weight_files(folder: Path) -> list[Path]:
    """List the weight files that loading reads, whether they exist or not.

    safetensors come before `.bin`, a single file before shards. A folder without weights gives [].

    Raises:
        CheckpointError: an index cannot be read, or names a file outside the folder.
    """
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return [folder / name for name in _files_of_index(folder / index)]
    return []


def _files_of_index(index: Path) -> list[str]:
    """Return the files that an index names; each is a plain file name beside it."""
    weight_map = read_json_object(index, remedy=REMEDY).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map is {str(weight_map)[:60]}, expected the file of every tensor. "
            f"{REMEDY}"
        )
    for tensor, name in weight_map.items():
        is_plain = isinstance(name, str) and re.fullmatch(r"[^/\\\0]{1,255}", name)
        if not is_plain or name in (".", ".."):
            raise CheckpointError(
                f"{index}: {tensor[:80]} is in {str(name)[:80]!r}, expected the name of a file in "
                f"the same folder. {REMEDY}"
            )
    return sorted(set(weight_map.values()))


def first_lines(error: BaseException) -> str:
    """Return the first paragraph of a message, which in transformers holds the cause."""
    first = " ".join(str(error).strip().split("\n\n")[0].split())
    if len(first) > MAX_CHARACTERS:
        first = f"{first[:MAX_CHARACTERS]} ..."
    return (first or type(error).__name__).rstrip(".") + "."


def read_saved(file: Path, *, map_location: str = "cpu", mmap: bool = False) -> Any:
    """Read what `torch.save` wrote; torch refuses to run code that it may hold.

    Args:
        file: the file.
        map_location: "meta" reads names, shapes and dtypes alone.
        mmap: read only what is used.

    Raises:
        CheckpointError: the file is damaged, or holds something other than plain values.
    """
    from pickle import UnpicklingError

    import torch

    try:
        mmap = mmap and zipfile.is_zipfile(file)  # not so before torch 1.6
        return torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # torch has no common base class for the errors of a damaged file
        held = f" ({file.stat().st_size} bytes)" if file.is_file() else ""
        why = "it holds something other than tensors, which is never loaded."
        if not isinstance(error, UnpicklingError):
            why = first_lines(error)
        raise CheckpointError(
            f"{file}{held} cannot be read: {why} It is damaged or incomplete; copy it again, or "
            "use an earlier checkpoint."
        ) from None


def read_bin(file: Path, *, map_location: str = "cpu", mmap: bool = False) -> dict[str, "Tensor"]:
    """Read a `.bin` file of weights.

    Args:
        file, map_location, mmap: as for `read_saved`.

    Raises:
        CheckpointError: as `read_saved`, or the file holds something other than tensors by name.
    """
    import torch

    content = read_saved(file, map_location=map_location, mmap=mmap)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file}: expected tensors by name, got {json_kind(content)}. Use the file that "
            "holds the weights."
        )
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
