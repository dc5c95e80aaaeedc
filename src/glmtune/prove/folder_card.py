"""The card of a folder: read what its files say of the run, and keep what a person wrote."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from glmtune.errors import OutputError, RecipeError
from glmtune.files import read_json_object, write_atomically
from glmtune.model.files import NANO, check_path
from glmtune.prove.card import (
    License,
    RunFacts,
    hub_id,
    is_edited,
    is_hub_id,
    license_of,
    metadata,
    model_type_of,
    render_card,
    without_paths,
)
from glmtune.prove.metrics import METRICS, read_metrics, until
from glmtune.prove.proof import Proof
from glmtune.prove.report.facts import NO_FACTS, read_facts
from glmtune.prove.scores import read_scores
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import RECIPE, PretrainRecipe, Recipe, RunRecipe
from glmtune.recipe.yaml_text import read_yaml

README = "README.md"


def facts_of(folder: Path, *, base: str | None = None, license_id: str | None = None) -> RunFacts:
    """Read what the files of a folder say of its run.

    Args:
        folder: of an adapter, a model or an export.
        base: the hub id of the base, if the user gives it.
        license_id: the license, if the user gives it.

    Raises:
        OutputError: a file is damaged, or `base` is not a hub id.
        CheckpointError: what a file names as the base cannot be a path.
    """
    if base is not None and base != NANO and not is_hub_id(base):
        raise OutputError(
            f"--base-model is {base!r}, expected a hub id, such as zai-org/chatglm3-6b."
        )
    adapter = _read_object(folder / "adapter_config.json")
    config = _read_object(folder / "config.json")
    exported = _read_object(folder / "export.json")
    text = _read_text(folder / RECIPE)
    recipe = _read_recipe(folder / RECIPE) if text else None
    named = str(adapter.get("base_model_name_or_path") or "")
    named = named or (recipe.model.name_or_path if recipe is not None else "")
    named = named or str(exported.get("base") or "")
    own = _config_of(named) if named else config
    base = base or hub_id(named or str(config.get("_name_or_path", "")), own)
    license = License(license_id) if license_id else license_of(base)
    run = read_facts(folder, text)[0] if text else NO_FACTS
    lines = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else []
    form = str(exported.get("format") or "")
    is_adapter = bool(adapter) or (recipe is not None and recipe.adapter.method == "ptuning_v2")
    is_adapter = is_adapter or form == "lora-gguf"
    return RunFacts(
        base=base,
        base_name=Path(named).name or folder.resolve().name,
        is_adapter=is_adapter,
        license=license,
        recipe=recipe,
        lines=until(lines, run.saved_step),
        proofs=run.proofs or _proofs_of(exported),
        format=form,
        scores=read_scores(folder),
        model_type=model_type_of(base, own or config),
    )


def _config_of(name: str) -> Mapping[str, Any]:
    """Read config.json of a base, a folder or an id in the hub's cache; empty if there is none."""
    check_path(name)  # it may be what a file of the folder says
    folder = Path(os.path.expanduser(name))
    if not folder.exists() and is_hub_id(name):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json")
        return _read_object(Path(cached)) if isinstance(cached, str) else {}
    return _read_object(folder / "config.json")


def _proofs_of(exported: Mapping[str, Any]) -> tuple[Proof, ...]:
    """Read the proofs of an export; those that cannot be read are left out."""
    listed = exported.get("proofs")
    found = []
    for each in listed if isinstance(listed, list) else ():
        with suppress(ValidationError):
            found.append(TypeAdapter(Proof).validate_python(each))
    return tuple(found)


def run_facts(
    recipe: RunRecipe, lines: Sequence[Mapping[str, Any]], *, is_adapter: bool
) -> RunFacts:
    """Collect what is known of a run at its end, before its proofs.

    Args:
        recipe: of the run.
        lines: its metrics.
        is_adapter: whether it trained an adapter, and not the weights of the model.
    """
    named = recipe.model.name_or_path
    config = _config_of(named)
    base = hub_id(named, config)
    return RunFacts(
        base=base,
        base_name=Path(named).name,
        is_adapter=is_adapter,
        license=license_of(base),
        recipe=recipe,
        lines=lines,
        model_type=model_type_of(base, config),
    )


def card_for(folder: Path, facts: RunFacts, name: str) -> str:
    """Make the card of a repository; the text of a README.md that a person wrote is kept.

    Args:
        folder: to publish.
        facts: from `facts_of`.
        name: owner/name of the repository.

    Raises:
        OutputError: README.md cannot be read.
    """
    written = _read_text(folder / README)
    if not written or not is_edited(written):
        return render_card(facts, name)
    from huggingface_hub import ModelCard

    card = ModelCard(written, ignore_metadata_errors=True)
    stored: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    theirs = {key: value for key, value in stored.items() if value}
    ours = metadata(facts)
    for key in ("base_model", "base_model_relation"):  # theirs may be a path
        theirs.pop(key, None)
    for key, value in {**ours, **theirs}.items():
        card.data[key] = value
    return str(without_paths(str(card)))


def rewrite_card(folder: Path) -> None:
    """Write the README.md of a run again, now with its proofs; an edited one is kept.

    Raises:
        OutputError: a file of the run is damaged, or README.md cannot be written.
    """
    path = folder / README
    if path.is_file() and not is_edited(_read_text(path)):
        write_atomically(path, render_card(facts_of(folder)))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: cannot be read as UTF-8 text: {error}.") from None


def _read_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON object; an empty one if there is no such file."""
    return read_json_object(path, OutputError) if os.path.exists(path) else {}


def _read_recipe(path: Path) -> RunRecipe:
    tree = read_yaml(path, "there is no such recipe.").tree
    kind = PretrainRecipe if isinstance(tree, dict) and "objective" in tree else Recipe
    try:
        if not isinstance(tree, dict):
            raise RecipeError(f"{path}: is not a recipe.")
        return build_recipe(tree, source=str(path), kind=kind)
    except RecipeError as error:
        raise OutputError(f"{error} Restore the file, or take it out of the folder.") from None
