"""The labels of rows for KTO, before they are learned."""

from pathlib import Path
from typing import Any

import pytest
from tests.data.lint.planted import CLEAN, alpaca, found, only, section, write

from glmtune.data.lint.report import LintReport
from glmtune.data.lint.run import lint_data
from glmtune.recipe.sections import PreferenceSection

REFUSAL = "对不起，作为一个人工智能语言模型，我不能回答这个问题。"


def lint(path: Path, rows: list[dict[str, Any]], **weights: float) -> LintReport:
    labeled = PreferenceSection.model_validate({"stage": "kto", **weights})
    return lint_data(section(write(path / "rows.jsonl", rows)), labeled=labeled)


def labeled_rows(good: int, bad: int) -> list[dict[str, Any]]:
    return [
        {**alpaca(*row), "kto_tag": index < good} for index, row in enumerate(CLEAN[: good + bad])
    ]


def test_labels_of_both_kinds_in_balance_give_no_finding(tmp_path: Path) -> None:
    rows = labeled_rows(10, 10)
    rows += [{**alpaca(CLEAN[0][0], REFUSAL), "kto_tag": 0}]  # what may be wrong with a bad answer
    rows += [{**alpaca(CLEAN[1][0], "机器从数据学习。"), "kto_tag": 1}]  # a prompt twice
    assert found(lint(tmp_path, rows)) == []


@pytest.mark.parametrize(
    ("good", "bad", "weights", "message"),
    [
        (20, 0, {}, "every answer is labeled good"),
        (0, 20, {}, "every answer is labeled bad"),
        # 16 / 4 = 4: to be brought to 1.33 or 1, times 3 or 4
        (16, 4, {}, "undesirable_weight to 3 or up to 4"),
        # 2 * 4 / 32 = 0.25: times 4 or 5.33, of the 2 that it is
        (4, 16, {"desirable_weight": 2, "undesirable_weight": 2}, "desirable_weight to 8 or up to"),
    ],
)
def test_labels_of_one_kind_or_out_of_balance_are_reported_with_the_weights_that_mend_it(
    tmp_path: Path, good: int, bad: int, weights: dict[str, float], message: str
) -> None:
    finding = only(lint(tmp_path, labeled_rows(good, bad), **weights))
    assert (finding.check, finding.severity) == ("labels", "warning")
    assert message in finding.message


def test_the_weights_that_are_advised_mend_the_balance(tmp_path: Path) -> None:
    assert found(lint(tmp_path, labeled_rows(16, 4), undesirable_weight=3.5)) == []


def test_one_answer_with_both_labels_is_found_with_the_other_row(tmp_path: Path) -> None:
    rows = labeled_rows(10, 10)
    finding = only(lint(tmp_path, [*rows, {**rows[2], "kto_tag": False}]))
    assert (finding.check, finding.line) == ("labels", 21)
    assert finding.other == f"{tmp_path / 'rows.jsonl'}:3"


def test_a_row_without_a_label_is_an_error_as_in_training(tmp_path: Path) -> None:
    rows = [*labeled_rows(10, 10), alpaca("为什么？", "因为。")]
    finding = only(lint(tmp_path, rows))
    assert (finding.check, finding.line, finding.is_usable) == ("unreadable", 21, False)
