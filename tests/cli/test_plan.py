"""`glmtune plan` on the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.errors import CheckpointError


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty short rows for the tiny model."""
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    rows = [{"instruction": f"说 {n}", "output": "好。" * (1 + n % 7)} for n in range(30)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    tree: dict[str, Any] = {
        "model": {"name_or_path": str(tiny_model_dir)},
        "data": {"train": str(tmp_path / "rows.json"), "max_length": 64},
        "training": {"use_cpu": True},
        "output": {"dir": str(tmp_path / "out"), "report_to": []},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


def plan(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_plan_names_memory_data_and_time_and_writes_nothing(recipe: Path) -> None:
    devices = ["--device", "24GB", "--device", "0.4GB"]
    shown = plan(str(recipe), *devices, "--num_train_epochs", "2")

    assert "30 rows, 2 steps" in shown
    assert "fits           this machine: " in shown
    assert "fits           a GPU of 24GB: " in shown
    assert "does not fit   a GPU of 0.4GB: " in shown
    assert "and that is not enough" in shown
    assert " s for the heaviest pack" in shown
    assert not (recipe.parent / "out").exists()


def test_without_data_a_plan_is_an_upper_bound_with_the_reason(recipe: Path) -> None:
    shown = plan(str(recipe), "data.train=gone.json")

    assert "not known; all packs are assumed to be full. gone.json: " in shown
    assert "2 rows with 128 tokens in total, 126 of them learned" in shown


def test_without_a_model_there_is_no_plan(recipe: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        plan(str(recipe), "model.name_or_path=./gone")


@pytest.mark.slow
def test_a_probe_takes_real_steps_and_agrees(recipe: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "glmtune", "plan", str(recipe), "--probe", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "kernel" not in ran.stderr  # a notice of bitsandbytes, which is not used here
    plan = json.loads(ran.stdout)
    predicted, measured = plan["targets"][0]["memory"]["peak"], plan["probe"]["peak_bytes"]
    assert predicted == pytest.approx(measured, rel=0.1)
    assert plan["probe"]["tokens_per_second"] > 0
    assert not (recipe.parent / "out").exists()
