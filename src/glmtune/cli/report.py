"""`glmtune report`: write the report of a run again."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    output_dir: Annotated[
        Path, typer.Argument(help="The output.dir of a run.", show_default=False)
    ],
) -> None:
    """Write report.html again from the files of a run.

    Example: glmtune report out
    """
    from glmtune.prove.report.page import rewrite_report

    typer.echo(rewrite_report(output_dir))
