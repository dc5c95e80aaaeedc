"""Read and check an adapter folder: peft's files, and `glmtune.json` beside them.

adapter_config.json          peft's own description: method, rank, target modules, base model
adapter_model.safetensors    the weights; `.bin` in folders of old releases of peft
glmtune.json                 the template that the prompts were built with, checksums, and the
                             fingerprint of the base (`model.card`); only in our folders
"""

import dataclasses
import logging
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import CheckpointError, TemplateError
from glmtune.methods import adapter_config, digest
from glmtune.model import card, fingerprint
from glmtune.model.files import check_path, read_bin
from glmtune.model.fingerprint import Fingerprint
from glmtune.template.base import Template

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

CARD = card.CARD
CONFIG = adapter_config.CONFIG


def write_card(folder: Path, template: Template, model: Any = None) -> None:
    """Write `glmtune.json` beside the weights: how their prompts were built, and checksums.

    Args:
        folder: with all files but those of the tokenizer.
        template: of the prompts.
        model: an adapted model, whose base is recorded if it was loaded from a folder.
    """
    base = None
    if model is not None and (found := fingerprint.of_model(model)) is not None:
        base = (str(model.name_or_path), found)
    card.write_card(folder, dict(template.description), template.fingerprint, base)


def load_card(folder: Path) -> card.Card | None:
    """Read how an adapter's prompts were built; None for an adapter made elsewhere.

    Raises:
        CheckpointError: the file is damaged.
    """
    return card.read_card(folder)


def check_base(folder: Path, found: Fingerprint | None) -> None:
    """Refuse a base that is not the one that an adapter was trained over.

    A copy in another dtype is used with a warning.

    Args:
        folder: of the adapter.
        found: the fingerprint of the base; None if it is not known.

    Raises:
        CheckpointError: names both, the difference and what to do.
    """
    own = load_card(folder)
    if own is None or own.base is None or found is None:
        return
    difference = fingerprint.compare(own.base.fingerprint, found)
    if difference is None:
        return
    if difference.is_rounding:
        logger.warning(
            "%s: its base %s is used in another dtype than in training: %s. Answers may differ a "
            "little.",
            folder,
            own.base.name,
            difference.what,
        )
        return
    raise CheckpointError(
        f"{folder} was trained over {own.base.name}, and this base differs: {difference.what}. "
        "Use the base that it was trained over. If the difference is intended, delete "
        f'"base" from {CARD} in a copy of the folder.'
    )


def check_template(folder: Path, template: Template) -> None:
    """Refuse to use an adapter with prompts that it was not trained on.

    Raises:
        TemplateError: names both templates and what to do.
    """
    own = load_card(folder)
    if own is not None and own.fingerprint != template.fingerprint:
        raise TemplateError(
            f"{folder} was trained with the template {_describe(own.template)} "
            f"({own.fingerprint[:12]}), but this would use {_describe(template.description)} "
            f"({template.fingerprint[:12]}). Use the same layout and tokenizer, or, "
            "if the difference is intended, pass --any-template to answer with it, or delete the "
            f"{CARD} of a copy to train it further."
        )


def _describe(template: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in template.items())


