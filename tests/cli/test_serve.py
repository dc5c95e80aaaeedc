"""`glmtune serve`: the real process, and what it refuses before it loads a model."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.cli.serve import read_adapters
from glmtune.errors import CheckpointError, GlmtuneError, RecipeError


def serve(*arguments: str) -> None:
    CliRunner().invoke(app, ["serve", "./none", *arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--host", "0.0.0.0"], RecipeError, "a key is needed: set GLMTUNE_API_KEY or --api-key"),
        (["--api-key", " "], RecipeError, "must be ASCII text and not empty"),
        (["--adapter", "a=x", "--adapter", "a=y"], CheckpointError, "two adapters are named 'a'"),
        ([], CheckpointError, "none"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_model_is_loaded(
    arguments: list[str], kind: type[GlmtuneError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        serve(*arguments)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    with pytest.raises(RecipeError, match=re.escape("pip install 'glmtune[serve]'")):
        serve()


def test_an_adapter_has_the_name_of_its_folder_or_a_given_one() -> None:
    adapters = read_adapters(["out/one", "b=out/two", "out/a=b/three"])

    assert adapters == {
        "one": Path("out/one"), "b": Path("out/two"), "three": Path("out/a=b/three"),
    }  # fmt: skip


def test_the_process_answers_until_it_is_interrupted(tiny_model_dir: Path) -> None:
    command = [sys.executable, "-m", "glmtune", "serve", str(tiny_model_dir), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        body = {"model": tiny_model_dir.name, "messages": [{"role": "user", "content": "你好"}]}
        request = urllib.request.Request(
            f"{found[0]}/v1/chat/completions",
            json.dumps(body | {"max_tokens": 2}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.loads(response.read())
        assert answer["usage"]["completion_tokens"] <= 2
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "/v1/chat/completions 200 in" in log
    assert "你好" not in log
    assert "Traceback" not in log
