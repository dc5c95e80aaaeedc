"""A path -> the folder of a demo, made anew, and nothing in it lost that a user made.

    glmtune-demo/
        demo.json                   says that the folder is the demo's, with checksums of its files
        train.json, held_out.json   the rows
        general.json, gauge.json    what nano knew before: some is repeated, some only asked
        recipe.yaml                 the run, for `glmtune train`
        adapter/                    what the run leaves

A folder without `demo.json` is not touched, and neither is one where a file of the demo was
changed. What else lies in the folder stays.
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
from glmtune.recipe.recipe import Recipe
from glmtune.train.output import RECIPE as RUN_RECIPE
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
    """What a demo works on.

    Attributes:
        train, held_out: the rows.
        recipe_file: the recipe, as a user would write it.
        recipe: the recipe.
        adapter: where its run goes.
    """

    train: Path
    held_out: Path
    recipe_file: Path
    recipe: Recipe
    adapter: Path


def prepare(folder: Path, overrides: Sequence[str] = ()) -> DemoFolder:
    """Make everything that a demo needs; an earlier demo in the folder is replaced.

    Args:
        folder: made if it does not exist.
        overrides: `key=value` for the recipe.

    Raises:
        OutputError: the folder holds something that is not the demo's, or cannot be written.
        RecipeError: an override does not fit.
    """
    demo = _plan(folder, overrides)
    _refuse_what_is_not_ours(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(explain_write_error(folder, error)) from error
    _mark(folder, {})  # while files change, none is vouched for
    write_atomically(folder / ".gitignore", "*\n")
    rows = [folder / source.name for source in ROWS.values()]
    for path, source in zip(rows, ROWS.values(), strict=True):
        write_atomically(path, source.read_text(encoding="utf-8"))
    write_atomically(demo.recipe_file, _in_short(demo.recipe))
    clear_run(demo.adapter)
    files = (*rows, demo.recipe_file)
    made = {str(path.relative_to(folder)): sha256_of_file(path) for path in files}
    made[f"{demo.adapter.name}/{RUN_RECIPE}"] = sha256_of_text(demo.recipe.to_yaml())
    _mark(folder, made)
    return demo


def _plan(folder: Path, overrides: Sequence[str]) -> DemoFolder:
    """Say where everything goes, and write nothing."""
    adapter = folder / "adapter"
    places = {key: folder / source.name for key, source in ROWS.items()} | {"output.dir": adapter}
    given = [f"{key}={json.dumps(str(path))}" for key, path in places.items()]
    recipe = load_recipe(RECIPE, [*given, *overrides])
    return DemoFolder(
        places["data.train"], places["data.eval"], folder / "recipe.yaml", recipe, adapter
    )


def _in_short(recipe: Recipe) -> str:
    """Write the values that differ from the defaults."""
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)


def _refuse_what_is_not_ours(folder: Path) -> None:
    """Raise unless the folder is new, empty, or an earlier demo as the demo left it."""
    other = "Give another folder with --dir."
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, expected a folder for the demo. {other}")
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not held:
        return
    if MARK not in held:
        raise OutputError(
            f"{folder}: holds {', '.join(held[:3])} and no {MARK}, so the demo did not make it "
            f"and leaves it alone. {other}"
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
