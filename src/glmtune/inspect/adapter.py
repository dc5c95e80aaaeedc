"""An adapter folder -> its method, its base, its prompts, and whether its layers do anything.

A LoRA adapter in safetensors, float32 or float16, is read without torch: names, shapes and dtypes
come from the header of the file, and of the numbers only the B matrices are read, for their norms.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glmtune.methods import adapter_folder
from glmtune.model.card import find_change
from glmtune.model.stored import DTYPES

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """Everything that `glmtune info` shows of an adapter folder.

    Attributes:
        folder: the folder.
        method: peft's name of the method.
        base: the model that it was trained on.
        r, lora_alpha: rank and scale of its update.
        target_modules: the layers it changes.
        template: how its prompts were built, None if the folder does not say.
        fingerprint: of that template, "" if the folder does not say.
        glmtune_version: that made it, "" if it was made elsewhere.
        num_tensors, numel: tensors, and the numbers in them.
        dtypes: of its tensors.
        file_bytes: of its weights file.
        norms: of B by layer; a layer with norm 0 leaves the output as it is.
        dead: the layers whose B is zero or not finite.
        change: which file is not what was written, "" if none is.
    """

    folder: str
    method: str
    base: str
    r: int | None
    lora_alpha: float | None
    target_modules: tuple[str, ...]
    template: Mapping[str, Any] | None
    fingerprint: str
    glmtune_version: str
    num_tensors: int
    numel: int
    dtypes: tuple[str, ...]
    file_bytes: int
    norms: Mapping[str, float]
    dead: tuple[str, ...]
    change: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of an adapter; `norm` is that of a B matrix, None for others."""

    name: str
    dtype: str
    numel: int
    norm: float | None


@dataclass(frozen=True, slots=True)
class _Contents:
    """The files of an adapter: its configuration, the name of its base, its weights."""

    config: Mapping[str, Any]
    base: str
    file: Path
    tensors: list[_Tensor]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of any method, and no complete model."""
    if adapter_folder.is_adapter(folder):
        return True
    if not (folder / "pytorch_model.bin").is_file():  # the only other kind, a P-Tuning v2 prefix
        return False
    from glmtune.methods import method  # loads torch

    return method.is_adapter(folder)


def describe_adapter(folder: Path) -> AdapterFacts:
    """Describe an adapter: what it belongs to, and whether it does anything.

    Raises:
        CheckpointError: the folder is not an adapter, or a file is damaged.
    """
    read = _read_peft if (folder / "adapter_config.json").is_file() else _read_prefix
    contents = read(folder)
    config, tensors = contents.config, contents.tensors
    card = adapter_folder.load_card(folder)
    norms = {_layer(each.name): each.norm for each in tensors if each.norm is not None}
    return AdapterFacts(
        folder=str(folder),
        method=str(config.get("peft_type", "")),
        base=contents.base,
        r=config.get("r"),
        lora_alpha=config.get("lora_alpha"),
        target_modules=_as_tuple(config.get("target_modules")),
        template=None if card is None else card.template,
        fingerprint="" if card is None else card.fingerprint,
        glmtune_version="" if card is None else card.version,
        num_tensors=len(tensors),
        numel=sum(each.numel for each in tensors),
        dtypes=tuple(sorted({each.dtype for each in tensors})),
        file_bytes=contents.file.stat().st_size,
        norms=norms,
        dead=tuple(name for name, norm in norms.items() if not 0 < norm < math.inf),
        change=find_change(folder)[1],
    )


def _read_peft(folder: Path) -> _Contents:
    adapter_folder.check_contents(folder)
    config = adapter_folder.read_config(folder)
    base = str(config.get("base_model_name_or_path") or "")
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        return _Contents(config, base, file, list(_read_safetensors(file)))
    file, tensors = adapter_folder.read_tensors(folder)
    return _Contents(config, base, file, _of_torch(tensors))


def _read_prefix(folder: Path) -> _Contents:
    from glmtune.methods import method, ptuning_v2  # loads torch

    ptuning_v2.read_shape(folder)
    tensors = _of_torch(ptuning_v2.read_tensors(folder))
    config = {"peft_type": "P-Tuning v2"}
    return _Contents(config, method.base_name(folder), folder / ptuning_v2.WEIGHTS, tensors)


def _read_safetensors(file: Path) -> Iterator[_Tensor]:
    from safetensors import safe_open

    with safe_open(str(file), framework="np") as content:
        for name in content.keys():  # noqa: SIM118  # not a mapping
            header = content.get_slice(name)
            dtype, norm = DTYPES[header.get_dtype()], None
            if _is_b(name) and dtype in ("float64", "float32", "float16"):
                norm = math.sqrt(np.square(content.get_tensor(name), dtype=np.float64).sum())
            elif _is_b(name):  # NumPy has no bfloat16
                with safe_open(str(file), framework="pt") as by_torch:
                    norm = by_torch.get_tensor(name).float().norm().item()
            yield _Tensor(name, dtype, math.prod(header.get_shape()), norm)


def _of_torch(tensors: "Mapping[str, Tensor]") -> list[_Tensor]:
    return [
        _Tensor(
            name=name,
            dtype=str(value.dtype).removeprefix("torch."),
            numel=value.numel(),
            norm=value.float().norm().item() if _is_b(name) else None,
        )
        for name, value in tensors.items()
    ]


def _is_b(name: str) -> bool:
    return "lora_B" in name or "lora_embedding_B" in name


def _layer(name: str) -> str:
    return re.split(r"\.lora_", name.removeprefix("base_model.model."))[0]


def _as_tuple(value: str | Iterable[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(sorted(value))
