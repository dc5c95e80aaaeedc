"""A checkpoint belongs to a run: by what decides the weights, item by item."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glmtune.errors import CheckpointError
from glmtune.model.fingerprint import fingerprint_of
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import PretrainRecipe, Recipe
from glmtune.train.checkpoint import TrainerState
from glmtune.train.identity import (
    NOT_RECORDED,
    check_identity,
    deciding_values,
    identify,
    recorded,
    rounded_shares,
)

IDENTITY = {"recipe": ("a",), "training data": ("now", "as an earlier release hashed it")}
FOLDER = Path("checkpoint-4")


@pytest.mark.parametrize("value", IDENTITY["training data"])
def test_a_checkpoint_resumes_with_a_value_that_an_earlier_release_recorded(value: str) -> None:
    check_identity(TrainerState(identity={"recipe": "a", "training data": value}), IDENTITY, FOLDER)


def test_a_new_checkpoint_records_the_first_value() -> None:
    assert recorded(IDENTITY) == {"recipe": "a", "training data": "now"}


def test_everything_that_changed_is_named_with_both_values() -> None:
    state = TrainerState(identity={"training data": "other rows"})

    with pytest.raises(CheckpointError) as caught:
        check_identity(state, IDENTITY, FOLDER)

    assert "recipe (was nothing, now a); training data (was other rows, now now)" in str(
        caught.value
    )


def test_a_checkpoint_without_its_base_resumes_and_one_of_another_base_does_not() -> None:
    identity = {**IDENTITY, "base": ("one", NOT_RECORDED)}
    earlier = {"recipe": "a", "training data": "now"}

    check_identity(TrainerState(identity=earlier), identity, FOLDER)
    check_identity(TrainerState(identity={**earlier, "base": "one"}), identity, FOLDER)
    with pytest.raises(CheckpointError, match=r"base \(was other, now one\)"):
        check_identity(TrainerState(identity={**earlier, "base": "other"}), identity, FOLDER)
    assert recorded(identity)["base"] == "one"


def test_the_base_is_identified_by_its_weights_and_not_for_a_new_model(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "copy")
    rows: Any = SimpleNamespace(
        content_fingerprint="c" * 64, fingerprint="f" * 64, earlier_key="e" * 64
    )
    template: Any = SimpleNamespace(fingerprint="t" * 64)

    def base_of(model: dict[str, Any], kind: type[Any] = Recipe) -> tuple[str, ...] | None:
        tree = {"model": model, "data": {"train": "rows.json"}, "output": {"dir": "out"}}
        return identify(build_recipe(tree, kind=kind), template, rows, rows, 1).get("base")

    same = (fingerprint_of(tiny_model_dir), NOT_RECORDED)
    assert base_of({"name_or_path": str(tmp_path / "copy")}) == same
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_ratio": 8}))
    assert base_of({"name_or_path": str(tmp_path / "copy")}) not in (same, None)
    new = {"name_or_path": str(tmp_path / "copy"), "config": {"num_layers": 2}}
    assert base_of(new, PretrainRecipe) is None


def recipe_with(*overrides: str) -> Recipe:
    tree = {"model": {"name_or_path": "m"}, "data": {"train": "a"}, "output": {"dir": "o"}}
    return build_recipe(tree, overrides)


def test_a_key_that_is_newer_than_a_checkpoint_counts_only_where_it_is_used() -> None:
    newer = {"training.warmup_steps", "adapter.rank_pattern", "adapter.not_of_this_method"}
    before = deciding_values(recipe_with(), newer_keys=())
    del before["training"]["warmup_steps"]
    del before["adapter"]["rank_pattern"]  # as a release without these keys would have it

    assert deciding_values(recipe_with(), newer) == before
    used = deciding_values(recipe_with("training.warmup_steps=10"), newer)
    assert used["training"].pop("warmup_steps") == 10
    assert used == before


def test_a_recipe_without_labels_has_the_identity_that_it_had_before_there_were_any() -> None:
    keys = {"desirable_weight", "undesirable_weight"}
    assert keys.isdisjoint(deciding_values(recipe_with("stage=dpo"))["preference"])
    weighed = recipe_with("stage=kto", "preference.undesirable_weight=2")
    assert deciding_values(weighed)["preference"]["undesirable_weight"] == 2.0


def test_tokens_are_part_of_the_identity_only_where_a_recipe_adds_some() -> None:
    assert "add_tokens" not in deciding_values(recipe_with())["model"]
    assert deciding_values(recipe_with("model.add_tokens=[<x>]"))["model"]["add_tokens"] == ["<x>"]


def test_the_arithmetic_is_part_of_the_identity_as_it_was_before_there_was_fp8() -> None:
    recorded = [deciding_values(recipe_with(*each))["model"]["compute"] for each in (
        (), ("model.compute=int8",), ("model.compute=fp8",)
    )]  # fmt: skip

    assert recorded == [None, "int8", "fp8"]


def test_a_share_that_was_rounded_otherwise_before_is_named_and_any_other_is_not() -> None:
    recipe = recipe_with("training.warmup_steps=0.1", "data.eval_fraction=0.1")

    assert rounded_shares(recipe, num_rows=30, num_steps=20) == {}
    assert rounded_shares(recipe, num_rows=27, num_steps=16) == {}  # 2.7 and 1.6
    assert rounded_shares(recipe, num_rows=3, num_steps=3) == {"warm-up steps": ("1",)}
    assert rounded_shares(recipe, num_rows=32, num_steps=11) == {
        "warm-up steps": ("2",),
        "held-out rows": ("4",),
    }
    assert rounded_shares(recipe_with("training.warmup_steps=10"), 32, 11) == {}
