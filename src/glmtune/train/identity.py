"""What must not change between a run and its resumption."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from glmtune.data.store import EncodedData
from glmtune.errors import CheckpointError
from glmtune.files import sha256_of_text
from glmtune.recipe.recipe import RunRecipe
from glmtune.recipe.sections import Section
from glmtune.template.base import Template
from glmtune.train.checkpoint import TrainerState

Identity = dict[str, tuple[str, ...]]
"""By name: the value to record, then those that earlier releases recorded for the same thing."""

# These change what is written, not what is learned.
NOT_DECISIVE = ("logging_steps", "save_strategy", "save_steps", "save_total_limit", "use_cpu")

# "section.key" of keys that came after checkpoints were first identified. While such a key has its
# default it is left out of the hash, so that the identity of recipes that do not use it stays.
NEWER_KEYS: frozenset[str] = frozenset()


def identify(
    recipe: RunRecipe,
    template: Template,
    examples: EncodedData,
    eval_examples: EncodedData,
    num_processes: int,
) -> Identity:
    """Hash what decides the weights of a run, item by item."""
    decides = deciding_values(recipe)
    identity: Identity = {"recipe": (_digest(json.dumps(decides, sort_keys=True)),)}
    if recipe.training.deepspeed:
        text = Path(recipe.training.deepspeed).read_text(encoding="utf-8")
        identity["DeepSpeed's file"] = (_digest(text),)
    identity["template or tokenizer"] = (template.fingerprint[:16],)
    identity["training data"] = _identify_data(examples)
    identity["held-out data"] = _identify_data(eval_examples)
    identity["processes"] = (str(num_processes),)
    return identity


def deciding_values(recipe: RunRecipe, newer_keys: Iterable[str] = NEWER_KEYS) -> dict[str, Any]:
    """Return the values of a recipe that decide the weights, by section and key.

    Args:
        recipe: of the run.
        newer_keys: are left out while they have their default.
    """
    decides = recipe.model_dump(mode="json", exclude={"output", "checks", "lint"})
    for key in NOT_DECISIVE:
        decides["training"].pop(key)
    for name in newer_keys:
        section, _, key = name.partition(".")
        if _has_default(getattr(recipe, section, None), key):
            decides[section].pop(key)
    return decides


def _has_default(section: Any, key: str) -> bool:
    """Whether a section has a key, with its default."""
    field = type(section).model_fields.get(key) if isinstance(section, Section) else None
    if field is None:
        return False
    return bool(getattr(section, key) == field.get_default(call_default_factory=True))


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
