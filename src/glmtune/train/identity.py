"""What must not change between a run and its resumption."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.data.store import EncodedData
from glmtune.data.streaming import StreamedData
from glmtune.errors import CheckpointError, GlmtuneError
from glmtune.files import sha256_of_text
from glmtune.model.fingerprint import fingerprint_of, folder_of
from glmtune.recipe.methods import PeftSection
from glmtune.recipe.reading import load_recipe
from glmtune.recipe.recipe import RECIPE, PretrainRecipe, Recipe, RunRecipe
from glmtune.recipe.sections import Section
from glmtune.template.base import Template
from glmtune.train.checkpoint import TrainerState

Identity = dict[str, tuple[str, ...]]
"""By name: the value to record, then those that earlier releases recorded for the same thing."""

NOT_RECORDED = ""  # stands for the value of an item that a checkpoint does not have

# These change what is written, not what is learned.
NOT_DECISIVE = ("logging_steps", "save_strategy", "save_steps", "save_total_limit", "use_cpu")

# The rows and the file themselves are compared, wherever they are.
IDENTIFIED_BY_CONTENT = ("data.train", "data.eval", "data.replay.path", "training.deepspeed")
PATHS = ("model.name_or_path", "adapter.name_or_path")  # or a hub id

# "section.key" of keys that came after checkpoints were first identified. While such a key has its
# default it is left out of the hash, so that the identity of recipes that do not use it stays.
NEWER_KEYS: frozenset[str] = frozenset(
    {
        "data.mask_history",
        "data.shuffle_buffer",
        "data.streaming",
        "data.train_on_prompt",
        "model.add_tokens",
        "preference.desirable_weight",
        "preference.undesirable_weight",
        "training.eval_metrics",
        "training.eval_metric_rows",
        "training.metric_for_best_model",
    }
)


def identify(
    recipe: RunRecipe,
    template: Template,
    examples: EncodedData | StreamedData,
    eval_examples: EncodedData | StreamedData,
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
    identity |= _identify_base(recipe)
    return identity


def _identify_base(recipe: RunRecipe) -> Identity:
    """Identify the weights that a run starts from, of which earlier releases recorded nothing."""
    if isinstance(recipe, PretrainRecipe) and recipe.model.config:
        return {}  # a new model, by the seed
    folder = folder_of(recipe.model.name_or_path)
    return {} if folder is None else {"base": (fingerprint_of(folder), NOT_RECORDED)}


def rounded_shares(recipe: RunRecipe, num_rows: int, num_steps: int) -> Identity:
    """Identify the shares that earlier releases rounded to the nearest number, and this one up.

    Where both are the same nothing is identified, so that earlier checkpoints fit.

    Args:
        recipe: of the run.
        num_rows: to learn and held out.
        num_steps: of the whole run.
    """
    section = recipe.training
    shares = {"warm-up steps": (section.warmup_steps, num_steps, 0)}
    if isinstance(recipe, Recipe) and not recipe.data.eval:
        shares["held-out rows"] = (recipe.data.eval_fraction, num_rows, 1)
    return {
        name: (str(math.ceil(share * number)),)
        for name, (share, number, least) in shares.items()
        if 0 < share < 1 and max(least, round(share * number)) != math.ceil(share * number)
    }


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


def _identify_data(examples: EncodedData | StreamedData) -> tuple[str, ...]:
    return tuple(
        value[:16]
        for value in (examples.content_fingerprint, examples.fingerprint, examples.earlier_key)
    )


def _digest(text: str) -> str:
    return sha256_of_text(text)[:16]


def recorded(identity: Identity) -> dict[str, str]:
    """Return the values that a checkpoint records."""
    return {name: values[0] for name, values in identity.items()}


def check_identity(
    state: TrainerState,
    identity: Mapping[str, tuple[str, ...]],
    path: Path,
    recipe: RunRecipe | None = None,
) -> None:
    """Refuse to resume a run with other data, another recipe or another template.

    Args:
        state: of the checkpoint.
        identity: of this run.
        path: the checkpoint.
        recipe: of this run, to name the keys that differ.

    Raises:
        CheckpointError: names what changed, and what to do.
    """
    changed = []
    for name, values in identity.items():
        if state.identity.get(name, NOT_RECORDED) in values:
            continue
        was = f"{name} (was {state.identity.get(name, 'nothing')}, now {values[0]})"
        keys = None
        if name == "recipe" and recipe is not None:
            keys = _changed_keys(state, recipe, path)
        changed += [was] if keys is None else keys
    if changed:
        raise CheckpointError(
            f"{path}: cannot resume, since something changed: {'; '.join(changed)}. "
            f"Undo the change, or {_another_run(changed, path, recipe)}."
        )


def _changed_keys(state: TrainerState, recipe: RunRecipe, path: Path) -> list[str] | None:
    """List the keys whose values differ; None where those of the checkpoint are not known.

    The list is empty if only the spelling of paths differs.
    """
    before = state.recipe or _recorded_recipe(state, path.parent / RECIPE, type(recipe))
    if not before:
        return None
    now = deciding_values(recipe)
    if before.get("adapter", {}).get("method") != now["adapter"]["method"]:
        only_method = {"method": now["adapter"]["method"]}
        before = {**before, "adapter": {"method": before.get("adapter", {}).get("method")}}
        now = {**now, "adapter": only_method}
    return list(_differences(before, now, "", Path(state.working_directory)))


def _recorded_recipe(
    state: TrainerState, file: Path, kind: type[RunRecipe]
) -> dict[str, Any] | None:
    """Read the recipe of a run whose checkpoints do not hold it, unless the file was changed."""
    try:
        values = deciding_values(load_recipe(file, kind=kind))
    except GlmtuneError:
        return None
    is_it = _digest(json.dumps(values, sort_keys=True)) == state.identity.get("recipe")
    return values if is_it else None


def _differences(before: Any, now: Any, key: str, folder: Path) -> Iterator[str]:
    """Compare two trees of values key by key.

    Args:
        before, now: the values.
        key: of both.
        folder: that paths in `before` are relative to.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            inner = f"{key}.{name}" if key else name
            yield from _differences(before.get(name), now.get(name), inner, folder)
    elif key in IDENTIFIED_BY_CONTENT:
        if _keys_of_sources(before) != _keys_of_sources(now):
            yield f"{key} (was {_shown(before)}, now {_shown(now)})"
    elif before != now:
        if key in PATHS and _is_same_path(folder / str(before), Path(str(now))):
            return
        yield f"{key} (was {_shown(before)}, now {_shown(now)})"


def _keys_of_sources(sources: Any) -> list[dict[str, Any]]:
    """Return what sources have besides their paths, such as a weight."""
    own = (source for source in sources or () if isinstance(source, dict))
    return [{key: value for key, value in each.items() if key != "path"} for each in own]


def _is_same_path(one: Path, other: Path) -> bool:
    one, other = one.expanduser(), other.expanduser()
    return one.exists() and other.exists() and one.samefile(other)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _another_run(changed: Sequence[str], path: Path, recipe: RunRecipe | None) -> str:
    """Say how to train on with the change."""
    touched = ("adapter", "model", "template", "data.layout", "recipe")
    keeps_adapter = not any(each.startswith(touched) for each in changed)
    if recipe is not None and isinstance(recipe.adapter, PeftSection) and keeps_adapter:
        return (
            "train on from its adapter in a new run, whose steps start at 0: without --resume, "
            f"with adapter.name_or_path={path} and another output.dir"
        )
    return "start a new run in another output.dir"
