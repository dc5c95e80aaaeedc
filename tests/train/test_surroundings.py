"""What is around a run changes nothing: its place, its clock, its home, a file that changes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tests.train.kills import recipe_for

from glmtune.errors import CheckpointError, OutputError
from glmtune.files import before_writing
from glmtune.recipe.recipe import Recipe
from glmtune.train.run import fine_tune

ROWS = [{"instruction": f"{n} 加一等于几", "output": f"等于 {n + 1}。"} for n in range(8)]
ODD = "a b 'c' \"d\" 中文 $HOME"
NAME = "adapter_model.safetensors"


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / ODD / "rows.json"
    path.parent.mkdir()
    path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


def stopped(recipe: Recipe) -> None:
    """A run that a full disk ends while its second checkpoint is written."""

    def fail(operation: str, path: Path) -> None:
        if path.name == "checkpoint-2":
            raise OSError(28, "No space left on device")

    token = before_writing.set(fail)
    try:
        with pytest.raises(OutputError):
            fine_tune(recipe)
    finally:
        before_writing.reset(token)


@pytest.mark.slow
def test_a_clock_that_jumps_and_an_output_behind_a_link_change_no_byte(
    tiny_model_dir: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine_tune(recipe_for(tiny_model_dir, rows, tmp_path / "plain"))
    disk = tmp_path / "another disk"
    disk.mkdir()
    link = rows.parent / "out"
    link.symlink_to(disk)
    linked = recipe_for(tiny_model_dir, rows, link)
    now = time.time()
    jumps = iter(range(1_000_000))
    monkeypatch.setattr(time, "time", lambda: now + (-1) ** next(jumps) * 10**8)

    stopped(linked)
    os.utime(rows, (now + 10**8, now + 10**8))  # touched, not changed
    assert fine_tune(linked, resume=True).is_finished

    assert link.is_symlink()
    assert (disk / NAME).read_bytes() == (tmp_path / "plain" / NAME).read_bytes()
    assert sorted(os.listdir(disk)) == sorted(os.listdir(tmp_path / "plain"))


def test_rows_that_change_between_a_run_and_its_resumption_are_refused(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(tiny_model_dir, rows, tmp_path / "out")
    stopped(recipe)
    rows.write_text(rows.read_text(encoding="utf-8").replace("等于 3", "等于 4"), encoding="utf-8")
    held = sorted(os.listdir(tmp_path / "out"))

    with pytest.raises(CheckpointError, match=r"rows") as caught:
        fine_tune(recipe, resume=True)

    assert str(tmp_path / "out") in str(caught.value)
    assert sorted(os.listdir(tmp_path / "out")) == held


@pytest.mark.slow
def test_the_command_needs_no_home_and_any_name_will_do(
    tiny_model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(tiny_model_dir, rows, rows.parent / "out")
    path = rows.parent / "my recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    home = {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none/.cache"}
    command = [sys.executable, "-m", "glmtune", "train", str(path), "training.max_steps=1"]

    done = subprocess.run(
        command, env=os.environ | home, cwd=rows.parent, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert (rows.parent / "out" / NAME).is_file()
    shown = done.stdout.rpartition("Talk to it:  ")[2].strip()
    split = subprocess.run(
        ["sh", "-c", f'set -- {shown}; for each; do echo "$each"; done'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert split[-1] == str(rows.parent / "out")  # a shell reads back what is printed
