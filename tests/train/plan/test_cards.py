"""GPUs by name, with their memory and speed."""

from pathlib import Path

import pytest

from glmtune.errors import RecipeError
from glmtune.recipe.reading import build_recipe
from glmtune.train.plan.cards import CARDS, LAUNCH_SECONDS, find_card, parse_size, table
from glmtune.train.plan.timing import Work, seconds_on

SCALING = Path(__file__).parents[3] / "docs" / "scaling.md"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("4090", "4090"),
        ("RTX 4090", "4090"),
        ("NVIDIA GeForce RTX 3090", "3090"),
        ("2080ti", "2080Ti"),
        ("3060-12", "3060-12"),
        ("3060-12GB", "3060-12"),
        ("Tesla T4", "T4"),
        ("a100", "A100"),
        ("A100-40GB", "A100"),
        ("A100-SXM4-80GB", "A100-80"),
        ("H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("V100-32", "V100-32"),
        ("L40S", "L40S"),
    ],
)
def test_a_card_is_found_as_people_and_drivers_spell_it(text: str, name: str) -> None:
    card = find_card(text)

    assert card is not None
    assert card.name == name


def test_a_device_may_be_a_size() -> None:
    assert find_card("24GB") is None
    assert find_card("24") is None
    assert parse_size("24GB") == parse_size("24") == 24 * 10**9
    assert parse_size("1.5 GiB") == 3 * 2**29


@pytest.mark.parametrize("text", ["9999", "A200", "-1GB", "", "4090-48", "9" * 400 + "GB"])
def test_an_unknown_card_is_refused_with_those_that_are_known(text: str) -> None:
    with pytest.raises(RecipeError, match=r"such as 24GB, or one of 2080Ti, .* 4090, .* H200"):
        find_card(text)


def test_every_speed_says_where_it_comes_from_and_the_docs_have_the_same_table() -> None:
    assert table() in SCALING.read_text(encoding="utf-8")
    for card in CARDS:
        assert (card.basis == "expected") is (card.trained_tflops is None) is (not card.source)
        assert card.rate < 1e12 * card.peak_tflops


def test_the_time_is_that_of_the_products_or_of_launching_them() -> None:
    card, work = find_card("H200"), Work(operations=24.9e9, num_layers=28)
    assert card is not None
    recipe = build_recipe(
        {"model": {"name_or_path": "x"}, "data": {"train": "y"}, "output": {"dir": "o"}}
    )

    assert seconds_on(card, recipe, work, 23_200, 2) == pytest.approx(1, rel=0.01)
    assert seconds_on(card, recipe, work, 23_200, 100) == 100 * 28 * LAUNCH_SECONDS
    packed = recipe.model_copy(
        update={
            "adapter": build_recipe(
                recipe.model_dump(mode="json"), ["adapter.method=qlora"]
            ).adapter
        }
    )
    assert seconds_on(card, packed, work, 23_200, 2) == pytest.approx(1 / 0.95, rel=0.01)
