"""Read a recipe from YAML, apply `key=value` overrides, and explain invalid ones.

    text             yaml_text.py   bounded, every key once
    plain values     plain.py       of programs too
    sections         this file      keys without their section, old names, overrides
    a recipe         recipe.py      types, bounds, rules between keys
    or an error      explain.py     a sentence for each key

pydantic's AliasChoices would accept old names of keys too, but silently, and within one section.
"""

import difflib
import os.path
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from pydantic import ValidationError

from glmtune.errors import RecipeError, json_kind
from glmtune.recipe.explain import explain, known_keys, no_section, shown
from glmtune.recipe.names import RENAMED, did_you_mean, hint
from glmtune.recipe.origin import conversion_command, tool_of
from glmtune.recipe.plain import as_plain
from glmtune.recipe.recipe import RECIPE, AnyRecipe, PretrainRecipe, Recipe, RunRecipe
from glmtune.recipe.shipped import FINE_TUNING, RECIPES, find_recipe
from glmtune.recipe.yaml_text import NOT_VALID, YamlError, parse_yaml, read_yaml

Sections = dict[str, Any]
ROWS_ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst")


@overload
def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe: ...


@overload
def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, kind: type[AnyRecipe]
) -> AnyRecipe: ...


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, kind: type[RunRecipe] = Recipe
) -> RunRecipe:
    """Read a recipe and change single values of it.

    Args:
        path: a YAML file, or the name of a recipe of the package, see `recipe/shipped`. Paths in
            it are relative to the working directory.
        overrides: `section.key=value`, or `key=value` where only one section has the key;
            values are YAML.
        kind: `Recipe` for fine-tuning, `PretrainRecipe` for pre-training.

    Raises:
        RecipeError: the file cannot be read, a key is unknown or a value is invalid.
    """
    path = find_recipe(path)
    _check_is_no_data(path)
    document = read_yaml(path, f"there is no such recipe.{_similar_recipe(path.stem)}")
    tree = document.tree
    if isinstance(tree, list) and path.suffix == ".json":
        raise RecipeError(_are_rows(path))
    if not isinstance(tree, dict):
        found = "empty" if tree is None else json_kind(tree)
        raise RecipeError(
            f"{path}: the file is {found}, expected sections "
            f"({', '.join(kind.model_fields)}), each with its keys."
        )
    if tool := tool_of(tree):
        command = conversion_command(path, tree, tool)
        raise RecipeError(f"{path}: this is a recipe of {tool}. Convert it first: {command}")
    _check_kind(tree, path, kind)
    return _build(tree, overrides, str(path), kind, document.lines)


def _check_is_no_data(path: Path) -> None:
    """Refuse rows or a model where a recipe is expected."""
    if path.suffix.lower() in ROWS_ENDINGS:
        raise RecipeError(_are_rows(path))
    if os.path.isdir(path):
        inside = path / RECIPE
        remedy = f"model.name_or_path={path} names a model"
        if os.path.isfile(inside):
            remedy = f"{inside} is the recipe of the run in it"
        raise RecipeError(f"{path}: cannot be read, it is a folder, expected a recipe; {remedy}.")


def _are_rows(path: Path) -> str:
    command = shlex.join(["glmtune", "train", FINE_TUNING[1], f"data.train={path}"])
    return f"{path}: these are rows, expected a recipe. Name them in one: {command}"


def _check_kind(tree: Mapping[str, Any], path: Path, kind: type[RunRecipe]) -> None:
    """Refuse a recipe of the other command, by a section that only that one has."""
    others = (
        (PretrainRecipe, "pre-training", "glmtune pretrain"),
        (Recipe, "fine-tuning", "glmtune train"),
    )
    for other, what, command in others:
        sections = [name for name in other.model_fields if name not in kind.model_fields]
        if found := [name for name in sections if name in tree]:
            raise RecipeError(
                f"{path}: this is a recipe for {what}: it has the section {found[0]!r}. "
                f"Use `{command}`."
            )


@overload
def build_recipe(
    tree: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe"
) -> Recipe: ...


@overload
def build_recipe(
    tree: Mapping[str, Any],
    overrides: Sequence[str] = (),
    source: str = "recipe",
    *,
    kind: type[AnyRecipe],
) -> AnyRecipe: ...


def build_recipe(
    tree: Mapping[str, Any],
    overrides: Sequence[str] = (),
    source: str = "recipe",
    *,
    kind: type[RunRecipe] = Recipe,
) -> RunRecipe:
    """Validate a tree of plain values as a recipe.

    Args:
        tree: sections with their keys, or keys that only one section has.
        overrides: as in `load_recipe`.
        source: names the recipe in errors.
        kind: `Recipe` for fine-tuning, `PretrainRecipe` for pre-training.

    Raises:
        RecipeError: a key is unknown or a value is invalid.
    """
    return _build(tree, overrides, source, kind, {})


def _build(
    tree: Mapping[str, Any],
    overrides: Sequence[str],
    source: str,
    kind: type[RunRecipe],
    lines: Mapping[str, int],
) -> RunRecipe:
    plain = as_plain(tree, source)
    if not isinstance(plain, dict):
        raise RecipeError(
            f"{source}: the recipe is {shown(plain)}, expected sections with their keys."
        )
    sections = _in_sections(plain, source, kind, lines)
    lines = dict(lines)
    for override in overrides:
        _apply(override, sections, kind, lines)
    try:
        return kind.model_validate(sections)
    except ValidationError as error:
        raise RecipeError("\n".join(explain(error, source, kind, lines))) from None


