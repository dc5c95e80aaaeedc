"""The JSON of a lint report."""

import json
from collections.abc import Callable

from tests.data.lint.planted import AT, CLEAN, alpaca, section

from glmtune.data.lint.findings import CHECKS
from glmtune.data.lint.run import lint_data
from glmtune.recipe.sections import LintSection


def test_the_json_holds_every_finding(plant: Callable[..., str]) -> None:
    rows = [alpaca(f"第 {number} 个问题：{CLEAN[number][0]}", "{{name}}") for number in range(12)]

    report = lint_data(section(plant(*rows)), lint=LintSection(off=("near-duplicate",)))
    tree = json.loads(report.to_json())

    assert tree["errors"] == 12 == len([f for f in tree["findings"] if f["severity"] == "error"])
    assert tree["findings"][0]["line"] == AT
    assert tree["lengths"]["unit"] == "characters"
    [placeholder] = [check for check in tree["checks"] if check["id"] == "placeholder"]
    assert placeholder["error"] == 12
    assert placeholder["remedy"] == CHECKS["placeholder"].remedy
