"""DeepSpeed: the same run as one process, and files that contradict the recipe."""

import json
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
from glmtune.train.engines.deepspeed import read_file
from glmtune.train.run import fine_tune


@pytest.fixture
def zero(tmp_path: Path) -> Path:
    """The configuration that LLaMA-Factory's users have, but for its stage."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    return tmp_path / "zero.json"


def write_zero(path: Path, stage: int, **more: object) -> str:
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    tree = dict.fromkeys((*auto, "gradient_clipping"), "auto") | {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False, "loss_scale": 0},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": "auto", "overlap_comm": False},
        **more,
    }
    path.write_text(json.dumps(tree), encoding="utf-8")
    return f"training.deepspeed={path}"


@pytest.mark.slow
@pytest.mark.parametrize(("method", "stage"), [("lora", 1), ("lora", 2), ("full", 2)])
def test_deepspeed_learns_what_one_process_learns(
    recipe: Path, zero: Path, method: str, stage: int, train: Train, measured: Measured
) -> None:
    set_method(recipe, method)

    check_learns_the_same(recipe, train, measured, write_zero(zero, stage))


@pytest.mark.slow
def test_deepspeed_resumes_where_it_stopped(
    recipe: Path, tmp_path: Path, zero: Path, train: Train, measured: Measured
) -> None:
    options = (write_zero(zero, 2), "model.dtype=bfloat16")

    check_resumes_to_the_same_bytes(recipe, train, measured, *options)

    assert not list((tmp_path / "two").glob(".*"))  # nothing half written


@pytest.mark.parametrize(
    ("stage", "more", "expected_message"),
    [
        (0, {}, "zero_optimization.stage 0, expected 1 or 2. Without ZeRO leave"),
        (3, {}, "deadlocks where processes score answers of different length. Use "),
        (2, {"gradient_clipping": 0.5}, "sets gradient_clipping, which the recipe sets by "),
        (2, {"bf16": {"enabled": True}}, "sets bf16, which the recipe sets by training.bf16"),
        (1, {"optimizer": {"type": "AdamW"}}, "sets optimizer, which the recipe sets by"),
    ],
)
def test_a_deepspeed_file_that_contradicts_the_recipe_is_refused(
    tmp_path: Path, stage: int, more: dict[str, object], expected_message: str
) -> None:
    write_zero(tmp_path / "zero.json", stage, **more)

    with pytest.raises(RecipeError) as caught:
        read_file(tmp_path / "zero.json")

    assert expected_message in str(caught.value)


def test_what_is_left_of_a_deepspeed_file_goes_to_deepspeed(tmp_path: Path) -> None:
    write_zero(tmp_path / "zero.json", 2, steps_per_print=100)

    assert read_file(tmp_path / "zero.json") == {
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "steps_per_print": 100,
    }


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"zero_optimization": 2}'])
def test_a_file_that_is_no_deepspeed_configuration_is_refused(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "zero.json").write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError, match=r"training\.deepspeed: .*zero\.json"):
        read_file(tmp_path / "zero.json")


def test_a_missing_deepspeed_is_reported_before_anything_is_loaded(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    tree["training"]["deepspeed"] = write_zero(tmp_path / "zero.json", 2).partition("=")[2]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(
        RecipeError, match=r"not installed. `pip install 'glmtune\[deepspeed\]'`, or use"
    ):
        fine_tune(build_recipe(tree))
    with pytest.raises(RecipeError, match=r"nor with training\.fp16"):
        build_recipe(tree, ["training.fp16=true"])
