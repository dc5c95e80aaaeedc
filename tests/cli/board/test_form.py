"""The form of a recipe, and what it sends."""

import shlex

import pytest

from glmtune.cli.board.form import build, command_of, form, sentences, values_of
from glmtune.errors import RecipeError
from glmtune.recipe.reading import build_recipe, load_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.shipped import FINE_TUNING

SMALL = {"model.name_or_path": "nano", "data.train": ["a.json"], "output.dir": "out"}
UNUSUAL = (
    "adapter={method: qlora, r: 4, quantization_bit: 8}",
    "data.columns={instruction: 问题}",
    'data.train=["a: b.json", {path: c.json, weight: 2}, "yes"]',
    'output.run_name="12"',
    "training.max_grad_norm=null",
    "training.learning_rate=1e-05",
    "lint.off=[duplicate]",
)


def recipes() -> list[Recipe]:
    shipped = [load_recipe(name) for name in FINE_TUNING]
    return [*shipped, load_recipe(FINE_TUNING[0], UNUSUAL)]


def fields() -> list[dict]:
    found = [field for section in form()["sections"] for field in section["fields"]]
    return found + [field for method in form()["methods"].values() for field in method]


def test_every_key_has_a_sentence_in_both_languages() -> None:
    keys = {field["key"] for field in fields()}

    assert keys == set(sentences()), "write the sentences in cli/board/keys.json"
    assert len(keys) > 100
    for key, said in sentences().items():
        assert set(said) == {"en", "zh"}
        assert said["en"].endswith((".", "}.")), key
        assert any("一" <= char <= "鿿" for char in said["zh"]), key


def test_every_key_is_entered_by_its_type() -> None:
    kinds = {field["key"]: field for field in fields()}

    assert kinds["training.learning_rate"]["kind"] == "number"
    assert kinds["training.learning_rate"]["default"] == 1e-4
    assert kinds["data.max_length"]["kind"] == "integer"
    assert kinds["data.train"]["kind"] == "list"
    assert kinds["data.columns"]["kind"] == "json"
    assert kinds["training.bf16"]["kind"] == "switch"
    assert kinds["output.dir"] | {"kind": "text", "is_required": True} == kinds["output.dir"]
    compute = kinds["model.compute"]
    assert compute | {"kind": "choice", "is_nullable": True} == compute
    assert set(form()["methods"]) == set(kinds["adapter.method"]["choices"])


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.output.dir)
def test_a_recipe_goes_through_the_form_and_back(recipe: Recipe) -> None:
    assert build(values_of(recipe)) == recipe


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.output.dir)
def test_the_command_that_is_shown_trains_the_same_recipe(recipe: Recipe) -> None:
    command, name, file, *changes = shlex.split(command_of(recipe))

    assert (command, name) == ("glmtune", "train")
    assert load_recipe(file, changes) == recipe


def test_only_what_differs_from_the_defaults_is_a_value() -> None:
    recipe = build_recipe(
        {"model": {"name_or_path": "nano"}, "data": {"train": "a.json"}, "output": {"dir": "out"}}
    )

    assert values_of(recipe) == SMALL


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training.learning_rate": "fast"}, "training.learning_rate is 'fast'"),
        ({"training.lerning_rate": 1}, "learning_rate"),
        ({"nothing": 1}, "'nothing' is not a key"),
        ({"adapter.pre_seq_len": 8}, "pre_seq_len"),
    ],
)
def test_what_is_wrong_is_said_as_the_command_line_says_it(values: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(SMALL | values)
