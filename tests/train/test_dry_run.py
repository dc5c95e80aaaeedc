"""The largest packs run before the first step, and change nothing of the run."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import glmtune.train.run
from glmtune.errors import TrainingError
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.run import fine_tune

LONG = 7  # the row that is longer than the others


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    for name, rows, long in (("rows", 8, LONG), ("held_out", 4, 2)):
        written = [
            {"instruction": f"说 {row}", "output": "好。" * (20 if row == long else 1 + row % 3)}
            for row in range(rows)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(written), encoding="utf-8")
    tree = {
        "model": {"name_or_path": str(tiny_model_dir)},
        "data": {
            "train": str(tmp_path / "rows.json"),
            "eval": str(tmp_path / "held_out.json"),
            "max_length": 64,
        },
        "adapter": {"r": 2, "lora_dropout": 0.2},  # so that randomness counts
        "training": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 1,
            "use_cpu": True,
        },
        "lint": {"before_training": False},
        "checks": {"stock_reader": False, "stop_prompts": 0, "max_new_tokens": 2},
        "output": {"dir": str(tmp_path / "out"), "report_to": "none", "overwrite": True},
    }
    return build_recipe(tree)


def weights(recipe: Recipe) -> bytes:
    return (Path(recipe.output.dir) / "adapter_model.safetensors").read_bytes()


def test_the_heaviest_packs_go_through_the_model_first(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[tuple[bool, int]] = []  # with a gradient or without, and the tokens learned

    def record(logits: Tensor, targets: Tensor) -> Tensor:
        calls.append((torch.is_grad_enabled(), len(targets)))
        return cross_entropy_sum(logits, targets)

    with caplog.at_level("INFO"):
        fine_tune(recipe, loss=record)

    (first, *held_out), (second, *learned) = (
        [n for with_gradient, n in calls if with_gradient is kind] for kind in (False, True)
    )
    assert [kind for kind, _ in calls[:3]] == [False, True, True]
    assert (first, second) == (max(held_out), max(learned))
    assert learned.index(second) > 1, "the long row is in the first step, so nothing is shown"
    [line] = [line for line in caplog.messages if line.startswith("the heaviest pack")]
    assert "; at this rate the 4 steps take " in line


def test_a_dry_run_changes_no_byte_of_the_run(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine_tune(recipe)
    with_dry_run = weights(recipe)

    monkeypatch.setattr(glmtune.train.run, "dry_run", lambda *_: None)
    fine_tune(recipe)

    assert weights(recipe) == with_dry_run


def test_a_pack_that_does_not_fit_ends_the_run_before_the_first_step(recipe: Recipe) -> None:
    def greedy(logits: Tensor, targets: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(targets) > 40:
            torch.empty(2**60)  # as little as there is of it anywhere
        return cross_entropy_sum(logits, targets)

    with pytest.raises(TrainingError, match=r"heaviest training pack, 1 rows of together \d+ tok"):
        fine_tune(recipe, loss=greedy)

    assert not (Path(recipe.output.dir) / "metrics.jsonl").read_text()
