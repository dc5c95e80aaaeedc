"""A run that is killed, again and again, ends as if nothing had happened.

Two kills of the real command, and twenty of forks that need not import PyTorch (`kills.py`).
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROWS = [
    {"instruction": f"{number} 加一等于几", "input": "", "output": f"等于 {number + 1}。"}
    for number in range(60)
]
KILLS = 2


def recipe(model: Path, rows: Path, output: Path) -> Path:
    tree = {
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "data": {"train": str(rows), "max_length": 60, "eval_fraction": 0.1},
        "adapter": {"r": 4, "lora_dropout": 0.1},
        "training": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
            "num_train_epochs": 2,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,  # so that many a kill meets a checkpoint half written
            "eval_strategy": "steps",
            "eval_steps": 5,
            "use_cpu": True,
        },
        "checks": {"stock_reader": False},
        "output": {"dir": str(output), "report_to": "none"},
    }
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def start(recipe: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "glmtune", "train", str(recipe), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def lines(output: Path) -> list[dict[str, float]]:
    """The metrics that do not depend on the clock or on the process."""
    kept = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
    text = (output / "metrics.jsonl").read_text(encoding="utf-8")
    return [
        {key: value for key, value in json.loads(line).items() if key in kept}
        for line in text.splitlines()
    ]


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_points_ends_in_the_same_bytes(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    process = start(recipe(tiny_model_dir, rows, whole))
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    duration = time.monotonic() - began
    draw = random.Random(0)
    path = recipe(tiny_model_dir, rows, killed)
    met = 0

    for _ in range(KILLS):
        process = start(path, "--resume")
        began = time.monotonic()
        while process.poll() is None and not list(killed.glob("checkpoint-*")):
            time.sleep(0.02)  # most of the time is spent importing; kill where there is work
            if time.monotonic() - began > 10 * duration:
                break
        time.sleep(draw.uniform(0, 0.25 * duration))
        met += process.poll() is None
        process.kill()
        process.communicate()
    process = start(path, "--resume")
    _, errors = process.communicate()

    assert process.returncode == 0, errors.decode()
    assert met, "the run was over before it could be killed"
    adapter = "adapter_model.safetensors"
    assert (killed / adapter).read_bytes() == (whole / adapter).read_bytes()
    assert lines(killed) == lines(whole)
    assert not [name for name in os.listdir(killed) if name.endswith((".partial", ".old"))]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_nothing_half_written() -> None:
    command = [sys.executable, "-m", "tests.train.kills", "20", "--seed", "1"]
    root = Path(__file__).parents[2]

    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.startswith("20 kills")
    assert "while a checkpoint was written" in done.stdout
