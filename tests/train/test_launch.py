"""Several processes have one log, one folder and one error."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Train = Callable[..., subprocess.CompletedProcess[str]]
Measured = Callable[[Path], list[dict[str, float]]]


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_of_all_processes(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "glmtune", "train", str(recipe), "--nproc", "2"]
    process = subprocess.Popen(
        [*command, "training.num_train_epochs=500", "training.save_strategy=no"],
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "two" / "metrics.jsonl"
    for _ in range(2400):
        if process.poll() is not None or (metrics.is_file() and metrics.read_text()):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)

    assert process.returncode == 130, errors
    [folder] = (tmp_path / "two").glob("checkpoint-*")
    states = torch.load(folder / "rng_state.pth", weights_only=True)
    assert len(states) == 2


@pytest.mark.slow
def test_the_error_of_the_process_that_failed_first_is_shown(recipe: Path, train: Train) -> None:
    failed = train(str(recipe), "--nproc", "2", "adapter.target_modules=nothing")

    assert failed.returncode == 1
    assert failed.stderr.count("error: adapter.target_modules names nothing") == 1
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_a_bug_in_one_process_is_shown_with_its_traceback(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Train
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import glmtune.data.packing as packing\n"
        "    def pack(examples): raise ZeroDivisionError('planted')\n"
        "    packing.pack = pack\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(broken), prepend=os.pathsep)

    failed = train(str(recipe), "--nproc", "2")

    assert failed.returncode == 1
    assert "rank 1 failed first" in failed.stderr
    assert "ZeroDivisionError: planted" in failed.stderr
