"""Every number of a recipe is typed and bounded, from YAML, overrides and programs."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from annotated_types import Le, Lt
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from glmtune.errors import RecipeError
from glmtune.recipe import numbers
from glmtune.recipe.explain import keys_of
from glmtune.recipe.methods import METHODS
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import PretrainRecipe, Recipe, RunRecipe

TREE: dict[str, Any] = {
    "model": {"name_or_path": "m"},
    "data": {"train": "r"},
    "output": {"dir": "o"},
}


def sections(kind: type[RunRecipe]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in kind.model_fields.items():
        members = [get_args(tagged)[0] for tagged in get_args(field.annotation)]
        for section in members or [field.annotation]:
            yield name, section


def parts(annotation: Any, metadata: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the plain types in an annotation, each with what constrains it."""
    if hasattr(annotation, "__metadata__"):
        yield from parts(annotation.__origin__, [*metadata, *annotation.__metadata__])
    elif get_args(annotation):
        for part in get_args(annotation):
            yield from parts(part, metadata)
    else:
        yield annotation, metadata


NUMBERS = [
    pytest.param(field, id=f"{name}.{key} of {section.__name__}")
    for kind in (Recipe, PretrainRecipe)
    for name, section in sections(kind)
    for key, field in section.model_fields.items()
    if key != "config"
    and any(plain in (int, float) for plain, _ in parts(field.annotation, field.metadata))
]


def limits(metadata: list[Any]) -> Iterator[Any]:
    for each in metadata:
        yield from limits(each.metadata) if isinstance(each, FieldInfo) else (each,)


@pytest.mark.parametrize("field", NUMBERS)
def test_every_number_is_read_by_our_types_and_has_a_largest_value(field: FieldInfo) -> None:
    for plain, metadata in parts(field.annotation, field.metadata):
        if plain in (int, float):
            constraints = list(limits(metadata))
            readers = [each.func for each in constraints if isinstance(each, BeforeValidator)]
            assert numbers.Number.func in readers or numbers.Whole.func in readers
            assert [each for each in constraints if isinstance(each, Le | Lt)]


KEYS = [
    f"{name}.{key}"
    for name, section in sections(Recipe)
    for key, field in section.model_fields.items()
    if field.annotation in (int, float) and name != "adapter"
]
WRONG = [
    *("yes", "true", ".inf", "-.inf", ".nan", "1e300", "1e999", "9" * 30),
    *("-1", "1:30", "010", "x", "[1]"),
]


@pytest.mark.parametrize("value", WRONG)
def test_what_is_no_number_of_a_sane_size_is_refused_for_every_key(value: str) -> None:
    assert len(KEYS) > 30
    for key in KEYS:
        with pytest.raises(RecipeError, match=r"(?s)(is|not)"):
            build_recipe(TREE, [f"{key}={value}"])


@pytest.mark.parametrize(
    "override", ["r=1000000000000", "r=true", "lora_alpha=.inf", "lora_dropout=yes"]
)
def test_what_no_adapter_has_is_refused(override: str) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.\w+ is"):
        build_recipe(TREE, [f"adapter.{override}"])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        *(("max_steps=1e3", 1000), ("max_steps=16.0", 16), ("max_steps='16'", 16)),
        ("max_steps=1_000", 1000),
    ],
)
def test_a_whole_number_may_be_written_in_other_ways(override: str, value: int) -> None:
    steps = build_recipe(TREE, [override]).training.max_steps

    assert (steps, type(steps)) == (value, int)


@pytest.mark.parametrize("text", ["5e-5", "0.00005", "'5e-5'", "5.0E-5", "+5e-5"])
def test_a_learning_rate_may_be_written_as_people_do(text: str) -> None:
    assert math.isclose(
        build_recipe(
            TREE, ["lr_scheduler_type=cosine", f"learning_rate={text}"]
        ).training.learning_rate,
        5e-5,
    )


def test_bounds_are_far_above_what_is_used() -> None:
    overrides = [
        "learning_rate=0.3", "num_train_epochs=10000", "max_steps=100000000", "max_length=1048576",
        "adapter.r=4096", "adapter.lora_alpha=8192", "max_grad_norm=1e6", "seed=4294967295",
        "checks.most_epochs=1e9", "checks.exploding_gradient=1e9", "warmup_steps=100000",
    ]  # fmt: skip

    assert build_recipe(TREE, overrides).adapter.r == 4096


def test_values_of_programs_are_read_as_what_they_stand_for() -> None:
    recipe = build_recipe(
        {
            "model": {"name_or_path": Path("a") / "b"},
            "data": {"train": (Path("rows.json"), "more.json")},
            "training": {
                "learning_rate": np.float32(0.5),
                "seed": np.int64(3),
                "use_cpu": np.bool_(True),
                "max_steps": np.array(7),
            },
            "output": {"dir": Path("o")},
        }
    )

    assert recipe.model.name_or_path == "a/b"
    assert recipe.data.train == ("rows.json", "more.json")
    training = recipe.training
    assert (training.learning_rate, training.seed, training.max_steps) == (0.5, 3, 7)
    assert training.use_cpu is True
    assert type(training.learning_rate) is float
    again = build_recipe({**TREE, "training": training, "model": recipe.model})
    assert again.training == training


class Endless(dict[str, Any]):
    """A mapping that contains itself."""


ENDLESS = Endless()
ENDLESS["training"] = ENDLESS


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({**TREE, "training": {"seed": 10**5_000}}, "training.seed is a number of more than 18"),
        ({1: 2}, r"has the key '1' \(int\), expected text"),
        ({**TREE, "model": {"name_or_path": b"m"}}, "model.name_or_path is of the type bytes"),
        ({**TREE, "model": {"name_or_path": object()}}, "is of the type object"),
        ({**TREE, "model": {"name_or_path": "a\0"}}, r"a character at position 1 .*U\+0000"),
        ({**TREE, "model": {"name_or_path": "\udc80"}}, r"a character at position 0 .*U\+DC80"),
        ({**TREE, "data": {"train": np.arange(3)}}, "data.train is of the type ndarray"),
        (ENDLESS, "holds more than 20,000 values or 50 levels"),
        ([1], r"the recipe is \[1\], expected sections"),
        (None, "the recipe is null, expected sections"),
    ],
)  # fmt: skip
def test_what_no_recipe_holds_is_refused_by_name(tree: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_recipe(tree)


def test_a_configuration_of_a_new_model_has_numbers_where_yaml_reads_text() -> None:
    config = build_recipe(
        TREE, ["model.config={layernorm_epsilon: 1e-5, name: x}"], kind=PretrainRecipe
    )

    assert config.model.config == {"layernorm_epsilon": 1e-5, "name": "x"}
    for value in (".inf", ".nan", "1.0e+300", "[1]", "null"):
        with pytest.raises(RecipeError, match=r"model\.config is"):
            build_recipe(TREE, [f"model.config={{x: {value}}}"], kind=PretrainRecipe)


def test_every_method_is_covered() -> None:
    assert all(keys_of("adapter", method) for method in METHODS)
