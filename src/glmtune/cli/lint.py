"""`glmtune lint`: find what is wrong with rows before training."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli.options import (
    MaxLength,
    RowFormat,
    RowLayout,
    RowsOverrides,
    TokenizerOption,
    recipe_for_rows,
    shows_pairs,
)
from glmtune.cli.printing import make_console, printable
from glmtune.messages import translate

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from glmtune.data.lint.findings import Finding
    from glmtune.data.lint.report import LintReport
    from glmtune.data.lint.tokens import Lengths
    from glmtune.recipe.recipe import Recipe

SHOWN = 5  # findings of each check
COLORS = {"error": "red", "warning": "yellow", "info": "cyan"}


def lint(
    data: Annotated[
        str, typer.Argument(help="Rows as in data.train, or a recipe.", show_default=False)
    ],
    overrides: RowsOverrides = None,
    model: TokenizerOption = None,
    layout: RowLayout = None,
    max_length: MaxLength = None,
    format: RowFormat = None,
    shown: Annotated[
        int, typer.Option("--show", min=0, help="Number of findings to print for each check.")
    ] = SHOWN,
    json: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write all findings as JSON; - for stdout."),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            "--fix", metavar="OUT.jsonl", help="Write a copy without unusable rows and duplicates."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")] = False,
) -> None:
    """Find what is wrong with rows before training.

    The exit code is 1 if there are errors, else 0. Without a model, the checks that need tokens
    are skipped. --fix writes all rows except those that cannot be used, duplicates, empty answers
    and rows in which nothing is learned.

    Example: glmtune lint rows.json --model ./chatglm3-6b --fix clean.jsonl
    """
    values = {
        "model.name_or_path": model,
        "data.layout": layout,
        "data.max_length": max_length,
        "data.format": format,
    }
    from glmtune.data.lint.clean_copy import check_copy, write_clean_copy
    from glmtune.recipe.recipe import Recipe

    assumed = {"model": {"name_or_path": ""}}
    recipe = recipe_for_rows(data, values, overrides or [], Recipe, assumed=assumed)
    if fix is not None:
        check_copy(fix)  # before all rows are read
    console = make_console(highlight=False, soft_wrap=True, stderr=json == "-")
    report = check_rows(recipe, shows_pairs(recipe, data), console)
    if json is not None:
        write_json(report, json)
    print_report(report, console, shown)
    if fix is not None:
        num_written, num_left_out = write_clean_copy(recipe.data, report, fix)
        console.print(f"{fix}: {num_written:,} rows written, {num_left_out:,} left out.")
    if report.count("error") or (strict and report.count("warning")):
        raise typer.Exit(1)


def check_rows(recipe: "Recipe", pairs: bool | None, console: "Console") -> "LintReport":
    """Check all rows of a recipe, and show how many are done.

    Args:
        recipe: without a model, the checks of tokens are skipped.
        pairs: as for `lint_data`.
        console: where to show the number of rows.
    """
    from glmtune.library import lint_rows

    with console.status(translate("Reading rows")) as status:
        return lint_rows(
            recipe,
            pairs,
            lambda num_rows: status.update(translate(f"Reading rows: {num_rows:,} done")),
        )


def write_json(report: "LintReport", file: str) -> None:
    """Write all findings as JSON to a file; `-` is standard output."""
    from glmtune.files import write_atomically

    if file == "-":
        typer.echo(report.to_json())
    else:
        write_atomically(Path(file), report.to_json() + "\n")


def print_report(report: "LintReport", console: "Console", shown: int) -> None:
    """Print the counts, the lengths, and some findings of each check.

    Args:
        report: of all checks.
        console: where to print.
        shown: number of findings to print for each check.
    """
    from glmtune.data.lint.findings import CHECKS

    formats = ", ".join(sorted(set(report.formats.values()))) or "unknown"
    held_out = f" and {report.num_eval_rows:,} held out" if report.num_eval_rows else ""
    console.print(f"{report.num_rows:,} rows{held_out} (format {formats})")
    for note in report.notes:
        console.print(printable(note), markup=False)
    console.print()
    if report.lengths.total:
        console.print(lengths_table(report.lengths))
        console.print()
    if report.findings:
        console.print(counts_table(report))
    clean = [check for check, counts in report.counts().items() if not any(counts.values())]
    console.print(f"nothing found by: {', '.join(clean) or 'none'}")
    for reason, checks in itertools.groupby(
        sorted(report.not_checked, key=report.not_checked.__getitem__),
        key=report.not_checked.__getitem__,
    ):
        console.print(f"not checked: {', '.join(checks)} ({reason})", markup=False)
    if shown:
        for id, found in itertools.groupby(report.findings, key=lambda finding: finding.check):
            findings = list(found)
            console.print()
            console.print(f"{id}: {CHECKS[id].meaning}. {CHECKS[id].remedy}", style="bold")
            for finding in findings[:shown]:
                print_finding(finding, console)
            if len(findings) > shown:
                console.print(f"  and {len(findings) - shown:,} more (--show, --json)", style="dim")
    console.print()
    counts = [
        (report.count("error"), "error"),
        (report.count("warning"), "warning"),
        (report.count("info"), "note"),
    ]
    console.print(
        ", ".join(f"{count:,} {name}{'' if count == 1 else 's'}" for count, name in counts)
    )


def print_finding(finding: "Finding", console: "Console") -> None:
    """Print the place of a finding, what is wrong there, and the text in question."""
    from rich.text import Text

    line = Text("  ")
    line.append(f"{printable(finding.place)}: ")
    line.append(translate(finding.severity), style=COLORS[finding.severity])
    other = translate(f" (other row: {finding.other})") if finding.other else ""
    line.append(f": {printable(translate(finding.message))}{printable(other)}")
    console.print(line)
    if finding.excerpt:
        one_line = printable(finding.excerpt).replace("⏎\n", "⏎")
        console.print(Text(f"    {one_line}", style="dim"))


def counts_table(report: "LintReport") -> "Table":
    """Count the rows that each check found."""
    from rich.table import Table

    from glmtune.data.lint.findings import CHECKS

    table = Table("check", box=None, pad_edge=False)
    for severity in ("errors", "warnings", "notes"):
        table.add_column(severity, justify="right")
    table.add_column("meaning")
    for id, counts in report.counts().items():
        if any(counts.values()):
            numbers = [f"{count:,}" if count else "" for count in counts.values()]
            table.add_row(id, *numbers, CHECKS[id].meaning)
    return table


def lengths_table(lengths: "Lengths") -> "Table":
    """Show how long rows are, and what is lost with other values of data.max_length."""
    from rich.table import Table

    shares = ", ".join(
        f"{'longest' if share == 100 else f'{share} %'} {length:,}"
        for share, length in lengths.percentiles().items()
    )
    table = Table(
        title=f"Lengths in {lengths.unit}: {shares}; {lengths.total:,} in total",
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
    )
    limit = "max_length" if lengths.unit == "tokens" else "limit"
    headers = (limit, "longer rows", "of all", "lost if dropped", "lost if cut")
    for header in headers:
        table.add_column(header, justify="right")
    for cost in lengths.costs():
        mark = "data.max_length " if cost.max_length == lengths.limit else ""
        table.add_row(
            f"{mark}{cost.max_length:,}",
            f"{cost.num_overlong:,}",
            f"{cost.num_overlong / len(lengths.values):.1%}",
            f"{cost.lost_if_dropped:,} ({cost.lost_if_dropped / lengths.total:.1%})",
            f"{cost.lost_if_cut:,} ({cost.lost_if_cut / lengths.total:.1%})",
        )
    return table
