"""The scripts that make nano's corpus and rows."""

import gzip
import importlib.util
import random
import re
from math import gcd
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "recipes" / "nano"


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
        if told := re.fullmatch(r"(\d+) ([-+×÷]) (\d+) = (\d+)", row["output"]):
            a, b, result = int(told[1]), int(told[3]), int(told[4])
            right = {"+": a + b, "-": a - b, "×": a * b, "÷": a / b}[told[2]]
            assert result == right, row
            kinds[told[2]] += 1
        elif told := re.fullmatch(r"(\d+) 和 (\d+) 的最大公约数是 (\d+)。", row["output"]):
            assert int(told[3]) == gcd(int(told[1]), int(told[2])), row
            kinds["divisor"] += 1

    assert min(kinds.values()) > 500


def test_pairs_for_a_test_are_told_to_nobody() -> None:
    made = script("make_rows")
    told = [
        tuple(map(int, re.findall(r"\d+", row["instruction"])))
        for row in made.arithmetic(random.Random(1))
        if "最大公约数" in row["instruction"]
    ]

    assert not [pair for pair in told if made.is_held_out(*pair)]
    assert made.is_held_out(14, 22)
    assert made.is_held_out(22, 14)


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
