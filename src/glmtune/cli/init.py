"""`glmtune init`: write a recipe to start from."""

import json
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.given_recipe import DataOption, ModelOption, OutputOption, given_recipe
from glmtune.cli.options import Overrides, as_overrides
from glmtune.cli.printing import echo
from glmtune.errors import OutputError
from glmtune.gc_pause import loading
from glmtune.recipe.shipped import DEFAULT


def init(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
    overrides: Overrides = None,
    model: ModelOption = None,
    data: DataOption = None,
    output: OutputOption = None,
) -> None:
    """Write a recipe with a comment for each key, fitted to a model and rows if they are given.

    Example: glmtune init my.yaml --model ./chatglm3-6b --data rows.json
    """
    from glmtune.files import write_atomically
    from glmtune.recipe.commented import commented
    from glmtune.recipe.reading import load_recipe

    if os.path.exists(file):
        raise OutputError(f"{file}: already exists. Choose another name: glmtune init FILE.")
    words = [*(overrides or []), *context.args]
    reasons: dict[str, str] = {}
    if model or data:
        with loading():
            given = given_recipe("init", None, words, model=model, data=data, output=output)
        recipe = given.load()
        reasons = {choice.key: choice.reason for choice in given.choices}
    else:
        named = [f"output.dir={json.dumps(output)}"] if output else []
        recipe = load_recipe(DEFAULT, [*named, *as_overrides(words)])
    write_atomically(file, commented(recipe, reasons) + "\n")
    echo(f"Written: {file}. Next: {shlex.join(['glmtune', 'train', str(file)])}")
