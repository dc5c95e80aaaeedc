"""What is wrong with a recipe, in a sentence for each key: what was got, expected, and to do."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from glmtune.recipe.methods import METHODS, NOT_OFFERED
from glmtune.recipe.names import did_you_mean, hint
from glmtune.recipe.recipe import PretrainRecipe, Recipe, RunRecipe
from glmtune.recipe.yaml_text import FULL_WIDTH

MAX_PROBLEMS = 20  # that are written out
MAX_SHOWN = 80  # characters of a value

_TO_SECTION: Mapping[str, str] = {  # what a section may be mistaken for
    "model": "name_or_path",
    "data": "train",
    "adapter": "method",
    "output": "dir",
    "preference": "stage",
}


def explain(
    error: ValidationError,
    source: str,
    kind: type[RunRecipe],
    lines: Mapping[str, int] | None = None,
) -> Iterator[str]:
    """Translate the errors of pydantic.

    Args:
        error: of a recipe.
        source: names the recipe.
        kind: of recipe.
        lines: the line of `section.key` in the source, where it has one.
    """
    seen: set[str] = set()
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        method = None
        if path[:1] == ["adapter"] and len(path) > 1:
            method = path.pop(1)  # the member of the union that pydantic tried
        path = path[:2] + [part for part in path[2:] if "[" not in part]  # not members of unions
        where = ".".join(path)
        if where in seen and where:
            continue
        seen.add(where)
        if len(seen) > MAX_PROBLEMS:
            yield f"{source}: and {len(error.errors()) - MAX_PROBLEMS} more of such keys."
            return
        line = (lines or {}).get(".".join(path[:2]))
        place = source if line is None else f"{source}:{line}"
        yield f"{place}: {_sentence(problem, path, method, kind)}"


def _sentence(problem: Any, path: Sequence[str], method: str | None, kind: type[RunRecipe]) -> str:
    where, given = ".".join(path), problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            return unknown_key(path, method, kind)
        case "missing":
            return f"{where} is missing. Give it in the file or as {where}=VALUE."
        case "union_tag_invalid":
            tag = str(problem["ctx"]["tag"])
            why = NOT_OFFERED.get(tag) or did_you_mean(tag, METHODS)
            return f"adapter.method is {shown(tag)}.{why}"
        case "value_error" if len(path) < 2:
            return f"{problem['ctx']['error']}."
    if given is None:
        remedy = "Give a value" if _is_required(path, method, kind) else "Leave the key out"
        return f"{where} is null, which is not a valid value. {remedy}."
    got = f"{where} is {shown(given)}"
    match problem["type"]:
        case "tuple_type" | "list_type":
            return f"{got}, expected a list. Write {where}: [first, second]."
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{got}, expected keys and values, such as {path[-1]}: {{key: value}}."
        case "string_type":
            return f"{got}, expected text.{_quoted(path, given)}"
        case "bool_type" | "bool_parsing":
            return f"{got}, expected true or false."
        case "too_short":
            return f"{got}, expected at least one. Name one."
        case "greater_than" | "greater_than_equal":
            return f"{got}: {_as_clause(problem['msg'])}.{_off(path, method, given, kind)}"
    return f"{got}: {_as_clause(problem['msg'])}."


def unknown_key(path: Sequence[str], method: str | None, kind: type[RunRecipe]) -> str:
    """Say that a key is not known, and what may be meant."""
    where, name = ".".join(path), path[-1]
    known = known_keys(kind)
    if len(path) == 1:
        what, near = "a recipe", list(kind.model_fields)
    elif method:
        what, near = f"adapter.method={method}", keys_of("adapter", method, kind)
    else:
        what, near = "a recipe", _keys_beside(path, kind)
    start = f"{where!r} is not a key of {what}"
    elsewhere = [key for key in known if key.partition(".")[2] == name and key != where]
    if f"adapter.{name}" in known and method:
        methods = [each for each in METHODS if name in keys_of("adapter", each, kind)]
        return (
            f"{start}, but of {', '.join(methods)}. Leave it out, or choose one of these "
            f"methods; adapter='{{method: {method}}}' replaces the entire section."
        )
    if wide := [char for char in FULL_WIDTH if char in where]:
        return f"{start}. It has the full-width {wide[0]!r}; YAML needs the half-width character."
    if called := hint(name, known):
        return f"{start}; {called}."
    if where in known_keys(PretrainRecipe):
        return f"{start} for fine-tuning, but of one for `glmtune pretrain`. Leave it out."
    if elsewhere:
        return f"{start}. It is {' or '.join(elsewhere)}."
    return f"{start}.{did_you_mean(name, near)}"


def _keys_beside(path: Sequence[str], kind: type[RunRecipe]) -> list[str]:
    """List the keys of the section that a key is in, or of a section within it (data.replay)."""
    inner = [
        member
        for field in _fields(path[:2], None, kind)
        for member in get_args(field.annotation)
        if len(path) > 2 and hasattr(member, "model_fields")
    ]
    return list(inner[0].model_fields) if inner else keys_of(path[0], None, kind)


def no_section(section: str, value: Any) -> str:
    """Say that a section has a value in place of its keys."""
    start = f"{section} is {shown(value)}, expected keys and values."
    key = _TO_SECTION.get(section)
    if key is None or isinstance(value, Mapping):
        return f"{start} Write its keys below it, each with a value."
    return (
        f"{start} Write {section}.{key}={_as_word(value)}, or {section}: {{{key}: ...}} in a file."
    )


def shown(value: Any) -> str:
    """Write a value as YAML has it, not longer than a line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def known_keys(kind: type[RunRecipe]) -> list[str]:
    """List all keys with their sections."""
    return [
        f"{section}.{key}" for section in kind.model_fields for key in keys_of(section, None, kind)
    ]


