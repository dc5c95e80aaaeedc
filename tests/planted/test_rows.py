"""Faults of rows are named by one check, with a remedy; healthy rows of many kinds are not."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.planted.artefacts import ARTEFACT_FAULTS
from tests.planted.corpus import Row
from tests.planted.healthy import HEALTHY
from tests.planted.resume import RESUME_FAULTS
from tests.planted.rows import ROW_FAULTS
from tests.planted.runs import REFUSED, RUN_FAULTS
from tests.planted.templates import PACK_FAULTS, TEMPLATE_FAULTS

from glmtune.data.lint.findings import CHECKS
from glmtune.data.lint.report import LintReport
from glmtune.data.lint.run import lint_data
from glmtune.recipe.sections import DataSection

Recorder = Callable[[str, object], None]


def lint_rows(folder: Path, learned: Sequence[Row], held_out: Sequence[Row] = ()) -> LintReport:
    values = {"train": write(folder / "rows.jsonl", learned), "bad_rows": "skip"}
    if held_out:
        values["eval"] = write(folder / "held_out.jsonl", held_out)
    return lint_data(DataSection.model_validate(values))


def write(path: Path, rows: Sequence[Row]) -> str:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ROW_FAULTS)
def test_a_planted_fault_of_rows_is_named_with_its_remedy(
    tmp_path: Path, name: str, record_property: Recorder
) -> None:
    plant, check, words = ROW_FAULTS[name]

    report = lint_rows(tmp_path, *plant())

    found = [finding for finding in report.findings if finding.check == check]
    assert found, sorted({finding.check for finding in report.findings})
    assert found[0].severity in ("error", "warning")  # a note does not count
    said = next((each.message for each in found if words in each.message), "")
    assert said, [each.message for each in found]
    record_property("said", f"{check}: {said}")
    assert CHECKS[check].remedy.endswith(".")


@pytest.mark.parametrize("kind", HEALTHY)
def test_healthy_rows_of_each_kind_raise_no_alarm(tmp_path: Path, kind: str) -> None:
    rows = HEALTHY[kind]()

    report = lint_rows(tmp_path, rows)

    assert len(rows) >= 12  # or the checks of habits would say nothing in any case
    assert [(each.check, each.message) for each in report.findings] == []


def test_real_answers_that_moved_by_a_row_are_found(shared: Path, tmp_path: Path) -> None:
    """The answers of the first 200 rows moved; the rest stays as it was."""
    rows = json.loads((shared / "data" / "alpaca_zh_1000.json").read_text(encoding="utf-8"))[:300]
    answers = [row["output"] for row in rows]
    shifted = [
        {**row, "output": answers[index - 1 if index else 199]} if index < 200 else row
        for index, row in enumerate(rows)
    ]

    [finding] = [f for f in lint_rows(tmp_path, shifted).findings if f.check == "mispaired"]

    assert (finding.severity, finding.row) == ("error", 2)  # the first row has the last answer
    assert "moved by 1 row down" in finding.message


def test_the_page_of_planted_faults_lists_all_of_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "planted.md").read_text(encoding="utf-8")

    tables = (
        ROW_FAULTS, TEMPLATE_FAULTS, PACK_FAULTS, RUN_FAULTS, REFUSED, RESUME_FAULTS,
        ARTEFACT_FAULTS,
    )  # fmt: skip
    names = [name for table in tables for name in table]
    assert [name for name in names if f"| {name} |" not in page] == []
    assert len(names) > 150