def read_peft_config(folder: Path) -> Any:
    """Read the configuration of an adapter that any release of peft, or ms-swift, has written.

    Keys that the installed peft does not have are dropped, and the log names them.

    Raises:
        CheckpointError: the installed peft does not have the method, or rejects a value.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    stored = read_config(folder)
    method = stored.get("peft_type")
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(str(method))  # type: ignore[call-overload]
    if kind is None:
        raise CheckpointError(
            f"{folder / CONFIG}: peft_type is {method!r}, which the installed peft "
            f"{version('peft')} does not have. Install the peft that the adapter was made with."
        )
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(stored.keys() - known)
    if unset := [key for key in unknown if not stored[key]]:
        logger.info("%s: ignored keys that this peft lacks: %s", folder, ", ".join(unset))
    for key in (key for key in unknown if stored[key]):
        logger.warning(
            "%s: %s=%r is ignored, since peft %s does not have it. If answers look wrong, that "
            "may be why.",
            folder,
            key,
            stored[key],
            version("peft"),
        )
    given = {key: value for key, value in stored.items() if key in known}
    given = adapter_config.with_declared_types(folder, kind, given)
    try:
        return kind(**given)
    except Exception as error:  # each method checks its own keys
        raise CheckpointError(
            f"{folder / CONFIG}: peft {version('peft')} rejects it: {error}"
        ) from None


def by_peft_names(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Rename tensors to what peft saves; old training scripts and ms-swift 1 save other names.

    base_model.model.LAYER.lora_A.weight           peft
    base_model.model.LAYER.lora_A.default.weight   named_parameters() of a peft model
    LAYER.lora_A.default.weight                    ms-swift 1
    """
    named = {re.sub(r"(\.lora_[^.]+)\.default\.", r"\1.", k): v for k, v in tensors.items()}
    return {
        name if name.startswith("base_model.") else f"base_model.model.{name}": tensor
        for name, tensor in named.items()
    }


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not an adapter, or that was half written or edited.

    Raises:
        CheckpointError: names what is missing, damaged or not what was written.
    """
    check_contents(folder)
    card.verify(folder)


def check_contents(folder: Path) -> None:
    """Refuse a folder that is not an adapter, or that was half written.

    Raises:
        CheckpointError: names what is missing or damaged.
    """
    check_path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: there is no such adapter folder. `glmtune train` writes one to output.dir."
        )
    if not (folder / CONFIG).is_file():
        hint = ""
        if (folder / "config.json").is_file():
            hint = " It holds a complete model: give it as MODEL instead of --adapter."
        elif (folder / "default" / CONFIG).is_file():  # ms-swift 1
            hint = f" There is one in {folder / 'default'}: give that."
        elif checkpoints := sorted(folder.glob("checkpoint-*"), key=_step):
            hint = f" The run did not finish; try {checkpoints[-1]}."
        raise CheckpointError(f"{folder}: has no {CONFIG}.{hint}")
    if not any(file.suffix in (".safetensors", ".bin") for file in weight_files(folder)):
        raise CheckpointError(
            f"{folder}: has no adapter_model.safetensors. Copy the adapter again, with its weights."
        )
    adapter_config.check_sizes(folder, read_config(folder), _shapes(folder))


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of an adapter's tensors."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        tensors = read_bin(folder / "adapter_model.bin", map_location="meta")
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="np") as content:
            return {
                name: tuple(content.get_slice(name).get_shape())
                for name in content.keys()  # noqa: SIM118  # not a mapping
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: damaged or half written ({error}). Use an earlier checkpoint."
        ) from None


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no complete model.

    Raises:
        CheckpointError: no folder can have this name.
    """
    check_path(folder)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """Read peft's own description of an adapter, with types and bounds checked.

    Raises:
        CheckpointError: it is not the JSON that peft writes.
    """
    return adapter_config.read_config(folder)


def read_tensors(folder: Path) -> "tuple[Path, dict[str, Tensor]]":
    """Read the weights of an adapter.

    Returns:
        The file and its tensors by name.

    Raises:
        CheckpointError: the file is damaged, or a number in it is not finite.
    """
    from glmtune.kernels.finite import check_finite

    file = folder / "adapter_model.safetensors"
    if file.is_file():
        tensors = read_safetensors(file)
    else:
        file = folder / "adapter_model.bin"
        tensors = read_bin(file)
    check_finite(str(file), tensors)
    return file, tensors


def read_safetensors(file: Path) -> "dict[str, Tensor]":
    """Read a file of tensors.

    Raises:
        CheckpointError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(file))
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{file}: damaged or half written ({error}). Use an earlier checkpoint."
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold the weights of an adapter."""
    return sorted(folder.glob("adapter_model.*"))


def digest_of(folder: Path) -> str:
    """Digest what decides the answers of an adapter: its weights and peft's configuration."""
    return digest.of_files([*weight_files(folder), folder / CONFIG])
