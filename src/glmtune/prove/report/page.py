"""Facts -> one HTML file that needs nothing else: no network, no library, no build.

Everything that comes from data is escaped by the template engine. Should that ever fail, the
page's own policy lets the browser run no script but ours, and load nothing from anywhere.
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
from glmtune.inspect.survey import survey_rows
from glmtune.prove.metrics import read_metrics
from glmtune.prove.report.charts import draw_charts, thin
from glmtune.prove.report.facts import ReportFacts, read_facts, write_facts
from glmtune.recipe.recipe import Recipe
from glmtune.units import duration, number

REPORT = "report.html"
MAX_FINDINGS = 200  # shown; all are counted
_RECIPE, _METRICS = "recipe.yaml", "metrics.jsonl"
_SEVERITIES = ("error", "warning", "info")


def write_report(output: Path, facts: ReportFacts) -> Path:
    """Write `report.html`, and the facts in `report.json`, into the folder of a run.

    The recipe and the curves are read from `recipe.yaml` and `metrics.jsonl` there.

    Args:
        output: the run's folder.
        facts: whatever the run knows.

    Returns:
        The page.

    Raises:
        OutputError: the folder holds no run, or cannot be written.
    """
    write_facts(output, facts, _read_recipe(output))
    return rewrite_report(output)


def rewrite_report(output: Path) -> Path:
    """Make `report.html` anew from what a run left.

    Raises:
        OutputError: the folder holds no run, is damaged, or cannot be written.
    """
    recipe_text = _read_recipe(output)
    facts, gap = read_facts(output, recipe_text)
    page = render_run(output, recipe_text, read_metrics(output / _METRICS), facts, gap)
    write_atomically(output / REPORT, page)
    return output / REPORT


def _read_recipe(output: Path) -> str:
    path = output / _RECIPE
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise OutputError(
            f"{output}: there is no {_RECIPE} in it, so it is not the folder of a run. "
            "Give the output.dir of `glmtune train`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def write_rows_page(
    recipe: Recipe, path: Path, first: int = 1, count: int = 1, *, pairs: bool | None = False
) -> Path:
    """Write a page of rows as training sees them: those asked for, and the worst.

    Args:
        recipe: its model (the tokenizer alone is read) and its data.
        path: the page to write.
        first: the first row to show, counted from 1.
        count: how many from there.
        pairs: as for `convert_sides`.

    Raises:
        CheckpointError: there is no tokenizer.
        DataError: a source or a row cannot be used.
        OutputError: the page cannot be written.
    """
    survey = survey_rows(recipe, first, count, pairs=pairs)
    page = (
        _environment()
        .get_template("rows.html")
        .render(
            title=f"Rows of {', '.join(recipe.data.train)}",
            survey=survey,
            first=first,
            section=recipe.data,
            model=recipe.model.name_or_path,
        )
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
    gap: str = "",
) -> str:
    """Give the page of a run as HTML.

    Args:
        output: the run's folder, for its name and the command.
        recipe_text: the resolved recipe.
        lines: of its metrics.
        facts: what else is known.
        gap: why facts are missing, "" when they are not.
    """
    proofs = facts.all_proofs
    findings = sorted(facts.lint or (), key=_severity)
    return (
        _environment()
        .get_template("run.html")
        .render(
            title=f"Run {output.resolve().name}",
            gap=gap,
            facts=facts,
            measured=measured(lines),
            proofs=proofs,
            verdicts={
                v: sum(p.verdict == v for p in proofs) for v in ("passed", "failed", "not run")
            },
            charts=draw_charts(lines),
            lines=thin(lines),
            num_lines=len(lines),
            findings=findings[:MAX_FINDINGS],
            num_findings=len(findings),
            recipe_text=recipe_text,
            command=facts.command or repeat_command(output),
        )
    )


def _severity(finding: Mapping[str, Any]) -> int:
    severity = finding.get("severity")
    return _SEVERITIES.index(severity) if severity in _SEVERITIES else len(_SEVERITIES)


def repeat_command(output: Path) -> str:
    """Give the command that trains the same again, beside the first run.

    Paths in a recipe are relative to the working directory, so it goes there first.
    """
    again = output.with_name(f"{output.name}-again")
    recipe = shlex.quote(str(output / _RECIPE))
    target = shlex.quote(f"output.dir={again}")
    return f"cd {shlex.quote(str(Path.cwd()))} && glmtune train {recipe} {target}"


def measured(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pick out of the metrics what stands at the head of a report; None where there is none."""

    def of(key: str) -> list[tuple[int, Any]]:
        return [(line["step"], line[key]) for line in lines if line.get(key) is not None]

    losses, held_out = of("loss"), of("eval_loss")
    speeds, memory = of("tokens_per_second"), of("peak_memory_bytes")
    return {
        "last_step": max((line["step"] for line in lines), default=None),
        "first_loss": losses[0][1] if losses else None,
        "last_loss": losses[-1][1] if losses else None,
        "last_held_out": held_out[-1][1] if held_out else None,
        "best_held_out": min(held_out, key=lambda each: each[1]) if held_out else None,
        # The first line of a run tells of a cold start.
        "speed": median([value for _, value in speeds[1:] or speeds]) if speeds else None,
        "memory": max(value for _, value in memory) if memory else None,
    }


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
