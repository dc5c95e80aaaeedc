from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.errors import OutputError
from glmtune.recipe.reading import load_recipe

THEIRS = {
    "training_args": {"max_steps": 3, "debug": "underflow_overflow"},
    "peft_config": {"peft_type": "LORA"},
}


def test_a_recipe_is_written_and_what_is_not_converted_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lora.yaml").write_text(yaml.safe_dump(THEIRS), encoding="utf-8")

    result = CliRunner().invoke(app, ["convert-recipe", "lora.yaml", "--model", "here"])

    assert result.exit_code == 0, result.output
    assert "not converted: debug: underflow_overflow, which has no" in result.output
    assert "Train:  glmtune train lora.glmtune.yaml" in result.output
    assert load_recipe("lora.glmtune.yaml").training.max_steps == 3
    assert "# - debug: underflow_overflow" in Path("lora.glmtune.yaml").read_text(encoding="utf-8")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    theirs = tmp_path / "lora.yaml"
    theirs.write_text(yaml.safe_dump(THEIRS), encoding="utf-8")

    result = CliRunner().invoke(app, ["convert-recipe", str(theirs), "-o", str(theirs)])

    assert isinstance(result.exception, OutputError)
    assert "already exists" in str(result.exception)
    assert yaml.safe_load(theirs.read_text(encoding="utf-8")) == THEIRS
