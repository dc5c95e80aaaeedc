"""Where memory runs out in a step, it is taken once more with smaller packs, or explained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from glmtune.errors import TrainingError
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.out_of_memory import memory_advice
from glmtune.train.run import fine_tune

DRY = 1  # calls of the loss with gradients before the first step


@pytest.fixture
def recipe(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Recipe]:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    rows = [
        {"instruction": f"说 {row}", "output": "好。" * (1 + 2 * (row % 3))} for row in range(12)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    tree = {
        "model": {"name_or_path": str(tiny_model_dir), "dtype": "float32"},
        "data": {"train": str(tmp_path / "rows.json"), "max_length": 64},
        "adapter": {"r": 2},
        "training": {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 3,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
        },
        "lint": {"before_training": False},
        "checks": {
            "stock_reader": False,
            "stop_prompts": 0,
            "max_new_tokens": 1,
            "forgetting": None,
        },
        "output": {"dir": str(tmp_path / "out"), "report_to": "none", "overwrite": True},
    }
    return lambda *overrides: build_recipe(tree, overrides)


def failing(*calls: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss for which memory runs out at these calls with gradients, counted from 0."""
    count = -1

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal count
        if torch.is_grad_enabled():
            count += 1
            if count in calls:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return cross_entropy_sum(logits, targets)

    return loss


def result_of(recipe: Recipe) -> tuple[dict[str, Tensor], list[float]]:
    folder = Path(recipe.output.dir)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return load_file(folder / "adapter_model.safetensors"), losses


def test_a_step_without_enough_memory_is_taken_again_with_smaller_packs(
    recipe: Callable[..., Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[int] = []

    def counting(logits: Tensor, targets: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            counted.append(len(targets))
        return cross_entropy_sum(logits, targets)

    fine_tune(recipe(), loss=counting)
    expected, expected_losses = result_of(recipe())
    with caplog.at_level("WARNING"):
        fine_tune(recipe(), loss=failing(DRY))
    found, losses = result_of(recipe())

    assert len(counted) > DRY + 2  # or packs would be rows
    [line] = [line for line in caplog.messages if "taken again" in line]
    assert line.startswith(
        "step 1: there is not enough memory (CUDA out of memory. Tried to allocate 2 GiB)"
    )
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "calls", "message"),
    [
        ([], (DRY, DRY + 1), r"step 1: .*per_device_train_batch_size=1 and .*steps=6"),
        (["training.average=micro_batches"], (DRY,), r"A pack of 2 rows"),
        (
            ["per_device_train_batch_size=1", "data.max_length=22"],
            (DRY,),
            r"gradient_checkpointing=true, or lower data\.max_length \(22\)\.",
        ),
    ],
)
def test_where_smaller_packs_do_not_help_a_run_ends_with_what_does(
    recipe: Callable[..., Recipe], overrides: list[str], calls: tuple[int, ...], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        fine_tune(recipe(*overrides), loss=failing(*calls))


def test_another_fault_of_the_loss_is_not_taken_for_one_of_memory(
    recipe: Callable[..., Recipe],
) -> None:
    def broken(logits: Tensor, targets: Tensor) -> Any:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fine_tune(recipe(), loss=broken)


def test_the_advice_names_only_what_can_still_be_changed(recipe: Callable[..., Recipe]) -> None:
    saved = recipe("training.gradient_checkpointing=true")
    assert memory_advice(saved, num_rows=1) == "Lower data.max_length (64)."
    assert memory_advice(saved, num_rows=4).startswith(
        "Set training.per_device_train_batch_size=1 and gradient_accumulation_steps=6, or lower"
    )
