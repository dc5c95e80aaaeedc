"""A model and rows are enough to train; the recipe that is made is shown, and reads as the same."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glmtune.cli.given_recipe import given_recipe
from glmtune.cli.main import app
from glmtune.errors import DataError, RecipeError
from glmtune.recipe.commented import commented
from glmtune.recipe.reading import load_recipe
from glmtune.recipe.shipped import FINE_TUNING


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hundred short rows, and a long one."""
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    table = [{"instruction": f"说 {n}", "output": "好。" * (1 + n % 7)} for n in range(100)]
    table.append({"instruction": "说", "output": "好。" * 100})
    path = tmp_path / "问答 rows.v2.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def test_values_follow_the_rows_and_what_is_given_wins(rows: Path, tiny_model_dir: Path) -> None:
    words = ["--learning-rate", "3e-4", "training.num_train_epochs=2"]

    given = given_recipe("train", None, words, model=str(tiny_model_dir), data=[str(rows)])

    recipe = given.load()
    assert recipe.model.name_or_path == str(tiny_model_dir)
    assert recipe.data.train == (str(rows),)
    assert recipe.data.max_length == 128
    assert recipe.data.eval_fraction == 8
    assert recipe.output.dir == "out/问答 rows"
    assert (recipe.model.dtype, recipe.training.gradient_checkpointing) == ("auto", False)
    assert recipe.training.learning_rate == 3e-4
    assert recipe.training.num_train_epochs == 2
    assert recipe.training.gradient_accumulation_steps * 2 == 4
    assert all(choice.reason for choice in given.choices)
    assert load_recipe(given.file, given.changes) == recipe  # what other processes are given


def test_the_first_change_may_stand_where_a_recipe_would(rows: Path, tiny_model_dir: Path) -> None:
    change = Path("adapter.r=4")

    given = given_recipe("train", change, [], model=str(tiny_model_dir), data=[str(rows)])

    assert given.load().adapter.model_dump()["r"] == 4


def test_options_are_changes_of_a_recipe_that_is_given(tmp_path: Path) -> None:
    given = given_recipe(
        "train", Path("chatglm3-lora"), ["r=4"], model="./m", data=["a b.json"], output="x"
    )

    assert given.choices == ()
    recipe = given.load()
    assert (recipe.model.name_or_path, recipe.data.train) == ("./m", ("a b.json",))
    assert recipe.output.dir == "x"


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["--data", "rows.json"], "--model ./chatglm3-6b is missing"),
        (["--model", "m"], "--data rows.json is missing"),
        ([], "--model ./chatglm3-6b and --data rows.json are missing"),
    ],
)
def test_what_is_missing_is_named(words: list[str], missing: str) -> None:
    result = CliRunner().invoke(app, ["train", *words])

    assert isinstance(result.exception, RecipeError)
    assert str(result.exception).endswith(f"{missing}.")
    assert "glmtune train chatglm3-lora" in str(result.exception)


def test_rows_that_are_not_there_are_named(tiny_model_dir: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json"):
        given_recipe("train", None, [], model=str(tiny_model_dir), data=["gone.json"])


def test_a_few_rows_are_all_learned(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = tmp_path / "few.json"
    rows.write_text(json.dumps([{"instruction": "说", "output": "好"}] * 3), encoding="utf-8")

    recipe = given_recipe("train", None, [], model=str(tiny_model_dir), data=[str(rows)]).load()

    assert recipe.data.eval_fraction == 0
    assert recipe.training.num_train_epochs == 5


@pytest.mark.parametrize("name", FINE_TUNING)
def test_a_commented_recipe_reads_as_the_same(name: str, tmp_path: Path) -> None:
    odd = ["model.name_or_path='a: #b'", "data.train=[{path: 'x y.json', weight: 2}, b.json]"]
    recipe = load_recipe(name, odd)
    path = tmp_path / "mine.yaml"

    path.write_text(commented(recipe), encoding="utf-8")

    assert load_recipe(path) == recipe


def test_init_writes_a_recipe_with_reasons_and_keeps_what_is_there(
    rows: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["init", "my.yaml", "--model", str(tiny_model_dir), "--data", str(rows), "r=4"]

    written = CliRunner().invoke(app, command)

    assert written.exit_code == 0, written.exception
    assert shlex.split(written.stdout)[-3:] == ["glmtune", "train", "my.yaml"]
    text = Path("my.yaml").read_text(encoding="utf-8")
    assert "# 99 % of 101 rows have at most" in text
    assert "# rank of the update" in text
    assert load_recipe("my.yaml").adapter.model_dump()["r"] == 4

    again = CliRunner().invoke(app, command)
    assert "my.yaml: already exists" in str(again.exception)
    assert Path("my.yaml").read_text(encoding="utf-8") == text


def test_init_without_a_model_writes_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert CliRunner().invoke(app, ["init"]).exit_code == 0

    assert load_recipe("recipe.yaml") == load_recipe("chatglm3-lora")
