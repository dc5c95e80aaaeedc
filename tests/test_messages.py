"""Messages in the language of the reader: the catalogue, and how a text finds its twin."""

import re
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests import messages as catalogue

from glmtune import messages
from glmtune.data.store import EncodeReport
from glmtune.errors import DataError
from glmtune.messages import padded, read_catalogue, translate, width
from glmtune.train import run
from glmtune.train.start_times import StartTimes

NAMES = ("Hugging Face Hub",)
DROPPED = {"'is'", "'are'", "'s'", "''"}  # words of grammar that Chinese has no place for


@pytest.fixture
def _chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(messages.VARIABLE, "zh")


def test_every_text_that_people_read_has_a_chinese_twin() -> None:
    found = catalogue.texts()

    assert len(found) > 1500
    assert "{0}: there are no rows in it." in found
    missing = [f"{text.place}: {text.template}" for text in catalogue.without_twin()]
    assert missing == [], "python -m tests.messages write, then fill in messages_zh.po"


def test_no_entry_of_the_catalogue_is_for_a_text_that_is_gone() -> None:
    gone = [entry.source for entry in catalogue.without_text()]

    assert gone == [], "python -m tests.messages write"


def test_twins_have_the_same_gaps() -> None:
    found = catalogue.texts()
    wrong = []
    for entry in read_catalogue():
        if not entry.twin:
            continue
        source, twin = catalogue.gaps(entry.source), catalogue.gaps(entry.twin)
        values = found[entry.source].values if entry.source in found else ()
        dropped = {
            name
            for name in source - twin
            if _is_grammar(values, name) or re.search(rf"[a-z]\{{{name}\}}", entry.source)
        }
        if source - dropped != twin:
            wrong.append((entry.source, entry.twin))

    assert wrong == []


def _is_grammar(values: tuple[str, ...], name: str) -> bool:
    """Whether a gap is filled in with "is" or "are", or an s, by a number."""
    index = int(name.removeprefix("n"))
    value = values[index] if index < len(values) else ""
    first, _, rest = value.partition(" if ")
    return first in DROPPED and rest.rpartition(" else ")[2] in DROPPED


def test_every_twin_is_chinese() -> None:
    english = [
        entry.source
        for entry in read_catalogue()
        if entry.twin
        and not any("\u4e00" <= each <= "\u9fff" for each in entry.twin)
        and catalogue.PROSE.search(entry.twin)
        and entry.twin not in NAMES
    ]

    assert english == []


def test_the_words_of_typer_are_compiled() -> None:
    assert catalogue.COMPILED.read_bytes() == catalogue.compiled(), "python -m tests.messages write"


@pytest.mark.usefixtures("_chinese")
def test_a_text_is_filled_into_its_twin_with_its_values() -> None:
    assert translate("rows.json: there are no rows in it.") == "rows.json：里面没有数据行。"
    assert translate("  passed: logits are the same (3)") == "  通过：logits 相同（3）"
    text = "error: rows.json: no such file. Did you mean row.json? (Working folder: /tmp)"
    assert translate(text) == (
        "错误：rows.json：没有这个文件。是不是要写 row.json？（工作文件夹：/tmp）"
    )


@pytest.mark.usefixtures("_chinese")
@pytest.mark.parametrize(
    "text",
    [
        "", " ", "\n", "42", "out/checkpoint-4", "glmtune chat out", "'the answer is empty'",
        "The quick brown fox.", "{0}", "a {b} c", "你好，世界", "x" * 5000, "\ud800 (", "(" * 50,
    ],
)  # fmt: skip
def test_what_is_no_text_of_ours_stays_as_it_is(text: str) -> None:
    assert translate(text) == text


@pytest.mark.usefixtures("_chinese")
def test_a_word_is_translated_only_where_it_stands_alone() -> None:
    assert translate("rows") == "行"
    assert translate("the columns: rows, output") == "the columns: rows, output"


@pytest.mark.usefixtures("_chinese")
def test_a_gap_for_a_number_takes_nothing_else() -> None:
    assert translate("0.5 to 1.5") == "0.5 到 1.5"
    assert translate("from here to there") == "from here to there"


def test_readers_of_english_get_the_text_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(messages.VARIABLE, "en")

    assert translate("rows.json: there are no rows in it.") == "rows.json: there are no rows in it."


def test_the_language_is_that_of_the_variable_then_of_the_locale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (messages.VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)

    assert messages.language() == "en"
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert messages.language() == "zh"
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert messages.language() == "en"
    monkeypatch.setenv(messages.VARIABLE, "zh")
    assert messages.language() == "zh"


