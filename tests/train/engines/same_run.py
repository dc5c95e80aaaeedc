"""A run in two processes is the run of one process, and resumes to the same bytes."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

Train = Callable[..., subprocess.CompletedProcess[str]]
Measured = Callable[[Path], list[dict[str, float]]]
Completed = subprocess.CompletedProcess[str]


def set_method(recipe: Path, method: str) -> None:
    """Let the recipe tune by LoRA, as it does, or all weights."""
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    tree["adapter"] = {"lora": tree["adapter"], "full": {"method": "full"}}[method]
    tree["training"]["learning_rate"] = {"lora": 5e-3, "full": 1e-4}[method]
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")


def check_learns_the_same(
    recipe: Path, train: Train, measured: Measured, *options: str
) -> tuple[Completed, Completed]:
    """Train in one process and in two with these options; metrics and weights must agree."""
    folder = recipe.parent
    one = train(
        str(recipe), f"output.dir={folder / 'one'}", "training.gradient_accumulation_steps=8"
    )
    two = train(str(recipe), "--nproc", "2", *options)

    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    for mine, theirs in zip(measured(folder / "one"), measured(folder / "two"), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    [name] = {file.name for file in (folder / "one").glob("*model.safetensors")}
    weights, others = load_file(folder / "one" / name), load_file(folder / "two" / name)
    assert others.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(others[key], weight, rtol=0, atol=2e-4)
    assert "proof: all that is trained has learned: passed" in two.stderr
    assert "proof: reloaded from disk it is the same: passed" in two.stderr
    return one, two


def check_resumes_to_the_same_bytes(
    recipe: Path, train: Train, measured: Measured, *options: str
) -> None:
    """Stop a run of two processes after step 2, resume it, and compare with an unstopped one."""
    folder = recipe.parent
    command = [str(recipe), "--nproc", "2", "adapter.lora_dropout=0.3", *options]
    uninterrupted = train(*command, f"output.dir={folder / 'whole'}")
    stopped = train(*command)
    assert uninterrupted.returncode == stopped.returncode == 0, (
        uninterrupted.stderr + stopped.stderr
    )
    for name in ("checkpoint-4", "checkpoint-3"):
        shutil.rmtree(folder / "two" / name)

    resumed = train(*command, "--resume")

    assert resumed.returncode == 0, resumed.stderr
    assert "at step 2 of 4" in resumed.stderr
    assert measured(folder / "two") == measured(folder / "whole")
    name = "adapter_model.safetensors"
    assert (folder / "two" / name).read_bytes() == (folder / "whole" / name).read_bytes()
