"""Keyword arguments of Python are keys of a recipe."""

from pathlib import Path
from typing import Any

import pytest

from glmtune.errors import RecipeError
from glmtune.recipe.keywords import free_folder, names_folder, recipe_for
from glmtune.recipe.recipe import Recipe


def test_a_model_gets_the_defaults_and_the_keys_that_are_given() -> None:
    recipe = recipe_for("nano", ["a.json"], {"r": 4, "learning_rate": 1e-5, "seed": 7})

    assert recipe.model.name_or_path == "nano"
    assert recipe.data.train == ("a.json",)
    assert recipe.output.dir == "out/nano"
    assert (recipe.adapter.r, recipe.training.learning_rate, recipe.training.seed) == (4, 1e-5, 7)


def test_recipes_by_name_or_as_a_value_keep_their_other_keys() -> None:
    named = recipe_for("chatglm3-lora", ["a.json"], {"max_steps": 3})
    again = recipe_for(named, None, {"data.max_length": 99})

    assert (named.adapter.r, named.training.max_steps) == (16, 3)
    assert again.training == named.training
    assert again.data.train == ("a.json",)
    assert again.data.max_length == 99


def test_a_section_may_be_given_as_a_mapping_and_a_key_with_its_section() -> None:
    keys: dict[str, Any] = {"adapter": {"method": "ia3"}, "adapter.name_or_path": Path("x")}

    recipe = recipe_for("nano", ["a.json"], keys)

    assert (recipe.adapter.method, recipe.adapter.name_or_path) == ("ia3", "x")


@pytest.mark.parametrize(
    ("start", "keys", "message"),
    [
        ("nano", {"name_or_path": "x"}, "Write model.name_or_path or adapter.name_or_path"),
        ("nano", {"lora_rank": 3}, r"it is called adapter\.r here"),
        ("nano", {"leraning_rate": 1}, "Did you mean 'learning_rate'"),
        ("nano", {"r": object()}, "r is of the type object"),
        ("nano", {"learning_rate": "fast"}, r"training\.learning_rate is 'fast'"),
        (3, {}, "the first argument is of the type int, expected a recipe"),
    ],
)
def test_a_wrong_keyword_is_refused_with_the_right_one(
    start: Any, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_for(start, ["a.json"], keys)


def test_a_model_without_rows_is_refused() -> None:
    with pytest.raises(RecipeError, match="nano: is taken for a model, and there are no rows"):
        recipe_for("nano", None, {"r": 8})


def test_a_folder_that_was_not_chosen_is_the_first_free_one(tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    folder.mkdir()
    (tmp_path / "nano-2").mkdir()

    assert free_folder(folder) == tmp_path / "nano-3"
    assert free_folder(tmp_path / "other") == tmp_path / "other"


def test_a_recipe_names_its_folder_and_a_model_does_not() -> None:
    recipe = Recipe.model_validate(
        {"model": {"name_or_path": "m"}, "data": {"train": "a"}, "output": {"dir": "o"}}
    )

    assert names_folder(recipe, {})
    assert names_folder("chatglm3-lora", {})
    assert names_folder("nano", {"dir": "x"})
    assert not names_folder("nano", {"r": 8})
