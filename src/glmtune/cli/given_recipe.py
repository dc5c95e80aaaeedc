"""The recipe of a command line: a file, or our default for a model and rows.

glmtune train recipe.yaml adapter.r=8
glmtune train --model ./chatglm3-6b --data rows.json adapter.r=8
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli.options import as_overrides, changes_of, is_first_rank
from glmtune.cli.printing import echo
from glmtune.errors import RecipeError
from glmtune.recipe.shipped import DEFAULT, FINE_TUNING, is_recipe

if TYPE_CHECKING:
    from glmtune.recipe.recipe import Recipe
    from glmtune.train.plan.suggest import Choice

OptionalRecipe = Annotated[
    Path | None,
    typer.Argument(
        help=f"YAML file, or a recipe of the package: {', '.join(FINE_TUNING)}. Without one, "
        "--model and --data are enough.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Folder of the model, a hub id, or nano.", show_default=False),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", help="File or folder of rows, or a hub id.", show_default=False),
]
OutputOption = Annotated[
    str | None, typer.Option("--output", "-o", help="Folder to write.", show_default=False)
]
MODEL_KEYS = ("model.name_or_path", "model_name_or_path")
DATA_KEYS = ("data.train", "train")


@dataclass(frozen=True, slots=True)
class GivenRecipe:
    """A recipe as a file and changes of it, so that other processes can be given the same.

    Attributes:
        file: of the recipe.
        changes: `key=value`, applied in order.
        choices: those of the changes that were chosen for the user, with their reasons.
    """

    file: Path
    changes: tuple[str, ...]
    choices: "tuple[Choice, ...]" = ()

    def load(self) -> "Recipe":
        """Read the recipe.

        Raises:
            RecipeError: as `load_recipe`.
        """
        from glmtune.recipe.reading import load_recipe

        return load_recipe(self.file, self.changes)


def given_recipe(
    command: str,
    recipe: Path | None,
    arguments: Sequence[str],
    *,
    model: str | None = None,
    data: Sequence[str] | None = None,
    output: str | None = None,
) -> GivenRecipe:
    """Find the recipe of a command line; without one, make one from a model and rows.

    Args:
        command: its name, such as `train`.
        recipe: the first argument; `key=value` and options may stand there too.
        arguments: all that follow it.
        model, data, output: the options of these names.

    Raises:
        CheckpointError, DataError: the model's configuration or the rows cannot be read.
        RecipeError: there is no recipe and no model or rows, or an argument is no change.
    """
    options = _options(model, data, output)
    if recipe is not None and not _is_change(str(recipe)):
        return GivenRecipe(recipe, (*options, *changes_of(command, recipe, arguments)))
    words = [*([] if recipe is None else [str(recipe)]), *arguments]
    if recipe is not None and any(is_recipe(word) for word in words):
        changes_of(command, Path("-"), words)  # raises: it comes first
    changes = [*options, *as_overrides(words)]
    given = {change.partition("=")[0] for change in changes}
    missing = [
        option
        for option, keys in (("--model ./chatglm3-6b", MODEL_KEYS), ("--data rows.json", DATA_KEYS))
        if given.isdisjoint(keys)
    ]
    if missing:
        raise RecipeError(
            f"there is no recipe. Give one, such as `glmtune {command} {DEFAULT}`, or a model and "
            f"rows; {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
        )
    from glmtune.recipe.reading import load_recipe
    from glmtune.train.plan.suggest import suggest

    load_recipe(DEFAULT, changes)  # what is invalid is said before rows are read
    choices = tuple(suggest(changes))
    return GivenRecipe(Path(DEFAULT), (*(choice.override for choice in choices), *changes), choices)


def show_choices(given: GivenRecipe) -> None:
    """Print the recipe that was made, with the reason of each choice, to be saved as a file."""
    if given.choices and is_first_rank():
        from glmtune.recipe.commented import commented

        reasons = {choice.key: choice.reason for choice in given.choices}
        echo(f"# No recipe was given. This one starts from {DEFAULT}:")
        typer.echo(commented(given.load(), reasons))


def _is_change(word: str) -> bool:
    """Whether a word that stands where the recipe is expected is a change of one."""
    return word.startswith("-") or ("=" in word and not word.endswith((".yaml", ".yml")))


def _options(model: str | None, data: Sequence[str] | None, output: str | None) -> list[str]:
    import json

    values = {"model.name_or_path": model, "data.train": list(data or ()), "output.dir": output}
    return [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value
    ]
