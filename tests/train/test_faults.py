"""Every write of a run fails once: what was whole stays whole, and --resume ends in the same bytes.

`glmtune.files` tells before each operation that changes the disk; here the n-th fails, for all n.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from glmtune.errors import OutputError
from glmtune.files import before_writing
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.checkpoint import damage
from glmtune.train.run import fine_tune
from glmtune.train.run_folder import checkpoints

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
ROWS = [{"instruction": f"{n} 加一等于几", "output": f"等于 {n + 1}。"} for n in range(6)]
NAME = "adapter_model.safetensors"


@contextmanager
def failing(number: int | None) -> Iterator[list[str]]:
    """Let the `number`-th operation on the disk fail; yields what was done."""
    done: list[str] = []

    def fail(operation: str, path: Path) -> None:
        done.append(f"{operation} {path.name}")
        if len(done) - 1 == number:
            code = ERRORS[number % len(ERRORS)]
            raise OSError(code, os.strerror(code))

    token = before_writing.set(fail)
    try:
        yield done
    finally:
        before_writing.reset(token)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


def recipe_for(model: Path, rows: Path, output: Path) -> Recipe:
    return build_recipe(
        {
            "model": {"name_or_path": str(model), "dtype": "float32"},
            "data": {"train": str(rows)},
            "adapter": {"r": 2},
            "training": {
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 2,
                "logging_steps": 1,
                "save_strategy": "steps",
                "save_steps": 1,
                "use_cpu": True,
            },
            "lint": {"before_training": False},
            "checks": {
                "stock_reader": False,
                "stop_prompts": 0,
                "max_new_tokens": 1,
                "forgetting": None,
            },
            "output": {"dir": str(output), "report_to": "none"},
        }
    )


def lines(output: Path) -> list[dict[str, float]]:
    kept = ("step", "loss", "grad_norm")
    text = (output / "metrics.jsonl").read_text(encoding="utf-8")
    return [{key: json.loads(line)[key] for key in kept} for line in text.splitlines()]


def survive(model: Path, rows: Path, whole: Path, output: Path, number: int) -> None:
    """Let one operation of a run fail, and resume the run."""
    recipe = recipe_for(model, rows, output)
    with failing(number) as done, pytest.raises(OutputError) as caught:
        fine_tune(recipe)
    place = f"{done[-1]}, of {number}: {caught.value}"
    assert "could not be written" in str(caught.value), place
    assert "\n" not in str(caught.value), place
    assert not [damage(each) for each in checkpoints(output) if damage(each)], place

    assert fine_tune(recipe, resume=True).is_finished, place

    assert (output / NAME).read_bytes() == (whole / NAME).read_bytes(), place
    assert lines(output) == lines(whole), place
    assert not [name for name in os.listdir(output) if name.startswith(".")], place


def test_a_failed_write_costs_nothing_but_time(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    with failing(None) as done:
        fine_tune(recipe_for(tiny_model_dir, rows, whole))
    assert len(done) > 60, done
    first_of_each = {
        each.partition(" ")[0]: number for number, each in reversed([*enumerate(done)])
    }

    for number in (*first_of_each.values(), len(done) // 2, len(done) - 1):
        survive(tiny_model_dir, rows, whole, tmp_path / f"out-{number}", number)


@pytest.mark.slow
def test_every_write_may_fail(tiny_model_dir: Path, rows: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with failing(None) as done:
        fine_tune(recipe_for(tiny_model_dir, rows, whole))

    for number in range(len(done)):
        survive(tiny_model_dir, rows, whole, tmp_path / f"out-{number}", number)
