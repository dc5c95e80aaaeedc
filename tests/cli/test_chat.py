"""`glmtune chat` answers on stdout, remarks on stderr, and survives what is typed."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from glmtune.cli.main import app
from glmtune.errors import CheckpointError, DataError, TemplateError

# What `taught_model_dir` has learned by heart.
QUESTION, ANSWER = "你叫什么名字？", "我是小助手。😀 鑫！"
AGAIN, AGAIN_ANSWER = "再说一次", "小助手。"
WEATHER, RESULT, WEATHER_ANSWER = "北京天气怎么样？", '{"celsius": 3}', "北京现在 3 度。"
CALL = "我查一下。\nweather\n```python\ntool_call(city='北京')\n```"


def run_chat(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(
        app, ["chat", *map(str, arguments), "--greedy"], input=stdin, catch_exceptions=False
    )


def talk(model: Path, *lines: str) -> Result:
    return run_chat(model, "--max-new-tokens", "60", stdin="\n".join(lines) + "\n")


# ---- one question ------------------------------------------------------------------------


def test_one_question_prints_the_answer_and_nothing_else(taught_model_dir: Path) -> None:
    result = run_chat(taught_model_dir, "-p", QUESTION)

    assert result.stdout == f"{ANSWER}\n"


def test_a_question_comes_from_standard_input(taught_model_dir: Path) -> None:
    result = run_chat(taught_model_dir, "-p", "-", stdin=f"{QUESTION}\n")

    assert result.stdout == f"{ANSWER}\n"


def test_a_cut_answer_is_printed_and_reported_as_cut(taught_model_dir: Path) -> None:
    result = run_chat(taught_model_dir, "-p", QUESTION, "--max-new-tokens", "4")

    assert ANSWER.startswith(result.stdout.strip())
    assert len(result.stdout.strip()) > 1
    assert "cut after 4 tokens; see --max-new-tokens" in result.stderr


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_question_is_refused_before_anything_is_loaded(empty: str) -> None:
    with pytest.raises(DataError, match="the prompt is empty"):
        run_chat("no/such/model", "-p", empty)
    with pytest.raises(DataError, match="the prompt is empty"):
        run_chat("no/such/model", "-p", "-", stdin=empty)


def test_bytes_that_are_not_text_are_refused(taught_model_dir: Path) -> None:
    with pytest.raises(DataError, match="character 3 of the message is not UTF-8"):
        run_chat(taught_model_dir, "-p", "你好\udcff")


def test_a_system_message_is_put_in_front(taught_model_dir: Path) -> None:
    alone = run_chat(taught_model_dir, "-p", AGAIN, "--max-new-tokens", "20").stdout
    shown = run_chat(
        taught_model_dir, "-p", AGAIN, "--max-new-tokens", "20", "--system", "春天 " * 9
    ).stdout

    assert alone != shown


# ---- a conversation ----------------------------------------------------------------------


def test_a_conversation_remembers_earlier_turns(taught_model_dir: Path) -> None:
    result = talk(taught_model_dir, QUESTION, "", AGAIN)

    assert result.stdout == f"{ANSWER}\n{AGAIN_ANSWER}\n"
    assert result.exit_code == 0


def test_reset_forgets_and_undo_removes_a_turn(taught_model_dir: Path) -> None:
    forgotten = talk(taught_model_dir, QUESTION, "/reset", AGAIN)
    taken_back = talk(taught_model_dir, QUESTION, WEATHER, "/undo", AGAIN)

    assert forgotten.stdout.startswith(f"{ANSWER}\n")
    assert forgotten.stdout != f"{ANSWER}\n{AGAIN_ANSWER}\n"
    assert taken_back.stdout.startswith(f"{ANSWER}\n")
    assert taken_back.stdout.endswith(f"\n{AGAIN_ANSWER}\n")


def test_a_tool_call_is_shown_with_its_arguments_and_answered(taught_model_dir: Path) -> None:
    result = talk(taught_model_dir, WEATHER, f"/observation {RESULT}")

    assert result.stdout == f"{CALL}\n{WEATHER_ANSWER}\n"
    assert "calls weather(city='北京'); give its result with /observation" in result.stderr


def test_a_message_of_several_lines_is_written_between_fences(taught_model_dir: Path) -> None:
    fenced = talk(taught_model_dir, f'"""{QUESTION}', '"""', AGAIN)

    assert fenced.stdout == f"{ANSWER}\n{AGAIN_ANSWER}\n"


def test_commands_answer_and_wrong_ones_are_not_sent(taught_model_dir: Path) -> None:
    result = talk(taught_model_dir, "/help", "/undo", "/weather 北京", "/exit", QUESTION)

    assert result.stdout == ""
    assert "/observation TEXT" in result.stderr
    assert "nothing to remove" in result.stderr
    assert "/weather is not a command" in result.stderr


def test_an_invalid_message_does_not_end_the_session(
    taught_model_dir: Path,
) -> None:
    result = talk(taught_model_dir, "/observation 3", "北京" * 2000, QUESTION)

    assert result.stdout.splitlines()[-1] == ANSWER
    assert "observation after nothing" in result.stderr
    assert "leaves no room for an answer" in result.stderr


def test_a_system_message_can_be_set_in_between(taught_model_dir: Path) -> None:
    result = talk(taught_model_dir, QUESTION, "/system 简短", "/system", QUESTION)

    assert result.stdout == f"{ANSWER}\n{ANSWER}\n"
    assert "system message set; new conversation" in result.stderr
    assert "system message removed; new conversation" in result.stderr


def test_tools_are_read_from_a_file(taught_model_dir: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "weather"}]), encoding="utf-8")
    assert run_chat(
        taught_model_dir, "-p", QUESTION, "--tools", tools, "--max-new-tokens", "5"
    ).stdout

    tools.write_text('{"name": "weather"}', encoding="utf-8")
    with pytest.raises(DataError, match="expected a JSON list of tools"):
        run_chat(taught_model_dir, "-p", QUESTION, "--tools", tools)


# ---- models and adapters that cannot be used ---------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none"], "there is no such folder"),
        (["{tmp}"], "no config.json"),
        (["{model}", "--adapter", "{tmp}/none"], "there is no such adapter folder"),
        (["{model}", "--adapter", "{tmp}"], "no adapter_config.json"),
        (["{model}", "--adapter", "{model}"], "give it as MODEL instead"),
    ],
)
def test_what_is_no_model_or_adapter_is_named(
    arguments: Sequence[str], message: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    filled = [each.format(tmp=tmp_path, model=tiny_model_dir) for each in arguments]

    with pytest.raises(CheckpointError, match=message):
        run_chat(*filled, "-p", "你好")


def test_a_conversation_that_the_layout_cannot_render_is_refused(
    tiny_model_dir: Path,
) -> None:
    with pytest.raises(TemplateError, match="plain layout"):
        run_chat(tiny_model_dir, "--layout", "plain", "--system", "简短", "-p", "你好")


# ---- the real process --------------------------------------------------------------------


def test_an_error_is_one_sentence_and_an_exit_code(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "glmtune", "chat", str(tmp_path), "-p", "你好"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 1
    assert ran.stdout == ""
    assert "error: " in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a pseudo terminal")
def test_ctrl_c_stops_an_answer_and_keeps_the_session(tiny_model_dir: Path) -> None:
    # The tiny model never learned to stop, so its answer takes seconds.
    command = ["-m", "glmtune", "chat", str(tiny_model_dir), "--greedy", "--max-new-tokens", "450"]
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *command], stdin=inside, stdout=inside, stderr=inside, close_fds=True
    )
    os.close(inside)
    try:
        read_until(terminal, "> ")
        os.write(terminal, "你好\n".encode())
        read_until(terminal, "你好\r\n", more=3)
        process.send_signal(signal.SIGINT)
        assert "[stopped]" in read_until(terminal, "> ")
        os.write(terminal, b"/undo\n")
        assert "[removed]" in read_until(terminal, "> ")
        assert interrupt_until_it_exits(process) == 0
    finally:
        process.kill()
        os.close(terminal)


def read_until(terminal: int, ending: str, more: int = 0, timeout_seconds: float = 60) -> str:
    """Read a terminal until a text comes, and some bytes after it."""
    heard, deadline = b"", time.monotonic() + timeout_seconds
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([terminal], [], [], left)[0]:
            break
        heard += os.read(terminal, 1024)
        _, found, after = heard.partition(ending.encode())
        if found and len(after) >= more:
            return heard.decode("utf-8", errors="replace")
    raise AssertionError(f"waited for {ending!r}, heard {heard!r}")


def interrupt_until_it_exits(process: subprocess.Popen[bytes]) -> int:
    """Press Ctrl-C as somebody does; one that comes while readline sets up is lost in Python."""
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=10)
    raise AssertionError("the process is still running")
