"""What must not change between a run and its resumption."""

import json
from collections.abc import Mapping
from pathlib import Path

from glmtune.data.store import EncodedData
from glmtune.errors import CheckpointError
from glmtune.files import sha256_of_text
from glmtune.recipe.recipe import RunRecipe
from glmtune.template.base import Template
from glmtune.train.checkpoint import TrainerState

Identity = dict[str, tuple[str, ...]]
"""By name: the value to record, then those that earlier releases recorded for the same thing."""

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
    return identity


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
        if state.identity.get(name) not in values
    ]
    if changed:
        raise CheckpointError(
            f"{path}: cannot resume, since something changed: {'; '.join(changed)}. "
            "Undo the change, or start a new run in another output.dir."
        )
