"""Keyword arguments -> a recipe: the keys of a recipe, as a Python program gives them.

    recipe_for("nano", ["rows.json"], {"r": 8, "num_train_epochs": 2})

A key has the name that it has on the command line: without its section where only one section has
it, else as `**{"adapter.name_or_path": ...}`. A section may be given as a mapping.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.errors import RecipeError
from glmtune.recipe.plain import as_plain
from glmtune.recipe.reading import build_recipe, load_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.shipped import is_recipe

RUNS = Path("out")  # of runs whose folder was not given


def recipe_for(
    start: Recipe | str | Path, train: Sequence[Any] | None, keys: Mapping[str, Any]
) -> Recipe:
    """Return a recipe with some keys changed.

    Args:
        start: a recipe, the file of one, the name of one of the package, or a model, of which the
            other keys have their defaults.
        train: sources for `data.train`; None keeps those of the recipe.
        keys: by name.

    Raises:
        RecipeError: a key is unknown, belongs to several sections, or has a wrong value.
    """
    plain = as_plain(dict(keys), "keywords")
    assert isinstance(plain, dict)
    sections = {name: plain.pop(name) for name in list(plain) if name in Recipe.model_fields}
    changes = [_override(name, value) for name, value in {**sections, **plain}.items()]
    if train is not None:
        changes.append(_override("data.train", as_plain(list(train), "rows")))
    if isinstance(start, Recipe):
        return build_recipe(start.model_dump(mode="json"), changes)
    if not isinstance(start, str | os.PathLike):
        raise RecipeError(
            f"the first argument is of the type {type(start).__name__}, expected a recipe, or the "
            "name of a recipe or a model. A model that is loaded already cannot be tuned: give "
            "its folder or hub id."
        )
    name = os.fspath(start)
    if is_recipe(name):
        return load_recipe(name, changes)
    if train is None and not any(each.startswith(("train=", "data")) for each in changes):
        raise RecipeError(
            f"{name}: is taken for a model, and there are no rows to learn. Give them as the "
            "second argument: a path, a list of dicts, a Dataset or a DataFrame."
        )
    tree = {"model": {"name_or_path": name}, "output": {"dir": str(RUNS / Path(name).name)}}
    return build_recipe(tree, changes, source=name)


def _override(name: str, value: Any) -> str:
    return f"{name}={json.dumps(value, ensure_ascii=False)}"  # JSON is YAML that quotes every text


def names_folder(start: Recipe | str | Path, keys: Mapping[str, Any]) -> bool:
    """Whether the output folder of a run was chosen: in a recipe, or by a keyword."""
    given = {"dir", "output", "output.dir", "output_dir"} & keys.keys()
    return bool(given) or isinstance(start, Recipe) or is_recipe(os.fspath(start))


def free_folder(folder: Path) -> Path:
    """Return the first of out/nano, out/nano-2, out/nano-3, ... that does not exist."""
    number = 1
    free = folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
