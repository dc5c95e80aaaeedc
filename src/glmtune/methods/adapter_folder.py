"""The folder of an adapter: peft's files, and `glmtune.json` beside them."""

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
from glmtune.files import write_atomically
from glmtune.template.base import Template

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

CARD = "glmtune.json"


@dataclass(frozen=True, slots=True)
class Card:
    """What an adapter folder says of the run that made it."""

    template: dict[str, Any]
    fingerprint: str
    version: str = glmtune.__version__


def write_card(folder: Path, template: Template) -> None:
    """Write beside the weights how their prompts were built."""
    card = {
        "glmtune_version": glmtune.__version__,
        "template": dict(template.description),
        "template_fingerprint": template.fingerprint,
    }
    write_atomically(folder / CARD, json.dumps(card, ensure_ascii=False, indent=2) + "\n")


def load_card(folder: Path) -> Card | None:
    """Read how an adapter's prompts were built; None for an adapter made elsewhere."""
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
        TemplateError: says both templates and how to go on.
    """
    card = load_card(folder)
    if card is not None and card.fingerprint != template.fingerprint:
        raise TemplateError(
            f"{folder} was trained with the template {_describe(card.template)} "
            f"({card.fingerprint[:12]}), but this would use {_describe(template.description)} "
            f"({template.fingerprint[:12]}). Use the same layout and tokenizer, or, "
            "if the difference is meant, pass --any-template to answer with it, or delete the "
            f"{CARD} of a copy to train on."
        )


def _describe(template: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in template.items())


def read_peft_config(folder: Path) -> Any:
    """Read the configuration of an adapter that any release of peft, or ms-swift, has written.

    A key that this peft does not have is dropped, and the log says so.

    Raises:
        CheckpointError: it is of no method that this peft has.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    stored = read_config(folder)
    method = stored.get("peft_type")
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(str(method))  # type: ignore[call-overload]
    if kind is None:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: peft_type is {method!r}, which the installed peft "
            f"{version('peft')} does not have. Install the peft that the adapter was made with."
        )
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(stored.keys() - known)
    if off := [key for key in unknown if not stored[key]]:
        logger.info("%s: left out what this peft does not have: %s", folder, ", ".join(off))
    for key in (key for key in unknown if stored[key]):
        logger.warning(
            "%s: %s=%r is left out, since peft %s does not have it. If answers look wrong, that "
            "may be why.",
            *(folder, key, stored[key], version("peft")),
        )
    try:
        return kind(**{key: value for key, value in stored.items() if key in known})
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: peft {version('peft')} does not take it: {error}"
        ) from None


def by_peft_names(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Give tensors the names that peft saves; scripts of old and ms-swift 1 save others.

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
    """Refuse what is no adapter folder, or one that was half written.

    Raises:
        CheckpointError: says what is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: there is no such adapter folder. `glmtune train` makes one in output.dir."
        )
    if not (folder / "adapter_config.json").is_file():
        hint = ""
        if (folder / "config.json").is_file():
            hint = " It holds a whole model: give it as MODEL instead of --adapter."
        elif (folder / "default" / "adapter_config.json").is_file():  # ms-swift 1
            hint = f" There is one in {folder / 'default'}: give that."
        elif checkpoints := sorted(folder.glob("checkpoint-*"), key=_step):
            hint = f" The run did not finish; try {checkpoints[-1]}."
        raise CheckpointError(f"{folder}: there is no adapter_config.json in it.{hint}")
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
        raise CheckpointError(f"{folder}: there is no adapter_model.safetensors in it.")


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """Read peft's own description of an adapter.

    Raises:
        CheckpointError: it is not the JSON that peft writes.
    """
    return read_json(folder / "adapter_config.json")


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        CheckpointError: it is no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a JSON object, but {error}. Restore the file."
        ) from None
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object, got a {type(config).__name__}. Restore the file."
        )
    return config


def read_tensors(folder: Path) -> "tuple[Path, dict[str, Tensor]]":
    """Read the weights of an adapter, and say from which file.

    Raises:
        CheckpointError: the file is damaged.
    """
    import torch  # the other functions answer without it
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if file.is_file():
        return file, load_file(str(file))
    file = folder / "adapter_model.bin"
    try:
        return file, torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no common base of what a damaged file raises
        raise CheckpointError(
            f"{file}: damaged, half written, or not plain weights ({error}). Use an earlier one."
        ) from None
