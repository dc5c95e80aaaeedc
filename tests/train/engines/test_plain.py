"""Several processes with a copy of the model each: the same run as one."""

import json
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


def test_two_processes_learn_what_one_learns(
    recipe: Path, tmp_path: Path, train: Train, measured: Measured
) -> None:
    one = train(
        str(recipe), f"output.dir={tmp_path / 'one'}", "training.gradient_accumulation_steps=8"
    )
    two = train(str(recipe), "--nproc", "2")

    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    alone, together = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    for mine, theirs in zip(alone, together, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    weights = load_file(tmp_path / "one" / "adapter_model.safetensors")
    others = load_file(tmp_path / "two" / "adapter_model.safetensors")
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=2e-4)
    assert two.stdout.count("Adapter after 4 steps") == 1
    assert two.stderr.count("step 4/4") == one.stderr.count("step 4/4")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["null", "fsdp2"])
def test_a_process_without_rows_takes_part_in_every_step(
    recipe: Path, tmp_path: Path, sharding: str, train: Train, measured: Measured
) -> None:
    rows = tmp_path / "rows.json"
    first = json.loads(rows.read_text(encoding="utf-8"))[:1]  # held out too
    rows.write_text(json.dumps(first, ensure_ascii=False), encoding="utf-8")

    one = train(str(recipe), f"output.dir={tmp_path / 'one'}")
    two = train(str(recipe), "--nproc", "2", f"training.sharding={sharding}")

    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    for mine, theirs in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)


@pytest.mark.slow
def test_two_processes_resume_where_they_stopped(
    recipe: Path, tmp_path: Path, train: Train, measured: Measured
) -> None:
    general = tmp_path / "general.jsonl"
    general.write_text('{"prompt": "一加一", "response": "二。"}\n' * 3, encoding="utf-8")
    replay = f"data.replay={{path: {general}, ratio: 0.1}}"
    options = [str(recipe), "--nproc", "2", "adapter.lora_dropout=0.3", replay]
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

    refused = train(str(recipe), "adapter.lora_dropout=0.3", replay, "--resume")

    assert refused.returncode == 1
    assert "processes (was 2, now 1)" in refused.stderr


@pytest.mark.slow
def test_two_processes_that_train_nothing_measure_what_one_measures(
    recipe: Path, tmp_path: Path, train: Train, measured: Measured
) -> None:
    options = ["training.max_steps=1", "training.save_strategy=no"]
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    recipe.write_text(yaml.safe_dump({**tree, "adapter": {"method": "none"}}), encoding="utf-8")
    one = train(str(recipe), *options, f"output.dir={tmp_path / 'one'}")
    two = train(str(recipe), *options, "--nproc", "2")

    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    [alone], [together] = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert together["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-5)
