"""`glmtune train` and `pretrain` refuse what they can before PyTorch loads."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.errors import OutputError

TORCHLESS = """\
import sys
from glmtune.cli.main import app
from glmtune.errors import GlmtuneError
try:
    app(sys.argv[1:])
except GlmtuneError as error:
    print(error)
print("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    "command",
    [
        ["train", "chatglm3-lora"],
        ["train", "chatglm3-lora", "--nproc", "2"],
        ["pretrain", "nano-pretrain"],
    ],
)
def test_a_folder_with_a_run_is_refused_before_torch_loads(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").touch()

    ran = subprocess.run(
        [sys.executable, "-c", TORCHLESS, *command, f"output.dir={tmp_path}"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert f"{tmp_path}: already holds a run (recipe.yaml). Continue it with --resume" in ran.stdout
    assert ran.stdout.endswith("False\n")


def test_resume_and_overwrite_contradict_each_other(tmp_path: Path) -> None:
    command = ["train", "chatglm3-lora", f"output.dir={tmp_path}", "overwrite=true", "--resume"]

    refused = CliRunner().invoke(app, command)

    assert isinstance(refused.exception, OutputError)
    assert "contradict each other" in str(refused.exception)
