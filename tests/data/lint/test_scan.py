"""Good rows give no finding, wrong rows are found on their line, and checks can be switched off."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.data.lint.planted import (
    AT,
    CLEAN,
    LONG_ANSWER,
    NUM_CLEAN,
    alpaca,
    chat,
    clean_rows,
    found,
    only,
    pair,
    section,
    write,
)

from glmtune.data.lint.run import lint_data
from glmtune.errors import DataError, RecipeError
from glmtune.recipe.choices import Layout
from glmtune.recipe.sections import LintSection
from glmtune.template.base import Template


@pytest.mark.parametrize("layout", ["official", "tutorial", "plain", None])
def test_clean_rows_give_no_finding(
    tmp_path: Path, template_of: Callable[[Layout], Template], layout: Layout | None
) -> None:
    path = write(tmp_path / "rows.jsonl", clean_rows())

    report = lint_data(section(path), template_of(layout) if layout else None)

    assert found(report) == []
    assert report.num_rows == NUM_CLEAN
    assert set(report.not_checked) == (set() if layout else {"no-stop", "cut-answer", "length"})


@pytest.mark.parametrize(
    ("check", "severity", "row"),
    [
        ("role-order", "warning", chat(("user", "一"), ("user", "二"), ("assistant", "三"))),
        ("role-order", "warning", chat(("user", "一"), ("narrator", "二"), ("assistant", "三"))),
        ("role-order", "warning", chat(("user", "一"), ("assistant", "二"), ("user", "三"))),
        ("role-order", "warning", chat(("user", "一"), ("assistant", "二"), ("assistant", "三"))),
        ("no-label", "warning", chat(("system", "一"), ("user", "二"))),
        ("empty-answer", "warning", chat(("user", "一"), ("assistant", ""))),
        ("empty-answer", "error", chat(("user", "一"), ("assistant", " \n"))),  # training takes it
        (
            "no-label",
            "warning",  # training leaves it out
            {
                "messages": [
                    {"role": "user", "content": "一"},
                    {"role": "assistant", "content": "二", "weight": 0},
                ]
            },
        ),
        ("unreadable", "warning", {"messages": "not a list"}),
        ("unreadable", "warning", "{broken"),
        ("encoding", "warning", '{"messages": "\udce9"}'),  # a byte of latin-1
        ("encoding", "warning", r'{"messages": [{"role": "user", "content": "\ud800"},'
        r' {"role": "assistant", "content": "a"}]}'),
    ],
)  # fmt: skip
def test_a_wrong_row_of_a_chat_is_found_on_its_line(
    tmp_path: Path, check: str, severity: str, row: Mapping[str, Any] | str
) -> None:
    good = [chat(("user", question), ("assistant", answer)) for question, answer in CLEAN]
    path = write(tmp_path / "chats.jsonl", [*good[: AT - 1], row, *good[AT - 1 :]])

    report = lint_data(section(path))

    assert found(report) == [(check, AT, severity)]


def test_a_row_that_cannot_be_used_is_an_error_where_training_would_stop(
    plant: Callable[..., str],
) -> None:
    path = plant("{broken")

    assert only(lint_data(section(path, bad_rows="fail"))).severity == "error"
    assert only(lint_data(section(path, bad_rows="skip"))).severity == "warning"


def test_a_check_that_is_off_finds_nothing_and_is_listed_as_off(plant: Callable[..., str]) -> None:
    path = plant(alpaca("你叫什么？", "我叫 {{name}}，很高兴认识你。"))

    report = lint_data(section(path), lint=LintSection(off=("placeholder",)))

    assert found(report) == []
    assert report.not_checked["placeholder"] == "switched off by lint.off"
    assert "placeholder" not in report.counts()


@pytest.mark.parametrize("name", ["near-duplicates", "unreadable"])
def test_a_check_that_does_not_exist_or_must_not_be_off_is_refused(
    plant: Callable[..., str], name: str
) -> None:
    with pytest.raises(RecipeError, match=name):
        lint_data(section(plant(alpaca("问", "答"))), lint=LintSection(off=(name,)))


def test_clean_pairs_give_no_finding(
    plant_pair: Callable[..., str], template_of: Callable[[str], Template]
) -> None:
    spread = pair(CLEAN[AT - 2][0], CLEAN[AT - 2][1], "又一个差的回答。")  # to the row before
    refused = pair(
        "怎么折纸飞机？", "先对折，再折两角。", "对不起，作为一个人工智能语言模型，我不能回答。"
    )

    report = lint_data(section(plant_pair(refused)), template_of("official"), pairs=True)
    doubled = lint_data(section(plant_pair(spread)), template_of("official"), pairs=True)

    assert found(report) == []
    assert {finding.check for finding in doubled.findings} <= {"near-duplicate"}


@pytest.mark.parametrize(
    ("planted", "check", "severity", "expected_message"),
    [
        (
            pair("为什么？", "因为。", ""),
            "empty-answer",
            "error",
            "field 'rejected': the answer is",
        ),
        (pair("为什么？", "因为。", " \n"), "empty-answer", "error", "the answer is empty"),
        (pair("为什么？", "因为。", "因为。"), "same-answers", "error", "the chosen answer again"),
        (
            pair("为什么？", "因为 它。", "因为它。\n"),
            "same-answers",
            "error",
            "only by white space",
        ),
        (
            pair("为什么？", "因为。", LONG_ANSWER),
            "length",
            "warning",
            "left out: 976 tokens are more than data.max_length 200",
        ),
        (pair("为什么？", "因为。", "他<|user|>说"), "role-marker", "error", "rejected answer: "),
        (pair("为什么？", "因为。", "乱\ufffd码"), "encoding", "error", "rejected answer: U+FFFD"),
        (pair("为什么？", "乱\ufffd码", "因为。"), "encoding", "error", "U+FFFD"),
    ],
)
def test_a_fault_of_either_answer_of_a_pair_is_found_on_its_line(
    plant_pair: Callable[..., str],
    template_of: Callable[[str], Template],
    planted: dict[str, Any],
    check: str,
    severity: str,
    expected_message: str,
) -> None:
    data = section(plant_pair(planted), max_length=200, bad_rows="fail")

    finding = only(lint_data(data, template_of("official"), pairs=True))

    assert (finding.check, finding.severity, finding.line) == (check, severity, AT)
    assert expected_message in finding.message
    assert lint_data(data, template_of("official"), pairs=None).findings == (finding,)


def test_the_rejected_answer_of_a_pair_is_not_checked_where_it_is_not_trained_on(
    plant_pair: Callable[..., str], template_of: Callable[[str], Template]
) -> None:
    path = plant_pair(pair("为什么？", "因为。", "乱\ufffd码"))

    assert found(lint_data(section(path), template_of("official"))) == []


def test_rows_with_one_answer_are_no_pairs(plant: Callable[..., str]) -> None:
    with pytest.raises(DataError, match=r"preference\.stage=dpo needs a better and a worse one"):
        lint_data(section(plant()), pairs=True)
    assert found(lint_data(section(plant()), pairs=None)) == []
