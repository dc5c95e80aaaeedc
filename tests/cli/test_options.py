"""Overrides and recipes of commands that take rows or a recipe."""

from pathlib import Path

import pytest

from glmtune.cli.options import as_overrides, recipe_for_rows, shows_pairs
from glmtune.errors import RecipeError
from glmtune.recipe.recipe import PretrainRecipe, Recipe

RECIPE = "model: {name_or_path: m}\ndata: {train: mine.json}\noutput: {dir: out}\n"
NO_MODEL = {"model": {"name_or_path": ""}, "data": {"bad_rows": "skip"}}


def test_overrides_may_be_written_in_three_ways() -> None:
    arguments = ["a.b=1", "--c", "2", "--d=3", "--e", "--f", "x", "--g"]

    assert as_overrides(arguments) == ["a.b=1", "c=2", "d=3", "e=true", "f=x", "g=true"]


def test_an_argument_that_is_no_override_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'rows\.json': expected KEY=VALUE or --key VALUE"):
        as_overrides(["rows.json"])
    with pytest.raises(RecipeError, match=r"Several files: data\.train=\[a, b\]"):
        recipe_for_rows("a.json", {"model.name_or_path": "m"}, ["b.json"], Recipe)


def test_rows_become_the_recipe_that_would_train_on_them() -> None:
    values: dict[str, str | int | None] = {
        "model.name_or_path": "m",
        "data.max_length": 7,
        "data.format": None,
    }

    recipe = recipe_for_rows("rows.json", values, ["data.max_length=9"], Recipe)

    assert recipe.data.train == ("rows.json",)
    assert recipe.data.max_length == 9  # the later one
    assert recipe.data.bad_rows == "fail"
    texts = recipe_for_rows("text.txt", values, [], PretrainRecipe)
    assert texts.data.train == ("text.txt",)


def test_a_value_of_an_option_stays_a_text() -> None:
    recipe = recipe_for_rows(
        "1.json", {"model.name_or_path": "123", "data.format": "no"}, [], Recipe
    )

    assert (recipe.model.name_or_path, recipe.data.format) == ("123", "no")


def test_a_model_is_needed_unless_one_is_assumed() -> None:
    with pytest.raises(RecipeError, match="--model is missing"):
        recipe_for_rows("rows.json", {"model.name_or_path": None}, [], Recipe)

    assumed = recipe_for_rows(
        "rows.json", {"model.name_or_path": None}, [], Recipe, assumed=NO_MODEL
    )
    assert (assumed.model.name_or_path, assumed.data.bad_rows) == ("", "skip")
    named = recipe_for_rows("rows.json", {}, ["model.name_or_path=m"], Recipe)
    assert named.model.name_or_path == "m"


def test_what_is_assumed_for_rows_does_not_change_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")

    recipe = recipe_for_rows(str(path), {"data.max_length": 5}, [], Recipe, assumed=NO_MODEL)

    assert (recipe.model.name_or_path, recipe.data.train) == ("m", ("mine.json",))
    assert (recipe.data.bad_rows, recipe.data.max_length) == ("fail", 5)


def test_both_answers_of_a_pair_are_shown_if_the_recipe_asks_or_the_rows_have_two() -> None:
    recipe = recipe_for_rows("rows.json", {"model.name_or_path": "m"}, [], Recipe)
    preferring = recipe_for_rows("rows.json", {"model.name_or_path": "m"}, ["stage=dpo"], Recipe)

    assert shows_pairs(recipe, "rows.json") is None
    assert shows_pairs(recipe, "recipe.yaml") is False
    assert shows_pairs(preferring, "rows.json") is True
