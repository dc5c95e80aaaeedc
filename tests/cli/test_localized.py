"""The command line in the language of the reader: help, refusals, mistakes, and a whole way."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.messages import english_in
from typer.testing import CliRunner

from glmtune.cli import main
from glmtune.cli.localized import language_option, prepare_language
from glmtune.messages import VARIABLE, width

CHINESE = re.compile("[\u4e00-\u9fff]{2}")
ROWS = [{"instruction": f"{n} plus 1", "output": str(n + 1)} for n in range(24)]


@pytest.fixture
def _chinese(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "zh")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["glmtune", *words])
    return main._run_command()


def test_the_language_may_be_asked_for_before_and_after_the_command() -> None:
    assert language_option(["--lang", "zh", "train"]) == "zh"
    assert language_option(["train", "x.yaml", "--lang=en"]) == "en"
    assert language_option(["train", "--lang"]) is None
    assert language_option(["train", "--", "--lang", "zh"]) is None


@pytest.mark.parametrize("words", [["--lang", "zh", "chat", "-h"], ["chat", "-h", "--lang=zh"]])
def test_help_is_in_the_language_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "en")  # and is put back after the test

    shown = CliRunner().invoke(main.app, words, terminal_width=100).output

    assert "与模型对话。" in shown
    assert "模型可以调用的工具，" in shown
    assert english_in(shown) == []


def test_a_console_without_chinese_characters_is_answered_in_english() -> None:
    environment = {**os.environ, VARIABLE: "zh", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "glmtune", "report", "nowhere"]

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 1
    assert done.stderr.startswith("error: nowhere: there is no recipe.yaml in it")


def test_help_in_english_has_no_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "en")

    shown = CliRunner().invoke(main.app, ["--help"]).output

    assert "Fine-tune a model: an adapter over it, or its own weights." in shown
    assert not CHINESE.search(shown)


@pytest.mark.usefixtures("_chinese")
def test_the_help_of_every_command_is_chinese() -> None:
    runner = CliRunner()
    listed = runner.invoke(main.app, ["--help"], terminal_width=200).output
    names = [
        each.name or each.callback.__name__
        for each in main.app.registered_commands
        if each.callback is not None
    ]

    assert english_in(listed) == []
    for name in [*names, "tokenizer", "tokenizer train"]:
        shown = runner.invoke(main.app, [*name.split(), "--help"], terminal_width=200)
        assert shown.exit_code == 0
        assert CHINESE.search(shown.output)
        assert english_in(shown.output) == [], name


MISTAKES = {  # the mistake of a beginner: what the answer says, and what it says to type
    "train --model nano --data nofile.json": ("没有这个文件", "是不是要写"),
    "train nano-chat lora_rank=8": ("不是配置的键", "请写 adapter.r=8"),
    "train nano-chat --lr 1e-3": ("不是配置的键", "training.learning_rate=1e-3"),
    "train nano-chat learning_rate=abc": ("应为数值", "例如 16 或 5e-5"),
    "train nano-chat training.learning_rate＝1": ("全角", "training.learning_rate=1"),
    "train tab.yaml": ("tab.yaml:2", "请用空格缩进"),
    "train --model nano --data gbk.json": ("GB18030", "iconv -f GB18030 -t UTF-8"),
    "train --model nano --data columns.json": ("没有已知的格式", "data.columns: {instruction: "),
    "train --model nano --data empty.json": ("回答是空的", "删除这一行"),
    "train --model nano": ("缺少 --data", "glmtune train chatglm3-lora"),
    "train rows.json": ("应为配置", "glmtune train chatglm3-lora data.train=rows.json"),
    "train --model ./chatglm3-6b --data rows.json": ("没有这个文件夹", "zai-org/chatglm3-6b"),
    "trian": ("没有命令 'trian'", "'train'"),
    "chat nano --temperature -1 -p x": ("'--temperature' 的值无效", "应大于或等于 0"),
    "chat nano --adapter nowhere -p x": ("没有这个适配器文件夹", "glmtune train"),
    "export nano --to gguff -o x": ("--to gguff", "gguf"),
    "report .": ("不是训练的文件夹", "output.dir"),
}


@pytest.mark.usefixtures("_chinese")
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_in_chinese_with_what_to_type(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), "utf-8")
    (tmp_path / "columns.json").write_text(json.dumps([{"frage": "x", "antwort": "y"}]), "utf-8")
    (tmp_path / "empty.json").write_text(json.dumps([{"instruction": "x", "output": ""}]), "utf-8")
    talk = [{"instruction": "你好吗今天天气怎么样", "output": "很好谢谢你的关心"}]
    (tmp_path / "gbk.json").write_bytes(json.dumps(talk, ensure_ascii=False).encode("gbk"))
    (tmp_path / "tab.yaml").write_text("model:\n\tname_or_path: nano\n", "utf-8")

    code = run(monkeypatch, *line.split())

    shown = " ".join(re.sub("[│╭╮╰╯─]", "", capsys.readouterr().err).split())
    assert code in (1, 2)
    for part in MISTAKES[line]:
        assert part in shown
    assert english_in(shown) == []


@pytest.mark.usefixtures("_chinese")
def test_lines_are_aligned_by_the_width_of_their_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "doctor") in (0, 1)

    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    starts = {
        width(match[0])
        for line in lines
        if len(re.split(" {2,}", line.strip())) == 2 and (match := re.match(r"\S+ {2,}", line))
    }
    assert len(lines) > 10
    assert starts == {15}


WAY = (  # from rows to a tuned, evaluated and exported model
    "init my.yaml --model nano --data rows.json",
    "lint rows.json --model nano",
    "plan my.yaml",
    "train my.yaml training.max_steps=2 data.max_length=64 checks.stock_reader=false "
    "training.save_strategy=no training.eval_strategy=no output.dir=out",
    "info out",
    "chat nano --adapter out -p hi --max-new-tokens 2",
    "predict rows.json --model nano --adapter out -o answers.jsonl --max-new-tokens 2",
    "evaluate out rows.json --with-base --max-new-tokens 2",
    "inspect rows.json --model nano --row 2",
    "merge out -o merged --dtype float32 --no-proof",
    "report out",
    "train my.yaml output.dir=out",
)


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["zh", "en"])
def test_the_whole_way_is_in_one_language(lang: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), "utf-8")
    code = (
        "import sys, glmtune.cli.main as main\n"
        f"for line in {WAY!r}:\n"
        "    sys.argv = ['glmtune', *line.split()]\n"
        "    code = main._run_command()\n"
        "    print('exit code', code, flush=True)\n"
    )
    environment = {**os.environ, VARIABLE: lang, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
        env=environment,
    )  # fmt: skip

    shown = done.stdout + "\n".join(
        line for line in done.stderr.splitlines() if "leaked" not in line and "nano" not in line
    )
    codes = re.findall(r"exit code (\S+)", done.stdout)
    assert codes == ["0"] * (len(WAY) - 1) + ["1"]
    if lang == "zh":
        assert english_in(shown) == []
        assert "项证明：" in shown
    else:
        assert not CHINESE.search(re.sub(r"(?m)^.*(asked|tuned|base):? .*$", "", shown))
        assert " proofs: " in shown
    report = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert ("训练所看到的一行" in report) == (lang == "zh")


def test_warnings_and_log_lines_are_translated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "zh")
    record = logging.LogRecord("glmtune", logging.WARNING, "", 0, "lint: %s: %s", ("a", "b"), None)

    main._CurrentStderr().emit(record)

    assert capsys.readouterr().err == "警告：lint：a：b\n"


@pytest.mark.parametrize(("value", "is_known"), [("chinese", False), ("en_US.UTF-8", True)])
def test_a_language_that_is_not_known_is_said(
    value: str,
    is_known: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GLMTUNE_LANG", value)

    prepare_language(["--version"])

    assert ("is 'chinese', expected zh or en" in capsys.readouterr().err) is not is_known


@pytest.mark.usefixtures("_chinese")
def test_a_device_is_refused_before_rows_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "plan", "--model", "nano", "--data", "no-such-file.json", "--device", "foo")

    assert "错误：--device 'foo'：应为显存大小" in capsys.readouterr().err
