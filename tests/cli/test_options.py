"""Overrides and recipes of commands that take rows or a recipe."""

import logging
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.cli.options import as_overrides, changes_of, recipe_for_rows, shows_pairs
from glmtune.cli.pretrain import next_line
from glmtune.errors import RecipeError
from glmtune.recipe.reading import build_recipe, load_recipe
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


def test_a_flag_with_hyphens_is_the_key_with_underscores() -> None:
    assert as_overrides(["--learning-rate", "1e-4", "--max-steps=3"]) == [
        "learning_rate=1e-4",
        "max_steps=3",
    ]


def test_a_full_width_sign_is_named() -> None:
    with pytest.raises(RecipeError, match=r"full-width '＝'. Write adapter\.r=8"):
        as_overrides(["adapter.r＝8"])


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (
            ["--model", "./m", "--data", "rows.json", "--output", "out"],
            "chatglm3-lora model.name_or_path=./m data.train=rows.json output.dir=out",
        ),
        (["--lr", "1e-4", "nano-chat"], "nano-chat training.learning_rate=1e-4"),
        (["--epochs=3", "mine.yaml", "r=4"], "mine.yaml training.num_train_epochs=3 r=4"),
    ],
)
def test_options_before_the_recipe_are_answered_with_a_command_that_works(
    words: list[str], command: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        changes_of("train", Path(words[0]), words[1:])

    assert str(refused.value).endswith(f"glmtune train {command}")
    recipe, *changes = shlex.split(command)
    assert changes_of("train", Path(recipe), changes) == changes
    if recipe != "mine.yaml":
        load_recipe(recipe, changes)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_quiet_is_accepted_before_and_after_the_command(place: int) -> None:
    words = ["train", "none.yaml"]
    words.insert(place, "--quiet")

    failed = CliRunner().invoke(app, words)

    assert isinstance(failed.exception, RecipeError)
    assert "none.yaml: there is no such recipe" in str(failed.exception)
    assert logging.getLogger("glmtune").level == logging.WARNING


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.config={num_layers: 2}"],
        [],
        ["adapter={method: lora, r: 4, init_lora_weights: pissa, target_modules: [dense]}"],
        ["adapter.method=freeze", "adapter.trainable_layers=1"],
    ],
)
def test_the_next_command_of_a_pretraining_is_a_recipe_that_loads(overrides: list[str]) -> None:
    tree = {"model": {"name_or_path": "m"}, "data": {"train": "t"}, "output": {"dir": "out/base"}}
    recipe = build_recipe(tree, overrides, kind=PretrainRecipe)

    what, command = next_line(recipe, Path("out/base")).split(":  ")

    assert what == "Teach it to answer"
    _, _, name, *changes = shlex.split(command)
    tuned = load_recipe(name, changes)
    assert tuned.data.train == ("ROWS.json",)
    named = [tuned.model.name_or_path, getattr(tuned.adapter, "name_or_path", None)]
    assert "out/base" in named
    assert tuned.output.dir == "out/base-chat"
