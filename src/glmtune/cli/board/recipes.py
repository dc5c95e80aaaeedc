"""The tab Recipe: check, show, load and save a recipe, and estimate its run."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import Field

from glmtune.cli.board.bodies import Body, Nothing
from glmtune.cli.board.commands import Gone, Slot
from glmtune.cli.board.folder import BoardError, StartFolder
from glmtune.cli.board.form import build, command_of, form, values_of
from glmtune.errors import RecipeError
from glmtune.recipe.commented import commented
from glmtune.recipe.reading import build_recipe, load_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.shipped import FINE_TUNING
from glmtune.recipe.yaml_text import YamlError, parse_yaml

MOST_KEYS = 500


class Filled(Body):
    """A filled form.

    Attributes:
        values: by `section.key`.
        overrides: `key=value` that change it.
    """

    values: Annotated[dict[str, Any], Field(max_length=MOST_KEYS)]
    overrides: Annotated[tuple[str, ...], Field(max_length=MOST_KEYS)] = ()


class Planned(Filled):
    """A filled form, and the memory of other devices.

    Attributes:
        devices: such as 24GB.
    """

    devices: Annotated[tuple[str, ...], Field(max_length=8)] = ()


class Chosen(Body):
    """A recipe to read: a name of the package, a file below the start folder, or a YAML text."""

    name: str = ""
    path: str = ""
    text: str = ""


class Saved(Body):
    """A file to write.

    Attributes:
        path: below the start folder.
        values: of the form.
        overwrite: whether an existing file is replaced.
    """

    path: Annotated[str, Field(min_length=1)]
    values: Annotated[dict[str, Any], Field(max_length=MOST_KEYS)]
    overwrite: bool = False


class Suggested(Body):
    """A model and rows, to which the default recipe is fitted."""

    model: Annotated[str, Field(min_length=1)]
    rows: Annotated[list[str], Field(min_length=1, max_length=50)]


class Recipes:
    """What the tab asks for.

    Args:
        start: the start folder.
    """

    def __init__(self, start: StartFolder) -> None:
        self._start = start
        self._plans = Slot(start.root)
        self._fits = Slot(start.root)

    def form(self, asked: Nothing) -> Any:
        """Return the form."""
        return form()

    def check(self, asked: Filled) -> Any:
        """Check a filled form, and show it as YAML and as a command."""
        try:
            recipe = build(asked.values, asked.overrides)
        except RecipeError as error:
            return {"problems": str(error).split("\n")}
        return {"problems": [], **_shown(recipe)}

    def read(self, asked: Chosen) -> Any:
        """Read a recipe into the form.

        Raises:
            BoardError: the file is not below the start folder.
            RecipeError: it is no recipe for fine-tuning.
        """
        if asked.name:
            if asked.name not in FINE_TUNING:
                raise BoardError(f"{asked.name[:100]}: expected one of {', '.join(FINE_TUNING)}.")
            return _shown(load_recipe(asked.name))
        if asked.path:
            return _shown(load_recipe(self._start.inside(asked.path)))
        try:
            tree = parse_yaml(asked.text).tree
        except YamlError as error:
            raise RecipeError(f"the text: {error}") from None
        if not isinstance(tree, dict):
            raise RecipeError("the text is no recipe: expected sections, such as model and data.")
        return _shown(build_recipe(tree))

    def save(self, asked: Saved) -> Any:
        """Write the recipe of the form to a file.

        Raises:
            BoardError: the file exists, or is not below the start folder.
            OutputError: it cannot be written.
            RecipeError: a key is wrong.
        """
        if not asked.path.endswith((".yaml", ".yml")):
            raise BoardError(f"{asked.path[:200]}: expected a name that ends with .yaml.")
        content = commented(build(asked.values)) + "\n"
        path = self._start.write(asked.path, content, overwrite=asked.overwrite)
        return {"path": self._start.name(path)}

    async def plan(self, asked: Planned, gone: Gone) -> Any:
        """Estimate memory and time, as `glmtune plan` does.

        Raises:
            BoardError: the run cannot be planned.
            RecipeError: a key is wrong.
        """
        recipe = build(asked.values, asked.overrides)
        devices = [word for size in asked.devices for word in ("--device", size)]
        with TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.yaml"
            path.write_text(recipe.to_yaml(), encoding="utf-8")
            output = await self._plans.run(["plan", str(path), *devices, "--json"], gone)
        return output.json()

    async def suggest(self, asked: Suggested, gone: Gone) -> Any:
        """Fit our default to a model and rows, as `glmtune init` does.

        Raises:
            BoardError: the model or the rows cannot be read.
        """
        rows = [word for each in asked.rows for word in ("--data", each)]
        with TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.yaml"
            command = ["init", str(path), "--model", asked.model, *rows]
            output = await self._fits.run(command, gone)
            if output.code or not path.is_file():
                raise BoardError(output.problem)
            return _shown(load_recipe(path))

    def end(self) -> None:
        """End what runs for a page."""
        self._plans.end()
        self._fits.end()


def _shown(recipe: Recipe) -> dict[str, Any]:
    return {
        "values": values_of(recipe),
        "yaml": commented(recipe) + "\n",
        "command": command_of(recipe),
    }
