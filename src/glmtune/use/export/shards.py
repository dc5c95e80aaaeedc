"""Write tensors to safetensors shards as they come; one shard is in memory at a time.

tensors -> model.safetensors                                  if they fit into one
        -> model-00001-of-00007.safetensors, ..., model.safetensors.index.json
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from glmtune.errors import RecipeError
from glmtune.messages import translate

INDEX = "model.safetensors.index.json"
DEFAULT_SHARD = "2GB"
_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """Read a size such as 2GB, 500MB or 1GiB, in bytes.

    Raises:
        RecipeError: it is not a positive size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(I?)B?\s*", text.upper())
    size = 0
    if match:
        unit = _UNITS[match[2]] if not match[3] else 1024 ** " KMGT".index(match[2] or " ")
        size = int(float(match[1]) * unit)
    if size < 1:
        raise RecipeError(f"{text!r}: expected a size such as 2GB or 500MB.")
    return size


class ShardWriter:
    """Collects tensors and writes each shard when it is full.

    Attributes:
        num_bytes: of all tensors so far.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.num_bytes = 0
        self._folder, self._max_bytes = folder, max_bytes
        self._tensors: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._shards: list[tuple[Path, list[str]]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; the shard before it is written if both do not fit together."""
        if self._tensors and self._held_bytes + tensor.nbytes > self._max_bytes:
            self._write()
        self._tensors[name] = tensor.contiguous()
        self._held_bytes += tensor.nbytes
        self.num_bytes += tensor.nbytes

    def close(self) -> None:
        """Write the last shard, give all shards their names, and write the index."""
        self._write()
        total = len(self._shards)
        if total == 1:
            self._shards[0][0].replace(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, (file, names) in enumerate(self._shards, start=1):
            final = f"model-{number:05}-of-{total:05}.safetensors"
            file.replace(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self.num_bytes}, "weight_map": weight_map}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _write(self) -> None:
        from safetensors.torch import save_file

        file = self._folder / f"shard-{len(self._shards)}.safetensors"
        save_file(self._tensors, file, metadata={"format": "pt"})
        self._shards.append((file, list(self._tensors)))
        self._tensors, self._held_bytes = {}, 0


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], max_bytes: int, total_bytes: int
) -> int:
    """Write tensors to shards of a folder, with a progress bar on a terminal.

    Args:
        folder: exists.
        tensors: names and tensors, each made when it is asked for.
        max_bytes: of a shard; a larger tensor has one of its own.
        total_bytes: of all tensors, for the bar.

    Returns:
        How many bytes of tensors were written.
    """
    writer = ShardWriter(folder, max_bytes)
    with _bar(total_bytes) as advance:
        for name, tensor in tensors:
            writer.add(name, tensor)
            advance(tensor.nbytes)
        writer.close()
    return writer.num_bytes


@contextmanager
def _bar(total_bytes: int) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn(translate("writing")),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total_bytes)
        yield lambda num_bytes: bar.update(task, advance=num_bytes)
