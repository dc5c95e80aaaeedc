"""What must not change between a run and its resumption."""

import json
from collections.abc import Mapping
from pathlib import Path

from glmtune.data.store import EncodedData
from glmtune.errors import CheckpointError
from glmtune.files import sha256_of_text
from glmtune.model.fingerprint import fingerprint_of, folder_of
from glmtune.recipe.recipe import PretrainRecipe, RunRecipe
from glmtune.template.base import Template
from glmtune.train.checkpoint import TrainerState

Identity = dict[str, tuple[str, ...]]
"""By name: the value to record, then those that earlier releases recorded for the same thing."""

NOT_RECORDED = ""  # stands for the value of an item that a checkpoint does not have

# These change what is written, not what is learned.
NOT_DECISIVE = ("logging_steps", "save_strategy", "save_steps", "save_total_limit", "use_cpu")


def identify(
    recipe: RunRecipe,
    template: Template,
    examples: EncodedData,
    eval_examples: EncodedData,
    num_processes: int,
) -> Identity:
    """Hash what decides the weights of a run, item by item."""
    decides = recipe.model_dump(mode="json", exclude={"output", "checks", "lint"})
    for key in NOT_DECISIVE:
        decides["training"].pop(key)
    identity: Identity = {"recipe": (_digest(json.dumps(decides, sort_keys=True)),)}
    if recipe.training.deepspeed:
        text = Path(recipe.training.deepspeed).read_text(encoding="utf-8")
        identity["DeepSpeed's file"] = (_digest(text),)
    identity["template or tokenizer"] = (template.fingerprint[:16],)
    identity["training data"] = _identify_data(examples)
    identity["held-out data"] = _identify_data(eval_examples)
    identity["processes"] = (str(num_processes),)
    identity |= _identify_base(recipe)
    return identity


def _identify_base(recipe: RunRecipe) -> Identity:
    """Identify the weights that a run starts from, of which earlier releases recorded nothing."""
    if isinstance(recipe, PretrainRecipe) and recipe.model.config:
        return {}  # a new model, by the seed
    folder = folder_of(recipe.model.name_or_path)
    return {} if folder is None else {"base": (fingerprint_of(folder), NOT_RECORDED)}


def _identify_data(examples: EncodedData) -> tuple[str, ...]:
    return examples.fingerprint[:16], examples.earlier_key[:16]


def _digest(text: str) -> str:
    return sha256_of_text(text)[:16]


def recorded(identity: Identity) -> dict[str, str]:
    """Return the values that a checkpoint records."""
    return {name: values[0] for name, values in identity.items()}


def check_identity(
    state: TrainerState, identity: Mapping[str, tuple[str, ...]], path: Path
) -> None:
    """Refuse to resume a run with other data, another recipe or another template.

    Raises:
        CheckpointError: names what changed.
    """
    changed = [
        f"{name} (was {state.identity.get(name, 'nothing')}, now {values[0]})"
        for name, values in identity.items()
        if state.identity.get(name, NOT_RECORDED) not in values
    ]
    if changed:
        raise CheckpointError(
            f"{path}: cannot resume, since something changed: {'; '.join(changed)}. "
            "Undo the change, or start a new run in another output.dir."
        )
