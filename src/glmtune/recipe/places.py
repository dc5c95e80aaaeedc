"""Folders that must not become the output folder of a run.

A run writes files of fixed names there, and a later run may replace them, so it must not be a
folder that holds something else: the user's home, the data, the model. Only what exists on this
machine is compared, since `zai-org/chatglm3-6b` may be a folder or the id of a hub.
"""

import os.path
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmtune.recipe.recipe import RunRecipe


def has_no_name(recipe: "RunRecipe") -> bool:
    """Whether `output.dir` is a folder that is only named from where it is seen: ., .., /."""
    return Path(recipe.output.dir).name in ("", "..")


def is_not_expanded(recipe: "RunRecipe") -> bool:
    """Whether `output.dir` starts with the home folder as only a shell reads it."""
    return recipe.output.dir.startswith("~")


def holds_home(recipe: "RunRecipe") -> bool:
    """Whether `output.dir` is the home folder, or one above it."""
    return _contains(_output(recipe), Path("~").expanduser().absolute())


def is_below_a_file(recipe: "RunRecipe") -> bool:
    """Whether `output.dir` would be a folder in a file."""
    return any(
        os.path.exists(parent) and not os.path.isdir(parent) for parent in _output(recipe).parents
    )


def is_at_the_model(recipe: "RunRecipe") -> bool:
    """Whether `output.dir` is the folder of the model, in it, or above it."""
    output, model = _output(recipe), _resolved(recipe.model.name_or_path)
    if output == model:
        return True
    is_near = _contains(output, model) or _contains(model, output)
    return is_near and os.path.exists(model)


def is_at_the_data(recipe: "RunRecipe") -> bool:
    """Whether `output.dir` holds a file of the data, or is in a folder whose files are the data."""
    output = _output(recipe)
    if recipe.output.dir == os.devnull:  # of a command that writes nothing
        return False
    for name in _data(recipe):
        path = _resolved(name)
        if (_contains(output, path) and os.path.exists(path)) or (
            _contains(path, output) and os.path.isdir(path)
        ):
            return True
    return False


def _data(recipe: "RunRecipe") -> Iterator[str]:
    replay = getattr(recipe.data, "replay", None)
    named = (recipe.data.train, recipe.data.eval, recipe.checks.general_rows)
    for paths in (*named, replay.path if replay else ()):
        for path in paths:
            yield str(getattr(path, "path", path)).partition("#")[0]


def _output(recipe: "RunRecipe") -> Path:
    return _resolved(recipe.output.dir)


def _resolved(name: str) -> Path:
    return Path(os.path.realpath(name))


def _contains(folder: Path, path: Path) -> bool:
    return folder == path or folder in path.parents
