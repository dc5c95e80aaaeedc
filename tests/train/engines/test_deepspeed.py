"""DeepSpeed: the same run as one process, and files that contradict the recipe."""

import json
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
from glmtune.train.engines.deepspeed import read_file
from glmtune.train.run import fine_tune

Train = Callable[..., subprocess.CompletedProcess[str]]
Measured = Callable[[Path], list[dict[str, float]]]


@pytest.fixture
def zero(tmp_path: Path) -> Path:
    """The configuration that LLaMA-Factory's users have, but for its stage."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    return tmp_path / "zero.json"


def write_zero(path: Path, stage: int, **more: object) -> str:
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    tree = dict.fromkeys((*auto, "gradient_clipping"), "auto") | {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False, "loss_scale": 0},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": "auto", "overlap_comm": False},
        **more,
    }
    path.write_text(json.dumps(tree), encoding="utf-8")
    return f"training.deepspeed={path}"


@pytest.mark.slow
@pytest.mark.parametrize(("method", "stage"), [("lora", 1), ("lora", 2), ("full", 2)])
def test_deepspeed_learns_what_one_process_learns(
    recipe: Path,
    tmp_path: Path,
    zero: Path,
    method: str,
    stage: int,
    train: Train,
    measured: Measured,
) -> None:
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    tree["adapter"] = {"lora": tree["adapter"], "full": {"method": "full"}}[method]
    tree["training"]["learning_rate"] = {"lora": 5e-3, "full": 1e-4}[method]
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    one = train(
        str(recipe), f"output.dir={tmp_path / 'one'}", "training.gradient_accumulation_steps=8"
    )
    two = train(str(recipe), "--nproc", "2", write_zero(zero, stage))

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
def test_deepspeed_resumes_where_it_stopped(
    recipe: Path, tmp_path: Path, zero: Path, train: Train, measured: Measured
) -> None:
    options = [str(recipe), "--nproc", "2", write_zero(zero, 2)]
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
    assert not list((tmp_path / "two").glob(".*"))  # nothing half written


@pytest.mark.parametrize(
    ("stage", "more", "said"),
    [
        (0, {}, "zero_optimization.stage 0, expected 1 or 2. Without ZeRO leave"),
        (3, {}, "deadlocks where processes score answers of different length. Use "),
        (2, {"gradient_clipping": 0.5}, "sets gradient_clipping, which the recipe sets by "),
        (2, {"bf16": {"enabled": True}}, "sets bf16, which the recipe sets by training.bf16"),
        (1, {"optimizer": {"type": "AdamW"}}, "sets optimizer, which the recipe sets by"),
    ],
)
def test_a_deepspeed_file_that_contradicts_the_recipe_is_refused(
    tmp_path: Path, stage: int, more: dict[str, object], said: str
) -> None:
    write_zero(tmp_path / "zero.json", stage, **more)

    with pytest.raises(RecipeError) as caught:
        read_file(tmp_path / "zero.json")

    assert said in str(caught.value)


def test_what_is_left_of_a_deepspeed_file_goes_to_deepspeed(tmp_path: Path) -> None:
    write_zero(tmp_path / "zero.json", 2, steps_per_print=100)

    assert read_file(tmp_path / "zero.json") == {
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "steps_per_print": 100,
    }


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"zero_optimization": 2}'])
def test_a_deepspeed_file_that_is_none_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "zero.json").write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError, match=r"training\.deepspeed: .*zero\.json"):
        read_file(tmp_path / "zero.json")


def test_deepspeed_is_asked_for_before_anything_is_loaded(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    tree["training"]["deepspeed"] = write_zero(tmp_path / "zero.json", 2).partition("=")[2]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(RecipeError, match=r"not installed. `pip install deepspeed`, or use"):
        fine_tune(build_recipe(tree))
    with pytest.raises(RecipeError, match=r"nor with training\.fp16"):
        build_recipe(tree, ["training.fp16=true"])
