"""A run by the command line, in one process or several, and what it measured."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

PLACES = [("广州", "广东"), ("杭州", "浙江"), ("成都", "四川"), ("西安", "陕西"), ("昆明", "云南")]
ROWS = [
    {"instruction": f"{city}在哪里", "input": "", "output": f"{city}在{region}。" * (1 + index % 3)}
    for index, (city, region) in enumerate(PLACES + PLACES[:4])
]  # 9 rows: the second step of 8 has one, so that of two processes one has none


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    tree = {
        "model": {"name_or_path": str(tiny_model_dir), "dtype": "float32"},
        "data": {"train": str(rows), "eval": f"{rows}#3", "max_length": 90},
        "lint": {"errors": "report"},  # the held-out rows are learned too
        "adapter": {"r": 4},
        "training": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
            "num_train_epochs": 2,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": None,
            "load_best_model_at_end": False,
            "use_cpu": True,
        },
        "checks": {"stock_reader": False, "stop_prompts": 0, "max_new_tokens": 2},
        "output": {"dir": str(tmp_path / "two"), "report_to": "none"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture
def train() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`glmtune train` with these arguments, in a process of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "glmtune", "train", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    return run


@pytest.fixture
def measured() -> Callable[[Path], list[dict[str, float]]]:
    """The metrics of a run that do not depend on the clock."""

    def read(output: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        kept = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")
        return [{key: line[key] for key in kept if key in line} for line in lines]

    return read
