"""LoRA by peft: attach, save, load, merge, and prove that the file is what was trained.

An adapter folder is peft's own format, so any peft user can load it. Beside the weights lies
`glmtune.json`, which says how prompts were built when the adapter was trained; chatting with
another template is refused, since it is the commonest way to make a good adapter look bad.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import glmtune
from glmtune.alive import some
from glmtune.data.batches import MicroBatch
from glmtune.errors import CheckpointError, RecipeError, TemplateError, TrainingError
from glmtune.files import write_atomically
from glmtune.recipe import LoraSection
from glmtune.template import Template

CARD = "glmtune.json"


def attach(model: nn.Module, section: LoraSection) -> Any:
    """Freeze a model and give it a LoRA adapter; the adapter's weights are float32.

    Raises:
        RecipeError: no module bears a name of `target_modules`.
    """
    from peft import LoraConfig, get_peft_model

    targets = section.target_modules
    config = LoraConfig(
        r=section.r,
        lora_alpha=section.lora_alpha,  # type: ignore[arg-type]  # peft divides it as a float
        lora_dropout=section.lora_dropout,
        target_modules=list(targets) if isinstance(targets, tuple) else targets,
        bias=section.bias,
        use_rslora=section.use_rslora,
        use_dora=section.use_dora,
        task_type="CAUSAL_LM",
    )
    linear = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        }
    )
    if isinstance(targets, tuple) and (unknown := sorted(set(targets) - set(linear))):
        raise RecipeError(
            f"adapter.target_modules names {', '.join(unknown)}, which this model does not have. "
            f"Its linear layers are {', '.join(linear)}."
        )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(
            f"adapter: {error} The model's linear layers are {', '.join(linear)}; "
            "name some of them in adapter.target_modules."
        ) from None


def adapted_layers(model: nn.Module, adapter_name: str = "default") -> Iterator[tuple[str, Any]]:
    """Go through the layers that carry an adapter, with their names in the base model."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter_name in module.lora_B:
            yield name.removeprefix("base_model.model."), module


@dataclass(frozen=True, slots=True)
class Card:
    """What an adapter folder says of the run that made it."""

    template: dict[str, Any]
    fingerprint: str
    version: str = glmtune.__version__


def save(model: Any, folder: Path, template: Template) -> None:
    """Write the adapter in peft's format, and how its prompts were built, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    write_card(folder, template)


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
            f"({template.fingerprint[:12]}). Use the same layout and tokenizer, or pass "
            "--any-template if the difference is meant."
        )


def _describe(template: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in template.items())


def load(model: nn.Module, folder: str | Path, *, is_trainable: bool = False) -> Any:
    """Put a saved adapter over its base model.

    Raises:
        CheckpointError: the folder is not an adapter, is damaged, or belongs to another model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    folder = Path(folder)
    check_folder(folder)
    _, stored = read_tensors(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, below
        try:
            loaded = PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise CheckpointError(
                f"{folder}: the adapter does not fit this model: {error} "
                "Check that it was trained on the same base."
            ) from error
    expected = get_peft_model_state_dict(loaded, save_embedding_layers=False).keys()
    missing, extra = sorted(expected - stored.keys()), sorted(stored.keys() - expected)
    if missing or extra:
        told = [f"lacks {len(missing)} tensors ({some(missing)})"] if missing else []
        told += [f"has {len(extra)} without a place here ({some(extra)})"] if extra else []
        raise CheckpointError(
            f"{folder}: the adapter does not fit this model: it {' and '.join(told)}. "
            "Check that it was trained on the same base, and that it was copied whole."
        )
    return loaded


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
        elif checkpoints := sorted(folder.glob("checkpoint-*")):
            hint = f" The run did not finish; try {checkpoints[-1]}."
        raise CheckpointError(f"{folder}: there is no adapter_config.json in it.{hint}")
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        try:
            with safe_open(str(weights), framework="pt") as file:
                file.keys()
        except SafetensorError as error:
            raise CheckpointError(
                f"{weights}: damaged or half written ({error}). Use an earlier checkpoint."
            ) from None
    elif not (folder / "adapter_model.bin").is_file():
        raise CheckpointError(f"{folder}: there is no adapter_model.safetensors in it.")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """Read peft's own description of an adapter.

    Raises:
        CheckpointError: it is not the JSON that peft writes.
    """
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected the JSON that peft writes, but {error}. Restore the file."
        ) from None
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object, got a {type(config).__name__}. Restore the file."
        )
    return config


def read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights of an adapter, and say from which file.

    Raises:
        CheckpointError: the file is damaged.
    """
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


def restore(folder: Path, model: Any) -> None:
    """Put the weights of a saved adapter into the adapter in memory.

    Raises:
        CheckpointError: a tensor is missing or was not expected.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(str(folder / "adapter_model.safetensors"))
    result: Any = set_peft_model_state_dict(model, tensors)
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"{folder}: its adapter does not fit the model: missing {missing[:3]}, "
            f"unexpected {result.unexpected_keys[:3]}."
        )


@torch.no_grad()
def check_saved(model: Any, folder: Path, probe: MicroBatch) -> float:
    """Prove that the adapter on disk is the adapter in memory.

    The saved adapter is loaded beside the trained one over the same base, and both give
    their logits for a probe.

    Args:
        model: the trained peft model.
        folder: where `save` wrote its adapter.
        probe: any rows.

    Returns:
        The largest difference between two logits; 0.0 is expected.

    Raises:
        TrainingError: the logits differ.
    """
    model.eval()
    trained = logits(model, probe)
    model.load_adapter(str(folder), adapter_name="saved")
    try:
        model.set_adapter("saved")
        saved = logits(model, probe)
    finally:
        model.set_adapter("default")
        model.delete_adapter("saved")
    difference = (trained - saved).abs().max().item()
    if difference > 0:
        raise TrainingError(
            f"{folder}: reloaded from disk the adapter gives other logits (by {difference:.3g}). "
            "The file is not what was trained; keep the last checkpoint and report this."
        )
    return difference


def logits(model: Any, probe: MicroBatch) -> Tensor:
    """Score every position of a probe: (batch, seq, vocab), float32."""
    scores: Tensor = model(**probe.inputs(), use_cache=False).logits
    return scores.float()


def merge(model: Any) -> Any:
    """Add the adapter's update into the base weights; the result is a plain model."""
    return model.merge_and_unload(safe_merge=True)
