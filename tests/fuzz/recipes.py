"""Recipes, changes on a command line and other tools' files, changed at random."""

import copy
import json
import os
from pathlib import Path
from random import Random
from typing import Any

import yaml
from tests.fuzz.surface import Attempt, Healthy, Surface
from tests.recipe.test_other_tools import AXOLOTL, LLAMA_FACTORY, OFFICIAL, SWIFT

from glmtune.errors import RecipeError
from glmtune.recipe.explain import known_keys
from glmtune.recipe.methods import METHODS
from glmtune.recipe.other_tools import convert_recipe
from glmtune.recipe.reading import build_recipe, load_recipe
from glmtune.recipe.recipe import PretrainRecipe, Recipe, RunRecipe
from glmtune.recipe.shipped import RECIPES

TREE: dict[str, Any] = {
    "model": {"name_or_path": "m"},
    "data": {"train": "r"},
    "output": {"dir": "o"},
}
WORDS = [
    *("", "~", "null", "true", "no", "on", "0", "-1", "1", "1.5", "1e-4", "5e-5", "1e300", "1e999"),
    *(".inf", "-.inf", ".nan", "9" * 30, "9" * 5_000, "0x10", "010", "1:30", "1_000", "2026-11-27"),
    *("2026-99-99", "2026-11-27 25:61:61", "[]", "{}", "[1, two]", "{a: b}", "[[[[]]]]", "x" * 300),
    *("!!bool maybe", "!!int x", "!!float y", "!!binary z", "!!timestamp 1", "!!set {a}"),
    *(
        "!!omap []",
        "!!python/object:os.system x",
        "!!str 3",
        "!!null x",
        "&a [*a]",
        "*a",
        "<<",
        "=",
    ),
    *("'", '"', "|", ">", "- - -", "? a", "a: b", "：", "\u200b", "\ufeff", "é", "中文", "%TAG"),
    *("\U0001f600", "@", "`", "all-linear", "query_key_value,dense", "dpo", "qlora", "full"),
    *("steps", "bfloat16", "../..", "~/x", "/", ".", "/dev/null/x"),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, 10**17, 1.5, -0.5, 1e-9, 1e300),
    *(float("inf"), float("nan"), "", "x", "1", "5e-5", "a,b", "steps", "none", "中文", "\u2028"),
    *([], {}, [1], ["a"], [[]], [None], {"a": 1}, {"a": {"b": []}}, ["a"] * 50),
    *("x" * 5_000, "\x7f", "\ud800"),
]
TOOLS = [OFFICIAL, LLAMA_FACTORY, SWIFT, AXOLOTL]


def changed_text(draw: Random, text: str) -> str:
    """Change a YAML text in a few places."""
    for _ in range(draw.randint(1, 3)):
        lines = text.split("\n")
        index = draw.randrange(len(lines))
        kind = draw.randrange(7)
        if kind == 0:
            key = lines[index].partition(":")[0]
            lines[index] = f"{key}: {draw.choice(WORDS)}"
        elif kind == 1:
            lines.insert(index, lines[draw.randrange(len(lines))])
        elif kind == 2:
            lines.insert(index, draw.choice(WORDS))
        elif kind == 3:
            del lines[index]
        elif kind == 4:
            lines[index] = draw.choice([" ", "\t", "  ", "- ", "&a ", "? "]) + lines[index]
        elif kind == 5:
            at = draw.randrange(len(lines[index]) + 1)
            lines[index] = lines[index][:at] + draw.choice(WORDS)[:20] + lines[index][at:]
        else:
            lines[index] = lines[index].replace(":", draw.choice(["：", "::", "", ": :", " :"]))
        text = "\n".join(lines) or "x"
    return text


def changed_tree(draw: Random, tree: Any) -> Any:
    """Change a tree in a few places."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw.randint(1, 3)):
        place = tree
        for _ in range(draw.randint(0, 2)):
            inner = [value for value in place.values() if isinstance(value, dict) and value]
            place = draw.choice(inner) if inner else place
        key = draw.choice([*place, "lr", "stage", "columns", "model"])
        if draw.random() < 0.15:
            place.pop(key, None)
        else:
            place[key] = copy.deepcopy(draw.choice(VALUES))
    return tree


def _in_sentences(error: RecipeError) -> None:
    """Check the end of a message, and raise it again."""
    message = str(error)
    assert message[-1] in ".?}^" or "glmtune " in message, message
    raise error


def of_recipes(healthy: Healthy) -> Attempt:
    texts = [(file.read_text(encoding="utf-8"), name) for name, file in RECIPES.items()]

    def attempt(draw: Random, folder: Path) -> None:
        text, name = draw.choice(texts)
        kind: type[RunRecipe] = PretrainRecipe if "pretrain" in name else Recipe
        path = folder / "recipe.yaml"
        path.write_text(changed_text(draw, text), encoding="utf-8")
        try:
            load_recipe(path, kind=kind)
        except RecipeError as error:
            _in_sentences(error)

    return attempt


def of_overrides(healthy: Healthy) -> Attempt:
    more_keys = ("lr", "rank", "output_dir", "x", "", ".", "a.b.c", "data.columns.a")
    keys = [*known_keys(Recipe), *more_keys]

    def attempt(draw: Random, folder: Path) -> None:
        word = draw.choice([*WORDS, *METHODS])
        override = f"{draw.choice(keys)}{draw.choice(['=', '=', '=', '＝', ''])}{word}"
        more = [f"adapter.method={draw.choice(METHODS)}"] if draw.random() < 0.3 else []
        try:
            build_recipe(TREE, [*more, override])
        except RecipeError as error:
            _in_sentences(error)

    return attempt


def of_trees(healthy: Healthy) -> Attempt:
    trees = [build_recipe(TREE).model_dump(mode="json"), TREE]
    trees += [yaml.safe_load(file.read_text(encoding="utf-8")) for file in RECIPES.values()]

    def attempt(draw: Random, folder: Path) -> None:
        try:
            build_recipe(changed_tree(draw, draw.choice(trees)))
        except RecipeError as error:
            _in_sentences(error)

    return attempt


def of_other_tools(healthy: Healthy) -> Attempt:
    entry = {"file_name": "a.json", "columns": {"prompt": "q"}, "tags": {}, "formatting": "alpaca"}

    def attempt(draw: Random, folder: Path) -> None:
        tree = changed_tree(draw, draw.choice(TOOLS))
        (folder / "data").mkdir()
        register = json.dumps(changed_tree(draw, {"identity": entry, "wiki": entry}))
        (folder / "data" / "dataset_info.json").write_text(register, encoding="utf-8")
        path, ours = folder / "theirs.yaml", folder / "ours.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        before = Path.cwd()
        os.chdir(folder)  # their paths are relative
        try:
            ours.write_text(convert_recipe(path).to_yaml("theirs.yaml"), encoding="utf-8")
            load_recipe(ours)  # what is written can be read
        except RecipeError as error:
            _in_sentences(error)
        finally:
            os.chdir(before)

    return attempt


SURFACES = (
    Surface("recipes", of_recipes, 10),
    Surface("changes on a command line", of_overrides, 24),
    Surface("trees of programs", of_trees, 10),
    Surface("recipes of other tools", of_other_tools, 5),
)
