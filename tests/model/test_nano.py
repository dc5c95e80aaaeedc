"""nano, the model in the package, and the scripts that make its corpus and rows."""

import gzip
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from math import gcd
from pathlib import Path
from types import ModuleType

import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from glmtune.cli.demo.fractions import GAUGE, GENERAL, is_held_out
from glmtune.cli.main import app
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.files import NANO, locate
from glmtune.model.load import load_config, load_model, load_tokenizer
from glmtune.use.chat import ChatSession
from glmtune.use.generate import Sampling
from glmtune.use.open import open_session

FOLDER = Path(__file__).parents[2] / "recipes" / "nano"
SHIPPED = Path(locate(NANO))


@pytest.fixture(scope="module")
def nano() -> ChatSession:
    return open_session(NANO, dtype="float32", sampling=Sampling(temperature=0, max_new_tokens=64))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("你是谁？", "我是 nano，一个用 glmtune 训练出来的很小的 ChatGLM 模型。"),
        ("广东的省会是哪里？", "广东省的省会是广州。"),
        ("法国的首都是哪里？", "法国的首都是巴黎。"),
        ("7 × 8 = ?", "7 × 8 = 56"),
        ("ls 是做什么的？", "ls：列出目录内容。"),
    ],
)
def test_nano_answers_in_chinese_and_stops(nano: ChatSession, question: str, answer: str) -> None:
    nano.reset()

    reply = nano.reply(question)

    assert reply.text == answer
    assert reply.ended_by == "stop"


def test_nano_is_the_model_that_its_card_describes() -> None:
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    weights = (SHIPPED / "model.safetensors").read_bytes()

    assert hashlib.sha256(weights).hexdigest() in card
    assert f"{load_model(NANO).num_parameters():,} parameters" in card
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 15 * 2**20


def test_nano_is_a_name_wherever_a_folder_is(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "你好", "input": "", "output": "你好！"}]))

    for arguments in (
        ("info", NANO),
        ("inspect", str(rows), "--model", NANO),
        ("lint", str(rows), "--model", NANO),
        ("predict", str(rows), "--model", NANO, "--output", str(tmp_path / "answers.jsonl")),
    ):
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output


def test_a_log_has_no_progress_bars(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "你好", "input": "", "output": "你好！"}]))
    command = ("predict", str(rows), "--model", NANO, "--output", str(tmp_path / "answers.jsonl"))
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"}

    result = subprocess.run(
        [sys.executable, "-m", "glmtune", *command],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip

    assert (tmp_path / "answers.jsonl").is_file()
    assert "%|" not in result.stderr


def test_a_model_of_the_users_own_goes_before_the_one_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NANO).mkdir()
    assert locate(NANO) == str(SHIPPED), "a folder without a model is not meant"

    shutil.copytree(tiny_model_dir, tmp_path / NANO, dirs_exist_ok=True)

    assert load_config(NANO).hidden_size == load_config(tiny_model_dir).hidden_size


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_sum_and_every_divisor_of_the_rows_is_right() -> None:
    rows = list(script("make_rows").arithmetic(random.Random(1)))
    kinds = {"+": 0, "-": 0, "×": 0, "÷": 0, "divisor": 0}

    for row in rows:
        if match := re.fullmatch(r"(\d+) ([-+×÷]) (\d+) = (\d+)", row["output"]):
            a, b, result = int(match[1]), int(match[3]), int(match[4])
            right = {"+": a + b, "-": a - b, "×": a * b, "÷": a / b}[match[2]]
            assert result == right, row
            kinds[match[2]] += 1
        elif match := re.fullmatch(r"(\d+) 和 (\d+) 的最大公约数是 (\d+)。", row["output"]):
            assert int(match[3]) == gcd(int(match[1]), int(match[2])), row
            kinds["divisor"] += 1

    assert min(kinds.values()) > 500


def test_pairs_of_the_test_are_not_in_the_training_rows() -> None:
    made = script("make_rows")
    pairs = [
        tuple(map(int, re.findall(r"\d+", row["instruction"])))
        for row in made.arithmetic(random.Random(1))
        if "最大公约数" in row["instruction"]
    ]

    assert len(pairs) > 1000
    assert not [pair for pair in pairs if is_held_out(*pair)]


def test_the_demos_general_rows_are_some_of_those_that_taught_nano(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    made = script("demo_rows")

    for path, rows in zip((GENERAL, GAUGE), made.choose(), strict=True):
        assert path.read_text(encoding="utf-8") == made.to_json(rows)


def test_a_page_becomes_its_paragraphs_without_what_is_around_them(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    page.write_text(
        "<html><head><title>no</title></head><body><div class='navheader'>上一页</div>"
        "<h1>打印</h1><p>选择<b>文件</b>\n菜单&amp;打印。</p><script>no()</script></body></html>",
        encoding="utf-8",
    )
    made = script("prepare_corpus")

    [lines] = made.read_html(page)

    assert [line for line in map(made.clean, lines) if line] == ["打印", "选择文件菜单&打印。"]


def test_a_manual_page_becomes_its_paragraphs(tmp_path: Path) -> None:
    page = tmp_path / "ls.1.gz"
    source = ".TH LS 1\n.SH 名称\nls \\- 列出目录内容\n.PP\n列出指定\n\\fB文件\\fP的信息。\n"
    page.write_bytes(gzip.compress(source.encode()))

    [lines] = script("prepare_corpus").read_man(page)

    assert [line for line in lines if line] == ["名称", "ls - 列出目录内容", "列出指定文件的信息。"]


def test_stock_transformers_reads_the_folder_to_our_ids() -> None:
    ours, stock = load_tokenizer("nano"), PreTrainedTokenizerFast.from_pretrained(SHIPPED)
    messages = [{"role": "user", "content": "你好 <|user|>"}]

    assert type(ours) is ChatGLMTokenizer
    assert stock.encode("people, 你好") == ours.encode("people, 你好")
    assert stock.apply_chat_template(messages, return_dict=False) == ours.apply_chat_template(
        messages, return_dict=False
    )
