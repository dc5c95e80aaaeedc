"""Settings that teach nothing are named before the first step; healthy ones are not."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.planted.corpus import healthy_rows
from tests.planted.runs import HEALTHY_RUNS, REFUSED, ROWS, RUN_FAULTS, STEPS

from glmtune.errors import RecipeError, TrainingError
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.alarms import find_disproportions, find_no_progress
from glmtune.train.run import fine_tune

Recorder = Callable[[str, object], None]


def recipe_for(model: str, rows: str, output: str, *overrides: str) -> Recipe:
    tree: dict[str, Any] = {
        "model": {"name_or_path": model, "dtype": "float32"},
        "data": {"train": rows, "max_length": 200},
        "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        "checks": {"stock_reader": False, "stop_prompts": 0, "forgetting": None},
        "output": {"dir": output, "report_to": "none"},
    }
    return build_recipe(tree, overrides)


def steps_of(recipe: Recipe) -> int:
    training = recipe.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return training.max_steps or max(1, round(ROWS * training.num_train_epochs / rows))


@pytest.mark.parametrize("name", RUN_FAULTS)
def test_settings_that_teach_nothing_are_named_before_the_first_step(
    name: str, record_property: Recorder
) -> None:
    fault = RUN_FAULTS[name]
    recipe = recipe_for("m", "d", "o", *fault.overrides)

    found = find_disproportions(recipe, ROWS, steps_of(recipe))

    said = next((line for line in found if fault.words in line), "")
    assert said, found
    record_property("said", said)


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_can_only_be_mistakes_are_refused(
    name: str, record_property: Recorder
) -> None:
    override, words = REFUSED[name]

    with pytest.raises(RecipeError, match=words) as caught:
        recipe_for("m", "d", "o", override)

    record_property("said", str(caught.value))


@pytest.mark.parametrize("kind", HEALTHY_RUNS)
def test_healthy_settings_raise_no_alarm(kind: str) -> None:
    recipe = recipe_for("m", "d", "o", *HEALTHY_RUNS[kind])

    assert find_disproportions(recipe, ROWS, STEPS) == []


def test_a_loss_that_does_not_fall_is_named_and_one_that_falls_slowly_is_not() -> None:
    noise = [0.02 * ((7 * step) % 5 - 2) for step in range(60)]

    flat = find_no_progress([2.0 + each for each in noise])
    slow = find_no_progress([2.0 - 0.002 * step + each for step, each in enumerate(noise)])

    assert flat.startswith("the loss did not fall: 2.0")
    assert slow == ""
    assert find_no_progress([2.0] * 5) == ""  # too short to tell
    assert find_no_progress([0.01] * 60) == ""  # it is learned already


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(healthy_rows()[:40], ensure_ascii=False), encoding="utf-8")
    return str(path)


SHORT = ("max_steps=12", "logging_steps=1", "save_strategy=no", "checks.sample_steps=0")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, fault in RUN_FAULTS.items() if fault.ending])
def test_a_run_in_which_nothing_was_learned_ends_in_an_error(
    tiny_model_dir: Path, rows: str, tmp_path: Path, name: str, record_property: Recorder
) -> None:
    fault = RUN_FAULTS[name]
    recipe = recipe_for(str(tiny_model_dir), rows, str(tmp_path / "out"), *SHORT, *fault.overrides)

    with pytest.raises(TrainingError, match=fault.ending) as caught:
        fine_tune(recipe)

    record_property("said", str(caught.value))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["the defaults", "dora", "ia3", "p-tuning v2", "full"])
def test_a_healthy_run_passes_without_a_warning(
    tiny_model_dir: Path,
    rows: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    recipe = recipe_for(
        str(tiny_model_dir), rows, str(tmp_path / "out"), *SHORT, *HEALTHY_RUNS[kind]
    )

    with caplog.at_level(logging.INFO, logger="glmtune"):
        result = fine_tune(recipe)

    assert [proof for proof in result.proofs if proof.verdict == "failed"] == []
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [line for line in warnings if "each of 40 rows is learned" not in line] == []
