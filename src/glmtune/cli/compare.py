"""`glmtune compare`: runs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli.options import AsJson
from glmtune.cli.printing import echo, print_wide, printable
from glmtune.messages import translate

if TYPE_CHECKING:
    from rich.table import Table

    from glmtune.prove.compare import Comparison


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Output folders of runs.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Page to write.")
    ] = Path("compare.html"),
    as_json: AsJson = False,
) -> None:
    """Compare runs: recipes, data, curves, scores, answers and cost.

    The table shows what differs in the recipes, and the page the curves and the answers too. No
    model is loaded, and the page loads nothing from the network.

    Example: glmtune compare out/r8 out/r16
    """
    from glmtune.prove.compare import compare as compare_runs
    from glmtune.prove.compare import write_page

    comparison = compare_runs(runs)
    write_page(comparison, output)
    if as_json:
        typer.echo(comparison.to_json())
        return
    for note in comparison.notes:
        echo(f"note: {printable(note)}", err=True)
    print_wide(table_of(comparison))
    echo(f"Curves and answers: {output}")


def table_of(comparison: "Comparison") -> "Table":
    """Make the table of a comparison."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in comparison.names:
        table.add_column(Text(printable(name)), overflow="fold")
    for title, rows in comparison.tables.items():
        table.add_row(Text(translate(title), style="bold"))
        for row in rows:
            style = "bold" if row.differs else "dim"
            values = (Text(printable(value), style=style) for value in row.values)
            table.add_row(Text(f"  {translate(printable(row.label))}"), *values)
    return table
