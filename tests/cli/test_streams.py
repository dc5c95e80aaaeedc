"""Commands print on any console, and end with their own exit code when a stream is closed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

GLMTUNE = [sys.executable, "-m", "glmtune"]
TEXT = "你好 é 😀 ⟦"


def run_shell(script: str, *arguments: str | Path, **environment: str) -> tuple[int, bytes, bytes]:
    """Run a line of shell in which "$@" is `glmtune ARGUMENTS`."""
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *GLMTUNE, *map(str, arguments)],
        capture_output=True,
        check=False,
        env={**os.environ, "COLUMNS": "100", **environment},
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    assert b"Exception ignored" not in done.stderr, done.stderr.decode(errors="replace")
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, taught_model_dir: Path) -> Path:
    """Rows, a log, a recipe and what a run has left, all with characters that consoles lack."""
    folder = tmp_path_factory.mktemp("é 😀 文")
    rows = [{"instruction": f"{TEXT} {i}", "output": f"{i} {TEXT}"} for i in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    (folder / "bad.jsonl").write_text(json.dumps({"instruction": TEXT, "output": ""}), "utf-8")
    (folder / "run.log").write_text(f"{TEXT}\nWidgetError: {TEXT}\n", "utf-8")
    (folder / "run.yaml").write_text(
        f"model: {{name_or_path: {taught_model_dir}}}\n"
        f"data: {{train: '{folder}/rows.jsonl', max_length: 256, eval_fraction: 0.2}}\n"
        "training: {max_steps: 1, per_device_train_batch_size: 2, eval_strategy: steps, "
        "eval_steps: 1, use_cpu: true}\n"
        f"output: {{dir: '{folder}/out'}}\n",
        "utf-8",
    )
    code, _, stderr = run_shell('"$@"', "train", folder / "run.yaml")
    assert code == 0, stderr.decode()
    return folder


Commands = list[tuple[int, list[str | Path]]]  # with their exit codes


def quick_commands(folder: Path) -> Commands:
    return [
        (0, ["--help"]),
        (0, ["doctor", folder / "run.log"]),
        (1, ["lint", folder / "bad.jsonl"]),
        (0, ["info", folder / "out"]),
        (1, ["train", folder / "é😀.yaml"]),
        (2, ["lint", "--no-such-option-é😀"]),
    ]


def other_commands(folder: Path, model: Path) -> Commands:
    rows = folder / "rows.jsonl"
    return [
        (0, ["report", folder / "out"]),
        (0, ["inspect", rows, "--model", model]),
        (0, ["plan", folder / "run.yaml"]),
        (0, ["chat", model, "-p", "你叫什么名字？", "--greedy"]),
        (0, ["predict", rows, "--model", model, "-o", folder / "a.jsonl", "--max-new-tokens", "4"]),
    ]


def run_all(commands: Commands, script: str, encoding: str = "utf-8") -> bytes:
    """Run commands, check their exit codes, and return what they have printed."""
    shown = b""
    for expected, command in commands:
        code, stdout, stderr = run_shell(script, *command, PYTHONIOENCODING=encoding)
        assert code == expected, (command, stderr)
        stdout.decode(encoding)
        stderr.decode(encoding)
        shown += stdout + stderr
    return shown


@pytest.mark.parametrize("encoding", ["gbk", "ascii", "cp1252"])
def test_a_console_that_lacks_characters_shows_them_as_escapes(encoding: str, folder: Path) -> None:
    shown = run_all(quick_commands(folder), '"$@"', encoding)

    assert b"\\U0001f600" in shown
    assert (b"\\u4f60" in shown) == (encoding != "gbk")
    assert ("你好" in shown.decode(encoding)) == (encoding == "gbk")


@pytest.mark.slow
@pytest.mark.parametrize(("script", "encoding"), [('"$@"', "gbk"), ('"$@" <&- >&- 2>&-', "utf-8")])
def test_commands_that_load_a_model_print_on_any_console_or_none(
    script: str, encoding: str, folder: Path, taught_model_dir: Path
) -> None:
    (folder / "a.jsonl").unlink(missing_ok=True)

    shown = run_all(other_commands(folder, taught_model_dir), script, encoding)

    assert ("我是小助手。" in shown.decode(encoding)) == (encoding == "gbk")
    answers = (folder / "a.jsonl").read_text("utf-8").splitlines()
    assert len(answers) == 12  # no file took the number of a closed stream


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_at_the_start_changes_no_exit_code(
    closed: str, folder: Path
) -> None:
    shown = run_all(quick_commands(folder), f'"$@" {closed}')

    assert bool(shown) == (closed != "<&- >&- 2>&-")


def test_a_chat_without_standard_input_ends(taught_model_dir: Path) -> None:
    code, stdout, _ = run_shell('"$@" <&-', "chat", taught_model_dir)
    assert (code, stdout) == (0, b"")

    code, _, stderr = run_shell('"$@" <&-', "chat", taught_model_dir, "-p", "-")
    assert code == 1
    assert b"error: the prompt is empty" in stderr


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_input_that_is_no_text_is_refused(encoding: str) -> None:
    code, _, stderr = run_shell(
        r"""printf 'ab\377\377' | "$@" """, "chat", "x", "-p", "-", PYTHONIOENCODING=encoding
    )

    assert code == 1
    assert b"error: character 3 of the message is not UTF-8" in stderr


def test_a_line_that_is_no_text_does_not_end_a_conversation(taught_model_dir: Path) -> None:
    script = r"""printf 'ab\377\n\0\n/undo\n/undo\n' | "$@" """

    code, _, stderr = run_shell(script, "chat", taught_model_dir, "--max-new-tokens", "2")

    assert code == 0
    notes = [line for line in stderr.decode().splitlines() if line.startswith("[")]
    assert "[character 3 of the message is not UTF-8." in notes[0]
    assert notes[-2:] == ["[removed]", "[there is nothing to remove]"]  # of the second line alone


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["doctor", "-"]])
def test_a_reader_that_leaves_early_is_no_traceback(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "log").write_text("ChildFailedError CUDA out of memory\n")
    script = f'{{ "$@" <{tmp_path}/log; echo $? >{tmp_path}/code; }} | exec true'
    _, _, stderr = run_shell(script, *arguments)

    assert int((tmp_path / "code").read_text()) in (0, 141)
    assert stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_output_to_a_full_disk_is_one_sentence() -> None:
    code, _, stderr = run_shell('"$@" >/dev/full', "--version")

    assert code == 1
    assert b"No space left" in stderr or b"disk is full" in stderr
    assert len(stderr.splitlines()) == 1


# Sends a signal to its own process when a module is imported, then is the command `glmtune`.
SIGNAL_AT_IMPORT = """
import os, sys
number, module = int(sys.argv.pop(1)), sys.argv.pop(1)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder())
from glmtune.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("number", "module", "code", "word"),
    [
        (signal.SIGINT, "glmtune.cli.main", 130, "interrupted"),
        (signal.SIGINT, "glmtune.inspect.doctor.log", 130, "interrupted"),
        (signal.SIGTERM, "glmtune.inspect.doctor.log", 143, "terminated"),
    ],
)
def test_a_signal_ends_a_command_in_one_line(
    number: signal.Signals, module: str, code: int, word: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AT_IMPORT, str(int(number)), module, "doctor", "-"],
        capture_output=True,
        check=False,
        text=True,
        input="a log",
    )

    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"{word}\n")
