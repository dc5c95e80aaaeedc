"""`glmtune doctor` on the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import glmtune
from glmtune.cli.main import app
from glmtune.errors import DataError

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
