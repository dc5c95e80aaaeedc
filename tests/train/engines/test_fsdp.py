"""Sharded weights: the same run as in one process."""

from pathlib import Path

import pytest
import yaml
from tests.train.engines.same_run import (
    Measured,
    Train,
    check_learns_the_same,
    check_resumes_to_the_same_bytes,
    set_method,
)

from glmtune.errors import RecipeError
from glmtune.recipe.reading import build_recipe
from glmtune.train.run import fine_tune


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_sharded_weights_learn_what_one_process_learns(
    recipe: Path, method: str, train: Train, measured: Measured
) -> None:
    set_method(recipe, method)

    check_learns_the_same(recipe, train, measured, "training.sharding=fsdp2")


@pytest.mark.slow
def test_sharded_weights_resume_where_they_stopped(
    recipe: Path, train: Train, measured: Measured
) -> None:
    options = ("training.sharding=fsdp2", "model.dtype=bfloat16")

    check_resumes_to_the_same_bytes(recipe, train, measured, *options)


def test_sharding_is_refused_where_it_cannot_work(recipe: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    tree["training"]["sharding"] = "fsdp2"
    with pytest.raises(RecipeError, match=r"and there is only one\. Start more with"):
        fine_tune(build_recipe(tree))
    for change, message in (
        (
            "adapter.method=qlora",
            "works with adapter.method=lora, full, freeze, and not with qlora",
        ),
        ("model.compute=int8", "model.compute=int8 packs them"),
        ("checks.sample_steps=5", "no process has the complete model"),
        ("training.optim=adamw_bnb_8bit", "cannot be combined"),
    ):
        with pytest.raises(RecipeError, match=message):
            build_recipe(tree, [change])
