"""Read a recipe from YAML, apply `key=value` overrides, and explain invalid ones.

pydantic's AliasChoices would accept old names of keys too, but silently, and within one section.
"""

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, overload

import yaml
from pydantic import ValidationError

from glmtune.errors import RecipeError
from glmtune.recipe.methods import METHODS, NOT_OFFERED
from glmtune.recipe.recipe import AnyRecipe, PretrainRecipe, Recipe, RunRecipe
from glmtune.recipe.shipped import RECIPES, find_recipe

# Names that transformers or peft no longer use, and other common ones -> (section, our name).
RENAMED: Mapping[str, tuple[str, str]] = {
    "model_name_or_path": ("model", "name_or_path"),
    "adapter_name_or_path": ("adapter", "name_or_path"),
    "torch_dtype": ("model", "dtype"),
    "evaluation_strategy": ("training", "eval_strategy"),
    "warmup_ratio": ("training", "warmup_steps"),
    "no_cuda": ("training", "use_cpu"),
    "output_dir": ("output", "dir"),
    "overwrite_output_dir": ("output", "overwrite"),
}


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
    tree = read_yaml(path, f"there is no such recipe.{_similar_recipe(path.stem)}")
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise RecipeError(
            f"{path}: the file is {found}, expected sections "
            f"({', '.join(kind.model_fields)}), each with its keys."
        )
    _check_kind(tree, path, kind)
    return build_recipe(tree, overrides, source=str(path), kind=kind)


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
    sections: dict[str, Any] = {}
    for name, values in tree.items():
        homes = [home for home, known in _known_keys(kind) if known == name]
        if len(homes) == 1 and name not in kind.model_fields:  # a key without its section
            sections.setdefault(homes[0], {})[name] = values
        elif isinstance(values, Mapping):
            sections[str(name)] = {**sections.get(str(name), {}), **values}
        else:
            sections[str(name)] = values
    for override in overrides:
        _apply(override, sections, kind)
    for section, key in list(_keys(sections, kind)):
        if key in RENAMED and (section, key) not in _known_keys(kind):
            _rename(sections, section, key)
    try:
        return kind.model_validate(sections)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(error, source, kind))) from None


def read_yaml(path: Path, if_missing: str) -> Any:
    """Read a YAML file.

    Args:
        path: of the file.
        if_missing: the error message if it does not exist.

    Raises:
        RecipeError: it does not exist or is not YAML; names the line.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: {if_missing}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise RecipeError(f"{path}{line}: not valid YAML: {problem}. Fix the file.") from None


def _apply(override: str, sections: dict[str, Any], kind: type[RunRecipe]) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise RecipeError(f"{override!r}: expected KEY=VALUE, such as training.learning_rate=5e-5.")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: the value is not valid YAML: {error}") from None
    section, key = _locate(name, kind)
    values = sections.setdefault(section, {})
    if not isinstance(values, dict):
        raise RecipeError(f"section {section!r} is {values!r}, expected keys and values.")
    head, *rest = key.split(".")
    if rest:  # an entry of a mapping: data.columns.instruction=q
        entry = values.setdefault(head, {})
        if not isinstance(entry, dict):
            raise RecipeError(f"{override!r}: {section}.{head} is {entry!r}, not a mapping.")
        values[head] = {**entry, ".".join(rest): value}
    else:
        values[head] = value


def _locate(name: str, kind: type[RunRecipe]) -> tuple[str, str]:
    """Find the section of a key that may be given without it."""
    section, dot, key = name.partition(".")
    if dot and section in kind.model_fields:
        return section, key
    if name in RENAMED:
        return RENAMED[name][0], name
    homes = [home for home, known in _known_keys(kind) if known == section]
    if len(homes) == 1:
        return homes[0], name
    if homes:
        choices = " or ".join(f"{home}.{name}" for home in homes)
        raise RecipeError(f"{name!r} is a key of several sections. Write {choices}.")
    everything = [f"{home}.{known}" for home, known in _known_keys(kind)]
    everything += [known for _, known in _known_keys(kind)]
    raise RecipeError(f"{name!r} is not a key of a recipe.{_did_you_mean(name, everything)}")


def _rename(sections: dict[str, Any], section: str, key: str) -> None:
    new_section, new_key = RENAMED[key]
    values = sections.setdefault(new_section, {})
    if new_key in values:
        raise RecipeError(
            f"{section}.{key} and {new_section}.{new_key} are both given, but the first is the old "
            f"name of the second. Keep {new_section}.{new_key}."
        )
    values[new_key] = sections[section].pop(key)
    warnings.warn(
        f"{section}.{key} is now called {new_section}.{new_key}; its value is used.",
        stacklevel=3,
    )


def _keys(sections: Mapping[str, Any], kind: type[RunRecipe]) -> Iterator[tuple[str, str]]:
    for section in kind.model_fields:
        values = sections.get(section)
        if isinstance(values, dict):
            yield from ((section, str(key)) for key in values)


def _known_keys(kind: type[RunRecipe]) -> Iterator[tuple[str, str]]:
    for section in kind.model_fields:
        yield from ((section, key) for key in keys_of(section, kind=kind))


def keys_of(section: str, method: str | None = None, kind: type[RunRecipe] = Recipe) -> list[str]:
    """List the keys of a section; for `adapter`, those of one method or of all."""
    annotation: Any = kind.model_fields[section].annotation
    kinds = [get_args(tagged)[0] for tagged in get_args(annotation)] or [annotation]
    if method is not None:
        kinds = [kind for kind in kinds if kind.model_fields["method"].default == method]
    return list(dict.fromkeys(key for kind in kinds for key in kind.model_fields))


def _similar_recipe(name: str) -> str:
    nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.6)
    if nearest:
        return f" Did you mean {nearest[0]!r}, which comes with the package?"
    return f" Give a YAML file, or a recipe of the package: {', '.join(RECIPES)}."


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else f" Known are: {', '.join(known)}."


def _explain(error: ValidationError, source: str, kind: type[RunRecipe]) -> Iterator[str]:
    """Translate the errors of pydantic."""
    for problem in error.errors():
        path = list(problem["loc"])
        section = str(path[0]) if path else ""
        method = None
        if section == "adapter" and len(path) > 1:
            method = str(path.pop(1))  # the member of the union that pydantic tried
        where = ".".join(str(part) for part in path)
        if problem["type"] == "extra_forbidden":
            known = list(kind.model_fields)
            if len(path) > 1:
                known = keys_of(section, method, kind)
            what = f"adapter.method={method}" if method else "a recipe"
            hint = _did_you_mean(str(path[-1]), known)
            yield f"{source}: {where!r} is not a key of {what}.{hint}"
        elif problem["type"] == "missing":
            yield f"{source}: {where} is missing. Give it in the file or as {where}=VALUE."
        elif problem["type"] == "union_tag_invalid":
            given = str(problem["ctx"]["tag"])
            why = NOT_OFFERED.get(given) or _did_you_mean(given, METHODS)
            yield f"{source}: adapter.method is {given!r}.{why}"
        elif problem["type"] == "value_error" and len(path) < 2:
            yield f"{source}: {problem['ctx']['error']}."
        elif problem["input"] is None:
            yield f"{source}: {where} is null, which is not a valid value. Leave the key out."
        elif problem["type"] == "tuple_type":
            yield (
                f"{source}: {where} is {problem['input']!r}, expected a list. "
                f"Write {where}: [first, second]."
            )
        else:
            yield f"{source}: {where} is {problem['input']!r}: {problem['msg'].lower()}."
