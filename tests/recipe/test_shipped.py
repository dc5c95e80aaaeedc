"""Recipes come with the package and are found by name."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.errors import RecipeError
from glmtune.recipe.reading import load_recipe
from glmtune.recipe.recipe import PretrainRecipe, Recipe
from glmtune.recipe.shipped import FINE_TUNING, PRETRAINING, RECIPES, find_recipe, is_recipe


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_recipes_that_users_start_from_come_with_the_package() -> None:
    assert {"chatglm3-lora", "chatglm3-alpaca-zh-tutorial", "nano-chat"} <= set(FINE_TUNING)
    assert PRETRAINING == ("nano-pretrain",)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_of_the_package_loads_by_its_name(name: str) -> None:
    kind = PretrainRecipe if name in PRETRAINING else Recipe
    assert load_recipe(name, kind=kind).model.name_or_path


@pytest.mark.parametrize(
    "name", ["chatglm3-lora", "chatglm3-lora.yaml", "recipes/chatglm3-lora.yaml"]
)
def test_a_recipe_may_be_written_as_a_file_of_the_repository(name: str) -> None:
    assert find_recipe(name) == RECIPES["chatglm3-lora"]
    assert is_recipe(name)
    assert load_recipe(name, ["data.train=mine.json"]).data.train == ("mine.json",)


def test_a_file_of_the_user_comes_first() -> None:
    own = Path("recipes") / "chatglm3-lora.yaml"
    own.parent.mkdir()
    own.write_text("model: {name_or_path: mine}\ndata: {train: a}\noutput: {dir: b}\n", "utf-8")

    assert load_recipe(str(own)).model.name_or_path == "mine"
    assert load_recipe("chatglm3-lora").model.name_or_path == "zai-org/chatglm3-6b"


def test_a_folder_of_the_same_name_is_not_a_recipe() -> None:
    Path("chatglm3-lora").mkdir()

    assert find_recipe("chatglm3-lora") == RECIPES["chatglm3-lora"]
    assert not is_recipe("chatglm3-lora")  # where rows may be meant


@pytest.mark.parametrize("name", ["elsewhere/chatglm3-lora.yaml", "chatglm3-lora.json", "rows"])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert find_recipe(name) == Path(name)


def test_a_wrong_name_gets_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match=r"no such recipe\. Did you mean 'chatglm3-lora'"):
        load_recipe("chatglm-lora")
    with pytest.raises(RecipeError, match=r"a recipe of the package: chatglm3-alpaca-zh-tutorial,"):
        load_recipe("mine.yaml")


@pytest.mark.parametrize(
    ("command", "names"),
    [("train", FINE_TUNING), ("plan", FINE_TUNING), ("pretrain", PRETRAINING)],
)
def test_the_help_of_a_command_lists_the_recipes(command: str, names: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output

    assert all(name in shown for name in names)
