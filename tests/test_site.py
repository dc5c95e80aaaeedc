"""The site: every page is in its menus, and links mean the same there as in the repository.

`make site`, which CI runs, renders it and refuses a dead link.
"""

import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SITE = runpy.run_path(str(DOCS / "make_site.py"))


def pages_of(menu: Any) -> Iterator[str]:
    if isinstance(menu, str):
        yield menu
    elif isinstance(menu, dict):
        for part in menu.values():
            yield from pages_of(part)
    else:
        for part in menu:
            yield from pages_of(part)


def test_every_page_is_once_in_the_menu_of_each_language_in_the_same_place() -> None:
    configs = [DOCS / "site" / name for name in ("zensical.toml", "zensical_zh.toml")]
    english, chinese = (tomllib.loads(path.read_text("utf-8"))["project"] for path in configs)
    written = {page.name for page in DOCS.glob("*.md") if not page.stem.endswith("_zh")}

    assert sorted(pages_of(english["nav"])) == sorted({*written, "contributing.md", "changelog.md"})
    assert sorted(pages_of(chinese["nav"])) == sorted(pages_of(english["nav"]))
    assert english["theme"]["font"] is chinese["theme"]["font"] is False, "fonts come from a server"


def test_every_chinese_page_has_an_english_one_and_each_names_the_other() -> None:
    chinese = sorted(DOCS.glob("*_zh.md"))

    assert len(chinese) >= 12
    for page in chinese:
        english = page.with_name(page.name.replace("_zh", ""))
        assert f"[English]({english.name})" in page.read_text("utf-8")
        assert f"[中文]({page.name})" in english.read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "page", "language", "on_the_site"),
    [
        ("[中文](faq_zh.md)", "faq.md", "en", '<a href="zh/faq.html">中文</a>'),
        ("[English](faq.md)", "faq_zh.md", "zh", '<a href="../faq.html">English</a>'),
        ("[出错](faq_zh.md#文件)", "index_zh.md", "zh", "[出错](faq.md#文件)"),
        ("[数据](data.md)", "index_zh.md", "zh", "[数据](data.md)"),
        ("[rooms](../CONTRIBUTING.md)", "journey.md", "en", "[rooms](contributing.md)"),
        ("[examples/grpo.py](../examples/grpo.py)", "methods.md", "en", "examples/grpo.py"),
        ("[a script](../examples/grpo.py)", "methods.md", "en", "a script (`examples/grpo.py`)"),
        (
            "[paper](https://arxiv.org/abs/1)",
            "methods.md",
            "en",
            "[paper](https://arxiv.org/abs/1)",
        ),
        ("![图](pictures/report.png)", "index_zh.md", "zh", "![图](pictures/report.png)"),
        ("```text\n[a](../b.py)\n```\n", "data.md", "en", "```text\n[a](../b.py)\n```\n"),
        ("用 CPU，几分钟\n训练", "index_zh.md", "zh", "用 CPU，几分钟训练"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(
    text: str, page: str, language: str, on_the_site: str
) -> None:
    assert SITE["links_of_site"](text, DOCS / page, language) == on_the_site


def test_a_link_or_an_anchor_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<h2 id="there">')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">'
        '<a href="b.html#gone">'
        '<img src="lost.png">'
        '<a href="https://x.org">'
        '&lt;a href="/text">'
    )

    assert list(SITE["dead_links"](tmp_path)) == ["a.html: b.html#gone", "a.html: lost.png"]


@pytest.mark.slow  # builds the site, and looks for two words in a browser
def test_search_finds_chinese_words_and_error_texts_in_a_site_on_disk(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="zensical is not installed: pip install '.[docs]'")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium or google-chrome on the PATH")
    command = [sys.executable, str(DOCS / "make_site.py"), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr

    asked: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for page_name, words, found in (
            ("zh/index.html", "显存", "显存小，或者没有显卡"),
            ("index.html", "_eos_token_tensor", "Old model, generation settings"),
        ):
            page = browser.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.goto((tmp_path / "site" / page_name).as_uri())
            page.wait_for_timeout(300)  # the page listens for its key when it is ready
            page.keyboard.press("/")
            box = page.get_by_placeholder("Search")
            box.fill(words)
            page.get_by_text(found).first.wait_for(timeout=20_000)
            assert box.input_value() == words
        browser.close()

    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