def keys_of(section: str, method: str | None = None, kind: type[RunRecipe] = Recipe) -> list[str]:
    """List the keys of a section; for `adapter`, those of one method or of all."""
    return list(
        dict.fromkeys(key for each in _classes(section, method, kind) for key in each.model_fields)
    )


def _classes(section: str, method: str | None, kind: type[RunRecipe]) -> list[Any]:
    annotation: Any = kind.model_fields[section].annotation
    classes = [get_args(tagged)[0] for tagged in get_args(annotation)] or [annotation]
    if method is not None:
        classes = [each for each in classes if each.model_fields["method"].default == method]
    return classes


def _quoted(path: Sequence[str], given: Any) -> str:
    """Show how a number or a truth value is written as text."""
    if not isinstance(given, bool | int | float):
        return ""
    word = _as_word(given)
    if path[-1].isdigit():  # an entry of a list
        return f' Put it in quotes: "{word}".'
    return (
        f' Put it in quotes: {path[-1]}: "{word}" in a file, '
        f"'{'.'.join(path)}=\"{word}\"' on the command line."
    )


def _off(path: Sequence[str], method: str | None, given: Any, kind: type[RunRecipe]) -> str:
    """Say how a key is switched off for which other tools take 0 or -1."""
    is_off = isinstance(given, str) or given <= 0
    if len(path) != 2 or not is_off:
        return ""
    fields = _fields(path, method, kind)
    if not any(type(None) in get_args(field.annotation) for field in fields):
        return ""
    where = ".".join(path)
    return (
        f" {_MEANS_OFF.get(where, 'To switch it off')}: {where}=null, or {path[1]}: null in a file."
    )


def _is_required(path: Sequence[str], method: str | None, kind: type[RunRecipe]) -> bool:
    return any(field.is_required() for field in _fields(path, method, kind))


def _fields(path: Sequence[str], method: str | None, kind: type[RunRecipe]) -> list[FieldInfo]:
    """List the fields of a key, one for each method that has it."""
    classes = _classes(path[0], method, kind) if len(path) == 2 else []
    return [each.model_fields[path[1]] for each in classes if path[1] in each.model_fields]


_MEANS_OFF = {
    "training.max_steps": "For no limit but num_train_epochs",
    "training.max_grad_norm": "For no clipping",
    "training.save_total_limit": "To keep all checkpoints",
}


def _as_word(value: Any) -> str:
    return str(value) if isinstance(value, str) else shown(value).replace("'", "")


def _as_clause(message: str) -> str:
    """Write a message of pydantic without its capital; values in it stay as they are."""
    text = message[:1].lower() + message[1:]
    return re.sub(r"\.$", "", text)
