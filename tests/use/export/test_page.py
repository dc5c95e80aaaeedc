"""docs/adapters.md: its commands and its Python do what it says, word for word."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from tests.use.export.odd_model import logits_of, name_base
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.model.load import load_model

PAGE = Path(__file__).parents[3] / "docs" / "adapters.md"


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
def test_every_command_that_merges_or_exports_runs_as_it_is_printed(
    odd_model_dir: Path, odd_adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(odd_model_dir, tmp_path / "chatglm3-6b")
    shutil.copytree(odd_adapter_dir, tmp_path / "out" / "my-run")
    name_base(tmp_path / "out" / "my-run", "./chatglm3-6b")
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith(("glmtune merge", "glmtune export"))]
    assert len(commands) == 6

    for command in commands:
        ran = CliRunner().invoke(app, shlex.split(command)[1:])
        assert ran.exit_code == 0, f"{command}: {ran.output} {ran.exception}"
        compared = "tensors are those of the source" if "gguf" in command else "logits are the same"
        assert f"passed: {compared}" in ran.output
        assert "failed" not in ran.output

    snippets = [block for block in blocks("python") if "export" in block]
    assert len(snippets) == 2
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
    expected = logits_of(load_model("chatglm3-6b-tuned"))
    for found in (load_model("merged-in-python"), names["plain"]):
        assert (logits_of(found) - expected).abs().max() < 1e-5 * expected.abs().max()
