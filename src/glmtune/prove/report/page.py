"""The files of a run -> `report.html`, one self-contained HTML file, and `loss.svg`.

The template engine escapes everything that comes from data. If that ever fails, the content
security policy of the page still blocks all scripts but ours and every request.
"""

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import glmtune
from glmtune.errors import OutputError
from glmtune.files import explain_write_error, write_atomically
from glmtune.inspect.shown_row import harmless
from glmtune.prove.metrics import METRICS, read_metrics, until
from glmtune.prove.report.charts import loss_chart, make_charts, thin
from glmtune.prove.report.facts import ReportFacts, read_facts, write_facts
from glmtune.prove.scores import read_scores
from glmtune.recipe.recipe import RECIPE, Recipe
from glmtune.units import duration, number

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
    write_facts(output, facts, _read_recipe(output))
    return rewrite_report(output)


def rewrite_report(output: Path) -> Path:
    """Write `report.html` and `loss.svg` again from the other files of a run.

    A run without two finite losses has no `loss.svg`.

    Returns:
        The path of the page.

    Raises:
        OutputError: the folder holds no run, is damaged, or cannot be written.
    """
    recipe_text = _read_recipe(output)
    facts, why_missing = read_facts(output, recipe_text)
    lines = read_metrics(output / METRICS)
    if chart := loss_chart(lines):
        write_atomically(output / LOSS_CURVE, _render("chart.svg", chart=chart))
    page = render_run(output, recipe_text, lines, facts, why_missing)
    write_atomically(output / REPORT, page)
    return output / REPORT


def _read_recipe(output: Path) -> str:
    path = output / RECIPE
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise OutputError(
            f"{output}: there is no {RECIPE} in it, so it is not the folder of a run. "
            "Give the output.dir of `glmtune train`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: cannot be read as UTF-8 text: {error}") from None


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

    page = _render(
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


def render_run(
    output: Path,
    recipe_text: str,
    lines: Sequence[Mapping[str, Any]],
    facts: ReportFacts,
    why_missing: str = "",
) -> str:
    """Render the page of a run as HTML.

    Args:
        output: the folder of the run, for its name and the command.
        recipe_text: the resolved recipe.
        lines: of the metrics.
        facts: everything else.
        why_missing: the reason why there are no facts, "" if there are.
    """
    proofs = facts.all_proofs
    findings = sorted(facts.lint or (), key=_severity)
    return _render(
        "run.html",
        title=f"Run {output.resolve().name}",
        why_missing=why_missing,
        facts=facts,
        key_figures=key_figures(lines, facts.saved_step),
        proofs=proofs,
        verdicts={v: sum(p.verdict == v for p in proofs) for v in ("passed", "failed", "not run")},
        charts=make_charts(lines),
        evaluations=read_scores(output),
        lines=thin(lines),
        num_lines=len(lines),
        findings=findings[:MAX_FINDINGS],
        num_findings=len(findings),
        recipe_text=recipe_text,
        command=facts.command or repeat_command(output),
    )


def _severity(finding: Mapping[str, Any]) -> int:
    severity = finding.get("severity")
    return _SEVERITIES.index(severity) if severity in _SEVERITIES else len(_SEVERITIES)


def repeat_command(output: Path) -> str:
    """Return the command that repeats a run, into another folder next to the first.

    Paths in a recipe are relative to the working directory, so the command changes to it first.
    """
    again = output.with_name(f"{output.name}-again")
    recipe = shlex.quote(str(output / RECIPE))
    target = shlex.quote(f"output.dir={again}")
    return f"cd {shlex.quote(str(Path.cwd()))} && glmtune train {recipe} {target}"


def key_figures(
    lines: Sequence[Mapping[str, Any]], saved_step: int | None = None
) -> dict[str, Any]:
    """Summarize the metrics for the top of a report; None for what was not measured.

    Args:
        lines: of the metrics.
        saved_step: whose losses are shown; None is the last.
    """

    def of(key: str, step: int | None = None) -> list[tuple[int, Any]]:
        shown = until(lines, step)
        return [(line["step"], line[key]) for line in shown if line.get(key) is not None]

    losses, held_out = of("loss", saved_step), of("eval_loss", saved_step)
    speeds, memory = of("tokens_per_second"), of("peak_memory_bytes")
    return {
        "last_step": max((line["step"] for line in lines), default=None),
        "first_loss": losses[0][1] if losses else None,
        "last_loss": losses[-1][1] if losses else None,
        "last_held_out": held_out[-1][1] if held_out else None,
        "best_held_out": min(held_out, key=lambda each: each[1]) if held_out else None,
        # The first line of a run includes the warm-up.
        "speed": median([value for _, value in speeds[1:] or speeds]) if speeds else None,
        "memory": max(value for _, value in memory) if memory else None,
    }


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("glmtune.prove.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = files("glmtune.prove.report") / "pages"
    style = (folder / "style.css").read_text(encoding="utf-8")
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(
        style=Markup(style),  # our own files
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        version=glmtune.__version__,
    )
    environment.filters.update(
        number=number, gib=lambda value: f"{value / 2**30:.2f} GiB", harmless=harmless,
        duration=duration,
    )  # fmt: skip
    return environment
