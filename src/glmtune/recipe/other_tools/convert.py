"""Read a recipe of another tool, convert it, and check the result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.errors import RecipeError, json_kind
from glmtune.recipe.explain import shown
from glmtune.recipe.origin import (
    AXOLOTL,
    LLAMA_FACTORY,
    OFFICIAL,
    SWIFT,
    TOOLS,
    other_command,
    tool_of,
)
from glmtune.recipe.other_tools import axolotl, llama_factory, official, swift
from glmtune.recipe.other_tools.converted import Converted
from glmtune.recipe.other_tools.given import Given
from glmtune.recipe.plain import as_plain
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.yaml_text import read_yaml

CONVERTERS = {
    OFFICIAL: official.convert,
    LLAMA_FACTORY: llama_factory.convert,
    SWIFT: swift.convert,
    AXOLOTL: axolotl.convert,
}


def convert_recipe(
    path: Path, *, model: str | None = None, data_dir: Path | None = None
) -> Converted:
    """Read a recipe of another tool.

    Args:
        path: its YAML or JSON file.
        model: the base model; None for the one in the file.
        data_dir: the folder of its data sets; None for the one in the file, or the working
            directory.

    Raises:
        RecipeError: the file cannot be read, is not of a known tool, or is for something that is
            not supported here.
    """
    tree = _read(path)
    tool = tool_of(tree)
    if tool is None:
        if {"model", "data", "output"} & tree.keys():
            raise RecipeError(f"{path} is already a recipe of glmtune: glmtune train {path}.")
        if command := other_command(tree):
            raise RecipeError(f"{path}: is not for a training but for what `{command}` does here.")
        raise RecipeError(
            f"{path}: neither a recipe of {', '.join(TOOLS[:-1])} nor of {TOOLS[-1]}. Its keys "
            f"are {shown(list(tree))}. docs/recipes.md shows how to write one of ours."
        )
    result = Converted(tool)
    given = Given(tree, result.not_converted)
    try:
        CONVERTERS[tool](result, given, model, data_dir)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    result.not_converted.append(
        "truncating long rows: those over data.max_length are dropped, unless data.overlong is "
        "changed"
    )
    result.settle()
    build_recipe(result.sections, source=str(path))
    return result


def _read(path: Path) -> Mapping[str, Any]:
    tree = read_yaml(path, "cannot be read: there is no such file.").tree
    if not isinstance(tree, dict) or not tree:
        found = json_kind(tree) if tree else "empty"
        raise RecipeError(
            f"{path}: the file is {found}, expected keys and values of another tool's recipe."
        )
    plain: dict[str, Any] = as_plain(tree, str(path))
    return plain
