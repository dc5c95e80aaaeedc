"""The how-tos: every command runs on nano as it is written, and both languages have the same.

A page names the model `./chatglm3-6b`; here that is a link to nano. Files that a page shows
(```json title="rows.json") are written first. Blocks marked `console` need machines or networks
that a test has not, and are not run.
"""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import glmtune
from glmtune.cli.main import app

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page.stem for page in DOCS.glob("how_to_*.md") if not page.stem.endswith("_zh"))
SHARED_RUN = "how_to_own_rows"  # other pages continue with its out/shop
QUICK = [
    "training.max_steps=2",
    "checks={stock_reader: false, stop_prompts: 1, max_new_tokens: 4, forgetting: null}",
]
LEARNS = [  # six rows by heart, so that merging and publishing have something to keep
    "training.learning_rate=2e-3",
    "training.num_train_epochs=30",
    "training.save_strategy=no",
    "checks={stock_reader: false, stop_prompts: 2, max_new_tokens: 24, forgetting: null}",
]


def blocks(page: str, kind: str) -> list[tuple[str, str]]:
    """The code blocks of a kind: their title, if any, and their text."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    found = re.findall(rf'^```{kind}(?: title="(.*?)")?\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    return [(title, block) for title, block in found]


def commands(page: str) -> list[list[str]]:
    lines = [line for _, block in blocks(page, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(page: str, words: list[str]) -> str:
    """Run a command of a page, and return what it prints."""
    assert words[0] == "glmtune", f"{page}: {words}: a block of bash holds only our commands"
    arguments = words[1:]
    if arguments[0] == "train":
        arguments += LEARNS if "out/shop" in arguments else QUICK
    if "--nproc" in arguments:  # starts processes of its own
        command = [sys.executable, "-m", "glmtune", *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert ran.returncode == 0, f"{page}: {words}\n{ran.stdout}{ran.stderr}"
        return ran.stdout
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{page}: {words}\n{result.output}\n{result.exception!r}"
    return result.output


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the model, the files of all pages, and the run that they share."""
    folder = tmp_path_factory.mktemp("how-tos")
    (folder / "chatglm3-6b").symlink_to(Path(glmtune.__file__).parent / "model" / "nano")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GLMTUNE_CACHE", str(folder / "cache"))
        for page in PAGES:
            for name, text in blocks(page, "json"):
                assert not (folder / name).exists(), f"{page}: two pages show {name}"
                json.loads(text)
                (folder / name).write_text(text, encoding="utf-8")
        for words in commands(SHARED_RUN):
            run(SHARED_RUN, words)
        yield folder


def test_there_are_eight_how_tos_and_both_languages_have_the_same_commands() -> None:
    assert len(PAGES) == 8
    for page in PAGES:
        assert len(commands(page)) >= 1
        for kind in ("bash", "json", "console"):
            assert blocks(page, kind) == blocks(f"{page}_zh", kind), page


@pytest.mark.slow  # seconds each; one run of nano is shared
@pytest.mark.parametrize("page", [page for page in PAGES if page != SHARED_RUN])
def test_every_command_of_a_how_to_runs_on_nano(page: str, workplace: Path) -> None:
    for words in commands(page):
        if words[0] != "curl" and words[1] != "serve":  # see the next test but one
            run(page, words)


@pytest.mark.slow
def test_the_run_that_the_how_tos_share_has_learned_its_rows(workplace: Path) -> None:
    [first, *_] = (workplace / "answers.jsonl").read_text(encoding="utf-8").splitlines()

    assert json.loads(first)["answer"] == json.loads(first)["reference"]
    assert (workplace / "out" / "shop-2" / "report.html").is_file()


@pytest.mark.slow
def test_the_server_of_the_how_to_answers_its_curl(workplace: Path) -> None:
    page = "how_to_export_and_serve"
    [serve] = [words for words in commands(page) if words[1] == "serve"]
    [curl] = [words for words in commands(page) if words[0] == "curl"]
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = [sys.executable, "-m", *serve]
    command[command.index("8000")] = "0"  # any free port
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            [url] = re.findall(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[:1]
            asked = [word.replace("http://127.0.0.1:8000", url) for word in curl]
            answer = subprocess.run(asked, capture_output=True, check=True, timeout=60).stdout
        finally:
            process.send_signal(signal.SIGINT)

    [choice] = json.loads(answer)["choices"]
    assert choice["message"]["content"]
