"""The form of a recipe, made from its pydantic models: every key with type, default and bounds.

    TrainingSection.learning_rate: Rate = 1e-4     {"key": "training.learning_rate",
                                               ->   "kind": "number", "default": 0.0001,
    keys.json: a sentence in English and Chinese    "high": 10, "en": "...", "zh": "..."}

What a browser sends back are values by key, and `build_recipe` checks them as it checks a file.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from glmtune.recipe.commented import SHOWN
from glmtune.recipe.methods import METHODS
from glmtune.recipe.reading import build_recipe, load_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.shipped import DEFAULT, FINE_TUNING
from glmtune.recipe.yaml_text import YamlError, parse_yaml

Values = Mapping[str, Any]
"""Values by `section.key`; a key that is missing has its default."""


@cache
def sentences() -> Mapping[str, Mapping[str, str]]:
    """Return what each key means, in English and Chinese."""
    text = (files("glmtune.cli.board") / "keys.json").read_text(encoding="utf-8")
    content: Mapping[str, Mapping[str, str]] = json.loads(text)
    return content


@cache
def form() -> Mapping[str, Any]:
    """Return everything that a page needs to draw the form."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    sections = []
    for name, value in schema["properties"].items():
        if name != "adapter":
            model = definitions[value["$ref"].rpartition("/")[2]]
            sections.append({"name": name, "fields": list(_fields(name, model, definitions))})
    references = schema["properties"]["adapter"]["oneOf"]
    models = [definitions[each["$ref"].rpartition("/")[2]] for each in references]
    methods = {
        model["properties"]["method"]["const"]: list(_fields("adapter", model, definitions))
        for model in models
    }
    sections.insert(2, {"name": "adapter", "fields": [_method_field()]})
    return {"sections": sections, "methods": methods, "recipes": list(FINE_TUNING)}


def _method_field() -> dict[str, Any]:
    return {
        "key": "adapter.method",
        "kind": "choice",
        "choices": list(METHODS),
        "default": "lora",
        "is_shown": True,
        "is_required": False,
        **sentences()["adapter.method"],
    }


def _fields(
    section: str, model: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for name, found in model["properties"].items():
        key = f"{section}.{name}"
        if key == "adapter.method":
            continue
        kind = _kind(found, definitions)
        yield {
            "key": key,
            **kind,
            "default": found.get("default"),
            "is_required": name in model.get("required", ()),
            "is_shown": key in SHOWN,
            **sentences().get(key, {"en": "", "zh": ""}),
        }


def _kind(found: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a value is entered: a choice, a number within bounds, a list, a text, or JSON."""
    options = [dict(each) for each in found.get("anyOf", [found])]
    given = [each for each in options if each.get("type") != "null"]
    kind: dict[str, Any] = {"is_nullable": len(given) < len(options)}
    choices = [value for each in given for value in each.get("enum", [each.get("const")])]
    if None not in choices and all(isinstance(value, str | int) for value in choices):
        is_open = len(given) > 1 and any("enum" not in e and "const" not in e for e in given)
        return kind | {"kind": "json" if is_open else "choice", "choices": choices}
    if len(given) > 1 or "$ref" in given[0]:
        return kind | {"kind": "json"}
    [only] = given
    match only.get("type"):
        case "boolean":
            return kind | {"kind": "switch"}
        case "integer" | "number":
            low, high = only.get("ge", only.get("gt")), only.get("le", only.get("lt"))
            return kind | {"kind": only["type"], "low": low, "high": high}
        case "array":
            return kind | {"kind": "list", "items": only["items"].get("type")}
        case "string":
            return kind | {"kind": "text"}
    return kind | {"kind": "json"}


def build(values: Values, overrides: Sequence[str] = ()) -> Recipe:
    """Make the recipe of a filled form.

    Args:
        values: by key.
        overrides: `key=value` that change it, such as those that a plan suggests.

    Raises:
        RecipeError: names every key that is unknown, missing or wrong.
    """
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name and section in Recipe.model_fields:
            tree.setdefault(section, {})[name] = value
        else:
            tree[key] = value  # refused with its name
    return build_recipe(tree, overrides)


def values_of(recipe: Recipe) -> dict[str, Any]:
    """Return the values that differ from the defaults, and those without one."""
    changed: dict[str, Any] = {}
    for section, content in recipe.model_dump(mode="json").items():
        own = getattr(recipe, section)
        for key, value in content.items():
            field = type(own).model_fields[key]
            is_method = f"{section}.{key}" == "adapter.method" and value != "lora"
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            if is_method or field.is_required() or getattr(own, key) != default:
                changed[f"{section}.{key}"] = value
    return changed


def command_of(recipe: Recipe) -> str:
    """Return the command that trains a recipe that is in no file: our default and its changes."""
    ours, theirs = (each.model_dump(mode="json") for each in (recipe, load_recipe(DEFAULT)))
    words = ["glmtune", "train", DEFAULT]
    for section, values in ours.items():
        before = theirs[section]
        if section == "adapter" and values["method"] != before["method"]:
            adapter = {
                key.partition(".")[2]: value
                for key, value in values_of(recipe).items()
                if key.startswith("adapter.")
            }
            words.append(f"adapter={json.dumps(adapter, ensure_ascii=False)}")
            continue
        words += [
            f"{section}.{key}={_as_word(value)}"
            for key, value in values.items()
            if value != before.get(key)
        ]
    return shlex.join(words)


def _as_word(value: Any) -> str:
    """Write a value as `key=value` takes it; a text is quoted where YAML reads something else."""
    if isinstance(value, str) and value:
        try:
            if parse_yaml(value).tree == value:
                return value
        except YamlError:
            pass
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return f"[{_as_word(value[0])}]" if not set(value[0]) & set(",[]{}") else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


def as_override(key: str, value: Any) -> str:
    """Write a change as `key=value`; JSON is YAML."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"