def _in_sections(
    tree: Mapping[str, Any], source: str, kind: type[RunRecipe], lines: Mapping[str, int]
) -> Sections:
    """Move keys that came without a section, or by an old name, to their place."""
    sections: Sections = {}
    for name in kind.model_fields:
        values = tree.get(name)
        if values is None:
            if name in tree:  # `checks:` with all keys commented out
                sections[name] = {}
        elif isinstance(values, dict):
            sections[name] = dict(values)
        else:
            place = f"{source}:{lines[name]}" if name in lines else source
            raise RecipeError(f"{place}: {no_section(name, values)}")
    for name, value in tree.items():
        if name in kind.model_fields:
            continue
        homes = _homes(name, kind)
        if len(homes) != 1:
            sections[name] = value  # refused by pydantic, with all others
            continue
        values = sections.setdefault(homes[0], {})
        if name in values:
            raise RecipeError(
                f"{source}: {name} is given twice, alone and as {homes[0]}.{name}. Keep one."
            )
        values[name] = value
    for section in list(kind.model_fields):
        for key in list(sections.get(section, ())):
            if _is_old(section, key, kind):
                _rename(sections, section, key, source)
    return sections


def _homes(name: str, kind: type[RunRecipe]) -> list[str]:
    """List the sections that have a key; for an old name, the section of the new one."""
    homes = [key.partition(".")[0] for key in known_keys(kind) if key.partition(".")[2] == name]
    return homes or ([RENAMED[name][0]] if name in RENAMED else [])


def _is_old(section: str, key: str, kind: type[RunRecipe]) -> bool:
    return key in RENAMED and f"{section}.{key}" not in known_keys(kind)


def _rename(sections: Sections, section: str, key: str, source: str) -> None:
    new_section, new_key = RENAMED[key]
    values = sections.setdefault(new_section, {})
    if new_key in values:
        raise RecipeError(
            f"{source}: {section}.{key} and {new_section}.{new_key} are both given, but the first "
            f"is the old name of the second. Keep {new_section}.{new_key}."
        )
    values[new_key] = _renamed_value(section, key, sections[section].pop(key))


def _renamed_value(section: str, key: str, value: Any) -> Any:
    """Warn about an old name, once, and return its value."""
    new = ".".join(RENAMED[key])
    if key == "warmup_ratio" and isinstance(value, int | float) and value >= 1:
        raise RecipeError(
            f"{section}.{key} is {shown(value)}, expected a share of all steps below 1. For a "
            "number of steps: training.warmup_steps."
        )
    warnings.warn(f"{key} is now called {new}; its value is used.", stacklevel=2)
    return value


def _apply(override: str, sections: Sections, kind: type[RunRecipe], lines: dict[str, int]) -> None:
    """Change a value, or replace a section; `lines` forgets what the file said about it."""
    name, equals, text = override.partition("=")
    quoted = shown(override)
    if not equals or not name:
        raise RecipeError(f"{quoted}: expected KEY=VALUE, such as training.learning_rate=5e-5.")
    value = _value_of(text, name, quoted)
    if name in kind.model_fields:
        if not isinstance(value, dict):
            raise RecipeError(f"{quoted}: {no_section(name, value)}")
        sections[name] = value
        return
    section, key = _locate(name, text, kind)
    if _is_old(section, key, kind):
        value = _renamed_value(section, key, value)
        section, key = RENAMED[key]
    values = sections.setdefault(section, {})
    head, *rest = key.split(".")
    lines.pop(f"{section}.{head}", None)
    if rest:  # an entry of a mapping: data.columns.instruction=q
        entry = values.get(head)
        if entry is not None and not isinstance(entry, dict):
            raise RecipeError(f"{quoted}: {section}.{head} is {shown(entry)}, not a mapping.")
        values[head] = {**(entry or {}), ".".join(rest): value}
    else:
        values[head] = value


def _value_of(text: str, name: str, quoted: str) -> Any:
    try:
        return as_plain(parse_yaml(text).tree if text else None, quoted)
    except YamlError as error:
        problem = str(error).removeprefix(NOT_VALID).removesuffix(" Fix the file.")
        raise RecipeError(
            f"{quoted}: the value is not valid YAML: {problem} If it is a text, put it in quotes "
            f"within quotes: '{name}=\"...\"'."
        ) from None


def _locate(name: str, value: str, kind: type[RunRecipe]) -> tuple[str, str]:
    """Find the section of a key that may be given without it."""
    section, dot, key = name.partition(".")
    if dot and section in kind.model_fields:
        return section, key
    homes = _homes(section, kind)
    if len(homes) == 1:
        return homes[0], name
    if homes:
        choices = " or ".join(f"{home}.{name}" for home in homes)
        raise RecipeError(f"{name!r} is a key of several sections. Write {choices}.")
    known = known_keys(kind)
    start = f"{shown(name)} is not a key of a recipe"
    if called := hint(name, known):
        raise RecipeError(f"{start}; {called}.{_example(called, value, known)}")
    short = [each.partition(".")[2] for each in known]
    raise RecipeError(f"{start}.{did_you_mean(name, [*known, *short])}")


def _example(called: str, value: str, known: Sequence[str]) -> str:
    ours = called.split()[3]
    return f" Write {ours}={value}." if ours in known and value else ""


def _similar_recipe(name: str) -> str:
    nearest = difflib.get_close_matches(name[:100], RECIPES, n=1, cutoff=0.6)
    if nearest:
        return f" Did you mean {nearest[0]!r}, which comes with the package?"
    return f" Give a YAML file, or a recipe of the package: {', '.join(RECIPES)}."
