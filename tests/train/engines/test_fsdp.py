"""Sharded weights: the same run as in one process."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from glmtune.errors import RecipeError
from glmtune.recipe.reading import build_recipe
from glmtune.train.run import fine_tune

Train = Callable[..., subprocess.CompletedProcess[str]]
Measured = Callable[[Path], list[dict[str, float]]]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_sharded_weights_learn_what_one_process_learns(
    recipe: Path, tmp_path: Path, method: str, train: Train, measured: Measured
) -> None:
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    tree["adapter"] = {"lora": tree["adapter"], "full": {"method": "full"}}[method]
    tree["training"]["learning_rate"] = {"lora": 5e-3, "full": 1e-4}[method]
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    one = train(
        str(recipe), f"output.dir={tmp_path / 'one'}", "training.gradient_accumulation_steps=8"
    )
    two = train(str(recipe), "--nproc", "2", "training.sharding=fsdp2")

    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    for mine, theirs in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    weights, others = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    assert others.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(others[key], weight, rtol=0, atol=2e-4)
    assert "proof: all that is trained has learned: passed" in two.stderr
    assert "proof: reloaded from disk it is the same: passed" in two.stderr


@pytest.mark.slow
def test_sharded_weights_resume_where_they_stopped(
    recipe: Path, tmp_path: Path, train: Train, measured: Measured
) -> None:
    options = [str(recipe), "--nproc", "2", "training.sharding=fsdp2"]
    options += ["adapter.lora_dropout=0.3", "model.dtype=bfloat16"]
    whole = train(*options, f"output.dir={tmp_path / 'whole'}")
    begun = train(*options)
    assert whole.returncode == begun.returncode == 0, whole.stderr + begun.stderr
    for name in ("checkpoint-4", "checkpoint-3"):
        shutil.rmtree(tmp_path / "two" / name)

    resumed = train(*options, "--resume")

    assert resumed.returncode == 0, resumed.stderr
    assert "at step 2 of 4" in resumed.stderr
    assert measured(tmp_path / "two") == measured(tmp_path / "whole")
    name = "adapter_model.safetensors"
    assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_sharding_is_refused_where_it_cannot_work(recipe: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    tree["training"]["sharding"] = "fsdp2"
    with pytest.raises(RecipeError, match=r"and there is only one\. Start more with"):
        fine_tune(build_recipe(tree))
    for change, message in (
        (
            "adapter.method=qlora",
            "works with adapter.method=lora, full, freeze, and not with qlora",
        ),
        ("model.compute=int8", "model.compute=int8 packs them"),
        ("checks.sample_steps=5", "no process has the complete model"),
        ("training.optim=adamw_bnb_8bit", "cannot be combined"),
    ):
        with pytest.raises(RecipeError, match=message):
            build_recipe(tree, [change])
