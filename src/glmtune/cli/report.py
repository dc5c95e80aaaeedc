"""`glmtune report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    output_dir: Annotated[
        Path, typer.Argument(help="The output.dir of a run.", show_default=False)
    ],
) -> None:
    """Write report.html anew from what a run left in its folder.

    Example: glmtune report out
    """
    from glmtune.prove.report.page import rewrite_report

    typer.echo(rewrite_report(output_dir))
