"""Several processes with a copy of the model each: the same run as one."""

import json
from pathlib import Path

import pytest
import yaml
from tests.train.engines.same_run import (
    Measured,
    Train,
    check_learns_the_same,
    check_resumes_to_the_same_bytes,
)


def test_two_processes_learn_what_one_learns(
    recipe: Path, train: Train, measured: Measured
) -> None:
    one, two = check_learns_the_same(recipe, train, measured)

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

    check_resumes_to_the_same_bytes(recipe, train, measured, replay)

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