def test_columns_count_a_chinese_character_as_two() -> None:
    assert (width("loss"), width("损失"), width("é"), width("e\u0301")) == (4, 4, 1, 1)
    assert [padded(text, 8) + "|" for text in ("loss", "损失", "学习率")] == [
        "loss    |", "损失    |", "学习率  |",
    ]  # fmt: skip


@pytest.mark.usefixtures("_chinese")
def test_every_text_finds_its_own_twin_among_all() -> None:
    wrong = []
    for entry in read_catalogue():
        if entry.twin and not entry.context:
            text, twin = _filled(entry.source), _filled(entry.twin)
            if "".join(translate(text).split()) != "".join(twin.split()):
                wrong.append((text, translate(text)))

    assert [text for text, _ in wrong] == ["abc7 -> 7  (95 %: 7 to 7)  abc"]  # no space in it


def _filled(template: str) -> str:
    literals, fields = messages.parts_of(template)
    values = ("7" if name.startswith("n") else "abc" for name in fields)
    return literals[0] + "".join(map("".join, zip(values, literals[1:], strict=True)))


@pytest.mark.usefixtures("_chinese")
def test_any_text_is_translated_in_a_moment() -> None:
    pieces = [": ", "; ", ", ", ". ", " (", ")", " of ", "{0}", "rows", "expected ", "\n", "7", "x"]
    pieces += ["there is no such file", "cannot be read: ", "'", "[", "]", " rows of ", "。"]
    random = Random(3)
    began = time.process_time()
    for length in [*range(1, 60), 800]:
        assert translate("".join(random.choices(pieces, k=length)))

    assert time.process_time() - began < 20  # 4 s when it is alone


def test_a_notebook_shows_an_error_in_the_language_of_the_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = DataError("rows.json: there are no rows in it.")

    assert error._render_traceback_() == ["DataError: rows.json: there are no rows in it."]
    monkeypatch.setenv(messages.VARIABLE, "zh")
    assert error._render_traceback_() == ["DataError: rows.json：里面没有数据行。"]
    assert str(error) == "rows.json: there are no rows in it."


def test_a_text_of_a_card_is_chinese_whatever_the_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(messages.VARIABLE, "en")

    assert messages.in_chinese("answers end by themselves") == "回答会自行结束"


def test_the_keys_in_the_rules_of_a_recipe_are_gaps() -> None:
    """A file of rules that the tool does not know would give twins that nothing ever matches."""
    assert [each.source for each in read_catalogue() if re.search(r"{{\w+\.\w", each.source)] == []


def test_a_text_of_two_sentences_is_found_with_others_around_it() -> None:
    text = (
        "error: x.yaml: the update of a.b, c.d, e.f and 13 more is zero or not finite, so it did "
        "not learn. A learning rate of 0, an adam_epsilon far above the gradients, or float16 "
        "weights do this. See out/report.html."
    )

    assert messages.in_chinese(text) == (
        "错误：x.yaml：a.b, c.d, e.f 等另外 13 个 的更新为零或不是有限数，因此它没有学习。"
        "学习率为 0、adam_epsilon 远大于梯度，或权重为 float16，都会这样。见 out/report.html。"
    )


def test_a_sentence_that_stays_english_keeps_its_space() -> None:
    text = "Grass grows on hills. No cow eats it. See out/report.html."

    assert messages.in_chinese(text) == "Grass grows on hills. No cow eats it. 见 out/report.html。"


@pytest.mark.usefixtures("_chinese")
@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"num_overlong": 1},
        {"num_overlong": 2, "num_without_labels": 1, "num_marked_bad": 1},
        {"num_shortened": 2, "num_cut": 1, "num_bad_rows": 3},
    ],
)
def test_what_became_of_the_rows_is_told_in_chinese_whatever_was_left_out(
    counts: dict[str, Any],
) -> None:
    report = EncodeReport(
        num_rows=9, num_examples=8, formats={"a": "问答"}, quarantine="列表", **counts
    )

    told = translate(f"training rows: {report}")

    words = set(re.findall("[a-z_]{2,}", told)) - {"token", "label", "kto_tag", "false"}
    assert words == set(), told


@pytest.mark.usefixtures("_chinese")
def test_the_parts_of_a_start_are_told_in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    names = re.findall(r'times\.lap\("([^"]+)"\)', Path(run.__file__).read_text(encoding="utf-8"))
    times = StartTimes(0)
    for at, name in enumerate(names, start=1):
        monkeypatch.setattr("time.time", lambda at=at: 2.5 * at)
        times.lap(name)

    told = translate(times.describe())

    assert len(names) > 5
    assert re.findall("[a-z]{2,}", told) == [], told
