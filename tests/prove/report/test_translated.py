"""Pages in the language of the reader."""

import re
from pathlib import Path

import pytest
from tests.messages import english_in

from glmtune.messages import VARIABLE
from glmtune.prove.report.facts import ReportFacts
from glmtune.prove.report.page import write_report
from glmtune.prove.report.translated import in_language


def test_a_page_in_english_is_the_page_of_the_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "en")

    assert in_language("<p>Sample answers</p>") == "<p>Sample answers</p>"


def test_texts_and_labels_are_translated_and_data_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "zh")

    assert in_language('<html lang="en"><h2>Sample\nanswers</h2>') == (
        '<html lang="zh-CN"><h2>回答示例</h2>'
    )
    assert in_language('<i aria-label="All values"></i>') == '<i aria-label="全部数值"></i>'
    for data in (
        "<pre>Sample answers</pre>",
        "<script>Sample answers</script>",
        '<div class="tokens now"><div>Sample</div>Sample answers</div>',
        '<b translate="no">Sample answers</b>',
        "<!-- Sample answers -->",
    ):
        assert in_language(f"{data}<p>Sample answers</p>") == f"{data}<p>回答示例</p>"
    assert in_language("<p>&lt;b&gt; in format csv</p>") == "<p>&lt;b&gt; in format csv</p>"
    assert in_language("<p>in format &lt;b&gt;</p>") == "<p>格式为 &lt;b&gt;</p>"


def test_a_chinese_report_has_no_english_sentence_and_an_english_one_no_chinese(
    run_dir: Path, facts: ReportFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "zh")
    chinese = write_report(run_dir, facts).read_text("utf-8")
    monkeypatch.setenv(VARIABLE, "en")
    english = write_report(run_dir, facts).read_text("utf-8")

    for text in _texts(chinese):
        assert english_in(text.replace("All 28 layers.", "")) == []
    assert "训练所看到的一行" in chinese
    assert not any(re.search("[\u4e00-\u9fff]{2}", text) for text in _texts(english))


def _texts(page: str) -> list[str]:
    """Return what a page says, without what is data."""
    page = re.sub(r"(?s)<(style|script|pre|code)\b.*?</\1>", "", page)
    page = re.sub(r'(?s)<div class="tokens".*?</div>', "", page)
    page = re.sub(r'(?s)<(\w+) class="[^"]*\b(?:place|code)\b[^"]*">.*?</\1>', "", page)
    return [*re.findall(r">([^<]+)<", page), *re.findall(r'aria-label="([^"]*)"', page)]
