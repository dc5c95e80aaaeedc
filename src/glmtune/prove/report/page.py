"""The files of a run -> `report.html`, one self-contained HTML file, and `loss.svg`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.errors import OutputError
from glmtune.files import explain_write_error, write_atomically
from glmtune.prove.report.charts import loss_chart, make_charts, thin
from glmtune.prove.report.facts import ReportFacts, write_facts
from glmtune.prove.report.record import RunRecord, read_recipe_text, read_record
from glmtune.prove.report.render import render
from glmtune.prove.report.summary import (
    changed_keys,
    count_verdicts,
    key_figures,
    next_commands,
    show_proofs,
    title_of,
    tokens_seen,
)
from glmtune.prove.scores import read_scores
from glmtune.recipe.recipe import Recipe

REPORT, LOSS_CURVE = "report.html", "loss.svg"
MAX_FINDINGS = 200  # shown; all are counted
_SEVERITIES = ("error", "warning", "info")


def write_report(output: Path, facts: ReportFacts) -> Path:
    """Write `report.html`, `loss.svg`, and the facts in `report.json`, into the folder of a run.

    The recipe and the metrics are read from `recipe.yaml` and `metrics.jsonl` there.

    Args:
        output: the folder of the run.
        facts: what the run knows; a field that is None is shown as not recorded.

    Returns:
        The path of the page.

    Raises:
        OutputError: the folder holds no run, or cannot be written.
    """
    write_facts(output, facts, read_recipe_text(output))
    return rewrite_report(output)


def rewrite_report(output: Path) -> Path:
    """Write `report.html` and `loss.svg` again from the other files of a run.

    A run without two finite losses has no `loss.svg`.

    Returns:
        The path of the page.

    Raises:
        OutputError: the folder holds no run, is damaged, or cannot be written.
    """
    record = read_record(output)
    if chart := loss_chart(record.lines, record.facts.saved_step):
        write_atomically(output / LOSS_CURVE, render("chart.svg", chart=chart))
    write_atomically(output / REPORT, render_run(record))
    return output / REPORT


def write_rows_page(
    recipe: Recipe, path: Path, first: int = 1, count: int = 1, *, pairs: bool | None = False
) -> Path:
    """Write a page of rows as training sees them: those asked for, and the most problematic.

    Args:
        recipe: its model, of which only the tokenizer is read, and its data.
        path: the page to write.
        first: the first row to show, counted from 1.
        count: the number of rows to show.
        pairs: as for `convert_sides`.

    Raises:
        CheckpointError: there is no tokenizer.
        DataError: a source or a row cannot be used.
        OutputError: the page cannot be written.
    """
    from glmtune.inspect.survey import survey_rows  # loads transformers, which a report is without

    page = render(
        "rows.html",
        title=f"Rows of {', '.join(map(str, recipe.data.train))}",
        survey=survey_rows(recipe, first, count, pairs=pairs),
        first=first,
        section=recipe.data,
        model=recipe.model.name_or_path,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(explain_write_error(path, error)) from error
    write_atomically(path, page)
    return path


def render_run(record: RunRecord) -> str:
    """Render the page of a run as HTML."""
    facts = record.facts
    findings = sorted(facts.lint or (), key=_severity)
    return render(
        "run.html",
        title=title_of(record),
        record=record,
        facts=facts,
        key_figures=key_figures(record.lines, facts.saved_step),
        tokens=tokens_seen(record),
        proofs=show_proofs(record),
        verdicts=count_verdicts(facts.all_proofs),
        charts=make_charts(record.lines, facts.saved_step),
        evaluations=read_scores(record.folder),
        lines=thin(record.lines),
        num_lines=len(record.lines),
        findings=findings[:MAX_FINDINGS],
        num_findings=len(findings),
        changed=changed_keys(record),
        commands=list(next_commands(record)),
        own_command=facts.command,
    )


def _severity(finding: Mapping[str, Any]) -> int:
    severity = finding.get("severity")
    return _SEVERITIES.index(severity) if severity in _SEVERITIES else len(_SEVERITIES)
