"""Prepare the folder of a demo, without losing a file that a user made.

    glmtune-demo/
        demo.json                   marks the folder as the demo's, with checksums of its files
        train.json, held_out.json   the rows
        general.json, gauge.json    rows that nano knows: to repeat, and to measure forgetting
        recipe.yaml                 the run, for `glmtune train`
        adapter/                    the output of the run

A folder without `demo.json` is refused, and so is one in which a file of the demo was changed.
Other files in the folder are kept.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

import glmtune
from glmtune.cli.demo.fractions import GAUGE, GENERAL, HELD_OUT, TRAIN
from glmtune.errors import OutputError
from glmtune.files import (
    explain_write_error,
    sha256_of_file,
    sha256_of_text,
    write_atomically,
)
from glmtune.recipe.reading import load_recipe
from glmtune.recipe.recipe import RECIPE as RUN_RECIPE
from glmtune.recipe.recipe import Recipe
from glmtune.train.output import clear_run

MARK = "demo.json"
RECIPE = Path(__file__).with_name("recipe.yaml")
ROWS = {  # by the key of the recipe that names them
    "data.train": TRAIN,
    "data.eval": HELD_OUT,
    "data.replay.path": GENERAL,
    "checks.general_rows": GAUGE,
}


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """The files of a demo.

    Attributes:
        train, held_out: the rows.
        recipe_file: the recipe, as a user would write it.
        recipe: the resolved recipe.
        adapter: the output folder of the run.
    """

    train: Path
    held_out: Path
    recipe_file: Path
    recipe: Recipe
    adapter: Path


def prepare(folder: Path, overrides: Sequence[str] = ()) -> DemoFolder:
    """Write the rows and the recipe of a demo, and replace an earlier demo.

    Args:
        folder: made if it does not exist.
        overrides: `key=value` for the recipe.

    Raises:
        OutputError: the folder holds files that are not the demo's, or cannot be written.
        RecipeError: an override is invalid.
    """
    demo = _plan(folder, overrides)
    _refuse_other_folders(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(explain_write_error(folder, error)) from error
    _mark(folder, {})  # no checksums while the files change
    write_atomically(folder / ".gitignore", "*\n")
    rows = [folder / source.name for source in ROWS.values()]
    for path, source in zip(rows, ROWS.values(), strict=True):
        write_atomically(path, source.read_text(encoding="utf-8"))
    write_atomically(demo.recipe_file, _changed_values(demo.recipe))
    clear_run(demo.adapter)
    files = (*rows, demo.recipe_file)
    made = {str(path.relative_to(folder)): sha256_of_file(path) for path in files}
    made[f"{demo.adapter.name}/{RUN_RECIPE}"] = sha256_of_text(demo.recipe.to_yaml())
    _mark(folder, made)
    return demo


def _plan(folder: Path, overrides: Sequence[str]) -> DemoFolder:
    """Choose the paths, and write nothing."""
    adapter = folder / "adapter"
    places = {key: folder / source.name for key, source in ROWS.items()} | {"output.dir": adapter}
    given = [f"{key}={json.dumps(str(path))}" for key, path in places.items()]
    recipe = load_recipe(RECIPE, [*given, *overrides])
    return DemoFolder(
        places["data.train"], places["data.eval"], folder / "recipe.yaml", recipe, adapter
    )


def _changed_values(recipe: Recipe) -> str:
    """Write the values that differ from the defaults as YAML."""
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)


def _refuse_other_folders(folder: Path) -> None:
    """Raise unless the folder is new, empty, or an unchanged earlier demo."""
    other = "Give another folder with --dir."
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, expected a folder for the demo. {other}")
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not held:
        return
    if MARK not in held:
        raise OutputError(
            f"{folder}: holds {', '.join(held[:3])} and no {MARK}, so the demo did not make it "
            f"and does not change it. {other}"
        )
    try:
        made = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
        changed = [
            name
            for name, digest in made.items()
            if (path := folder / name).exists() and sha256_of_file(path) != digest
        ]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise OutputError(f"{folder / MARK}: cannot be read ({error!r}). {other}") from error
    if changed:
        raise OutputError(
            f"{folder}: {', '.join(changed[:3])} changed since the demo wrote it, and another "
            f"demo would overwrite that. Move it away, or give another folder with --dir."
        )


def _mark(folder: Path, made: Mapping[str, str]) -> None:
    mark = {"glmtune_version": glmtune.__version__, "files": dict(made)}
    write_atomically(folder / MARK, json.dumps(mark, indent=2) + "\n")
