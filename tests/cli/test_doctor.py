"""`glmtune doctor` on the command line."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import glmtune
from glmtune.cli.main import app
from glmtune.errors import DataError
from glmtune.inspect.doctor.log import diagnose

LOG = "some lines\nValueError: Attempting to unscale FP16 gradients.\n"


def test_a_log_is_answered_with_cause_and_remedy(tmp_path: Path) -> None:
    file = tmp_path / "train.log"
    file.write_bytes(LOG.encode() + b"\xff\xfe no text\n")

    by_name = CliRunner().invoke(app, ["doctor", str(file)], catch_exceptions=False)
    by_pipe = CliRunner().invoke(app, ["doctor", "-"], input=LOG, catch_exceptions=False)

    assert by_name.exit_code == by_pipe.exit_code == 0
    assert by_name.stdout == by_pipe.stdout
    first, cause, remedy = by_name.stdout.splitlines()
    assert first == "line 2: ValueError: Attempting to unscale FP16 gradients."
    assert cause.startswith("  cause   The trainable weights are float16")
    assert remedy.startswith("  remedy  Load the base in bfloat16")


def test_an_unknown_problem_is_reported_as_unknown() -> None:
    result = CliRunner().invoke(app, ["doctor", "-"], input="WidgetError: no oil\n")

    assert result.stdout == (
        "No known problem was found in this log.\nIts last error:  WidgetError: no oil\n"
    )


def test_the_last_line_of_a_healthy_log_is_not_called_an_error() -> None:
    result = CliRunner().invoke(app, ["doctor", "-"], input="Adapter after 2 steps: out/x\n")

    assert result.stdout == (
        "No known problem was found in this log.\nIts last line:  Adapter after 2 steps: out/x\n"
    )


def test_a_missing_log_is_reported() -> None:
    with pytest.raises(DataError, match=r"nowhere\.log: cannot be read: No such file"):
        CliRunner().invoke(app, ["doctor", "nowhere.log"], catch_exceptions=False)


def test_the_machine_is_described_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")

    shown = CliRunner().invoke(app, ["doctor"], catch_exceptions=False).stdout
    as_json = CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False).stdout

    assert f"glmtune        {glmtune.__version__}" in shown
    assert "HF_TOKEN=set, not shown" in shown
    assert "hf_verysecret" not in shown + as_json
    machine = json.loads(as_json)
    assert 0 < machine["available_bytes"] <= machine["memory_bytes"]
    assert all(version["fits"] for version in machine["versions"])


ROW = {"instruction": "广州在哪里", "input": "", "output": "广州在广东。"}


def test_the_logs_of_our_own_runs_are_healthy(
    taught_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    places = ["广州", "杭州", "成都", "西安", "昆明", "武汉"]
    rows = [{key: text.replace("广州", place) for key, text in ROW.items()} for place in places]
    pairs = [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": "不知道。"}
        for row in rows
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    (tmp_path / "run.yaml").write_text(
        f"model: {{name_or_path: {taught_model_dir}, dtype: float32}}\n"
        f"data: {{train: {tmp_path}/rows.json, eval_fraction: 0.3, max_length: 90}}\n"
        "training: {per_device_train_batch_size: 2, max_steps: 2, logging_steps: 1, "
        "eval_strategy: steps, eval_steps: 1, save_strategy: steps, save_steps: 1, "
        "save_total_limit: 5, use_cpu: true}\n"
        "lint: {errors: report}\n"
        f"output: {{dir: {tmp_path}/out, report_to: none}}\n",
        encoding="utf-8",
    )

    def log_of(*arguments: str) -> str:
        command = ["train", str(tmp_path / "run.yaml"), *arguments]
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    logs = [log_of()]
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")  # as if the run had been killed before it
    logs += [
        log_of("--resume"),
        log_of(f"data.train={tmp_path}/pairs.json", "preference.stage=dpo", "overwrite=true"),
    ]

    assert "asked '[gMASK]sop<|user|>" in logs[0]  # which was once taken for a symptom
    for log in logs:
        assert "held-out loss" in log
        assert diagnose(log) == []
