"""Errors that lint finds stop a training run, unless a key says otherwise."""

from collections.abc import Callable

import pytest
from tests.data.lint.planted import AT, STORY, alpaca, section

from glmtune.data.lint.findings import CHECKS
from glmtune.data.lint.run import lint_data, refuse_errors
from glmtune.errors import DataError
from glmtune.recipe.sections import LintSection


def test_errors_stop_a_training_run_and_name_the_place_the_check_and_the_remedy(
    plant: Callable[..., str],
) -> None:
    path = plant(*(alpaca(f"{name}是谁？", "我是 {{name}}。") for name in "甲乙丙丁戊己庚"))
    lint = LintSection(off=("near-duplicate",))
    report = lint_data(section(path), lint=lint)

    with pytest.raises(DataError) as caught:
        refuse_errors(report, lint)

    first, *lines, more, remedy, advice = str(caught.value).splitlines()
    assert first == "lint found errors in the rows:"
    assert lines == [
        f"{path}:{AT + n}: placeholder: {{{{name}}}} was never filled in." for n in range(5)
    ]
    assert more == "... 7 errors in all: 7 placeholder"
    assert remedy == f"placeholder: {CHECKS['placeholder'].remedy}"  # once, not on each line
    assert "lint.errors=report" in advice
    assert "lint.off=[placeholder]" in advice


def test_errors_are_only_reported_when_a_key_says_so(plant: Callable[..., str]) -> None:
    report = lint_data(section(plant(alpaca("你是谁？", "我是 {{name}}。"))))
    assert report.count("error") == 1

    refuse_errors(report, LintSection(errors="report"))


def test_warnings_and_rows_that_training_skips_do_not_stop_it(plant: Callable[..., str]) -> None:
    path = plant(alpaca("空", ""), "{broken", alpaca("讲故事", STORY), alpaca("讲故事", STORY))
    report = lint_data(section(path))
    assert [finding.severity for finding in report.findings] == ["warning"] * 3

    refuse_errors(report, LintSection())
    with pytest.raises(DataError, match=rf":{AT}: empty-answer: field 'output': the answer is"):
        refuse_errors(lint_data(section(path, bad_rows="fail")), LintSection())


def test_the_error_for_an_unreadable_row_does_not_suggest_to_train_on_it(
    plant: Callable[..., str],
) -> None:
    report = lint_data(section(plant("{broken"), bad_rows="fail"))

    with pytest.raises(DataError, match=r"unreadable: .*bad_rows: skip") as caught:
        refuse_errors(report, LintSection())
    assert "lint.errors" not in str(caught.value)
