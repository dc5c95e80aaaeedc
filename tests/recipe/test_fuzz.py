"""Whatever a recipe, a change or another tool's file holds: a recipe, or one error in sentences.

2,000 inputs in a few seconds; `GLMTUNE_FUZZ=100000 pytest tests/recipe/test_fuzz.py` tries more.
The same seed makes the same inputs.
"""

import copy
import json
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.recipe.test_other_tools import AXOLOTL, LLAMA_FACTORY, OFFICIAL, SWIFT

from glmtune.errors import RecipeError
from glmtune.recipe.explain import known_keys
from glmtune.recipe.methods import METHODS
from glmtune.recipe.other_tools import convert_recipe
from glmtune.recipe.reading import build_recipe, load_recipe
from glmtune.recipe.recipe import PretrainRecipe, Recipe, RunRecipe
from glmtune.recipe.shipped import RECIPES

NUM_INPUTS = int(os.environ.get("GLMTUNE_FUZZ", "2000"))
MAX_SECONDS = 5.0  # of the processor, for one input

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
    *("x" * 5_000, "\x7f"),
]
TOOLS = [OFFICIAL, LLAMA_FACTORY, SWIFT, AXOLOTL]


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # old names are accepted with one
        yield


def check(what: object, read: Callable[[], object]) -> bool:
    """Read an input in bounded time; whether it was accepted."""
    began = time.process_time()
    accepted = True
    try:
        read()
    except RecipeError as error:
        message = str(error)
        assert message[-1] in ".?}^" or "glmtune " in message, message
        assert len(message) < 20_000
        accepted = False
    except BaseException as error:
        raise AssertionError(f"{what!r:.2000} ends in {error!r:.300}") from error
    assert time.process_time() - began < MAX_SECONDS, f"{what!r:.2000} takes too long"
    return accepted


def changed_text(draw: random.Random, text: str) -> str:
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


def changed_tree(draw: random.Random, tree: Any) -> Any:
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


def test_a_changed_recipe_is_read_or_refused_in_sentences(tmp_path: Path) -> None:
    draw, path, accepted = random.Random(1), tmp_path / "recipe.yaml", 0
    texts = [(file.read_text(encoding="utf-8"), name) for name, file in RECIPES.items()]
    for _ in range(NUM_INPUTS // 6):
        text, name = draw.choice(texts)
        kind: type[RunRecipe] = PretrainRecipe if "pretrain" in name else Recipe
        text = changed_text(draw, text)
        path.write_text(text, encoding="utf-8")
        accepted += check(text, lambda kind=kind: load_recipe(path, kind=kind))  # type: ignore[misc]

    assert 0 < accepted < NUM_INPUTS // 6


def test_changes_on_the_command_line_are_read_or_refused_in_sentences() -> None:
    draw, accepted = random.Random(2), 0
    keys = [
        *known_keys(Recipe),
        "lr",
        "rank",
        "output_dir",
        "x",
        "",
        ".",
        "a.b.c",
        "data.columns.a",
    ]
    for _ in range(NUM_INPUTS // 2):
        word = draw.choice([*WORDS, *METHODS])
        override = f"{draw.choice(keys)}{draw.choice(['=', '=', '=', '＝', ''])}{word}"
        more = [f"adapter.method={draw.choice(METHODS)}"] if draw.random() < 0.3 else []
        accepted += check([*more, override], lambda: build_recipe(TREE, [*more, override]))  # noqa: B023

    assert 0 < accepted < NUM_INPUTS // 2


def test_trees_of_programs_are_read_or_refused_in_sentences() -> None:
    draw, accepted = random.Random(3), 0
    trees = [build_recipe(TREE).model_dump(mode="json"), TREE]
    trees += [yaml.safe_load(file.read_text(encoding="utf-8")) for file in RECIPES.values()]
    for _ in range(NUM_INPUTS // 6):
        tree = changed_tree(draw, draw.choice(trees))
        accepted += check(tree, lambda: build_recipe(tree))  # noqa: B023

    assert 0 < accepted < NUM_INPUTS // 6


def test_changed_recipes_of_other_tools_are_converted_or_refused_in_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw, path, accepted = random.Random(4), tmp_path / "theirs.yaml", 0
    ours = tmp_path / "ours.yaml"
    entry = {"file_name": "a.json", "columns": {"prompt": "q"}, "tags": {}, "formatting": "alpaca"}
    (tmp_path / "data").mkdir()

    def convert() -> None:
        converted = convert_recipe(path)
        ours.write_text(converted.to_yaml("theirs.yaml"), encoding="utf-8")
        load_recipe(ours)  # what is written can be read

    for _ in range(NUM_INPUTS // 12):
        tree = changed_tree(draw, draw.choice(TOOLS))
        register = changed_tree(draw, {"identity": entry, "wiki": entry})
        text = json.dumps(register)
        (tmp_path / "data" / "dataset_info.json").write_text(text, encoding="utf-8")
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        accepted += check([tree, register], convert)

    assert 0 < accepted < NUM_INPUTS // 12
