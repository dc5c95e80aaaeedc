"""Read and check an adapter folder: peft's files, and `glmtune.json` beside them.

adapter_config.json          peft's own description: method, rank, target modules, base model
adapter_model.safetensors    the weights; `.bin` in folders of old releases of peft
glmtune.json                 the template that the prompts were built with; only in our folders
"""

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import glmtune
from glmtune.errors import CheckpointError, TemplateError
from glmtune.files import read_json_object, write_atomically
from glmtune.methods import digest
from glmtune.model.files import read_bin
from glmtune.template.base import Template

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

CARD = "glmtune.json"
CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Card:
    """What `glmtune.json` records about the run that made a folder.

    Attributes:
        template: the description of the template that built the prompts.
        fingerprint: of that template.
        version: of glmtune.
    """

    template: dict[str, Any]
    fingerprint: str
    version: str = glmtune.__version__


def write_card(folder: Path, template: Template) -> None:
    """Write `glmtune.json` beside the weights: how their prompts were built."""
    card = {
        "glmtune_version": glmtune.__version__,
        "template": dict(template.description),
        "template_fingerprint": template.fingerprint,
    }
    write_atomically(folder / CARD, json.dumps(card, ensure_ascii=False, indent=2) + "\n")


def load_card(folder: Path) -> Card | None:
    """Read how an adapter's prompts were built; None for an adapter made elsewhere.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Card(fields["template"], fields["template_fingerprint"], fields["glmtune_version"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: expected the JSON that glmtune wrote, but {error!r}. "
            "Restore the file, or delete it to use the adapter without the template check."
        ) from None


def check_template(folder: Path, template: Template) -> None:
    """Refuse to use an adapter with prompts that it was not trained on.

    Raises:
        TemplateError: names both templates and what to do.
    """
    card = load_card(folder)
    if card is not None and card.fingerprint != template.fingerprint:
        raise TemplateError(
            f"{folder} was trained with the template {_describe(card.template)} "
            f"({card.fingerprint[:12]}), but this would use {_describe(template.description)} "
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
    try:
        return kind(**{key: value for key, value in stored.items() if key in known})
    except (TypeError, ValueError) as error:
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
    """Refuse a folder that is not an adapter, or that was half written.

    Raises:
        CheckpointError: names what is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

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
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        try:
            with safe_open(str(weights), framework="np") as file:
                file.keys()
        except SafetensorError as error:
            raise CheckpointError(
                f"{weights}: damaged or half written ({error}). Use an earlier checkpoint."
            ) from None
    elif not (folder / "adapter_model.bin").is_file():
        raise CheckpointError(
            f"{folder}: has no adapter_model.safetensors. Copy the adapter again, with its weights."
        )


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no complete model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """Read peft's own description of an adapter.

    Raises:
        CheckpointError: it is not the JSON that peft writes.
    """
    return read_json_object(folder / CONFIG)


def read_tensors(folder: Path) -> "tuple[Path, dict[str, Tensor]]":
    """Read the weights of an adapter.

    Returns:
        The file and its tensors by name.

    Raises:
        CheckpointError: the file is damaged.
    """
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if file.is_file():
        return file, load_file(str(file))
    file = folder / "adapter_model.bin"
    return file, read_bin(file)


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold the weights of an adapter."""
    return sorted(folder.glob("adapter_model.*"))


def digest_of(folder: Path) -> str:
    """Digest what decides the answers of an adapter: its weights and peft's configuration."""
    return digest.of_files([*weight_files(folder), folder / CONFIG])
