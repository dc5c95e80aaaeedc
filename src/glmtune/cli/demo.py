"""`glmtune demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    dir: Annotated[
        Path, typer.Option("--dir", help="Where the demo keeps its model and its adapter.")
    ] = Path("glmtune-demo"),
) -> None:
    """Train a small model on a CPU and talk to it, in minutes and offline.

    Example: glmtune demo --dir /tmp/demo
    """
    from glmtune.demo import run_demo

    run_demo(dir)
